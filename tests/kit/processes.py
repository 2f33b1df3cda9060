"""What a fresh process has loaded."""

import subprocess
import sys

HEAVY = {"torch", "torchvision", "transformers", "streaming", "liger_kernel", "flash_attn"}


def loaded_after(code: str) -> set[str]:
    """Which of the heavy libraries a fresh process has loaded at the end of `code`."""
    return libraries_after(code) & HEAVY


def libraries_after(code: str) -> set[str]:
    """Every library beyond the standard one, lmms too, of which a fresh process has loaded a module at the end."""
    report = "import sys; print('loaded', *{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {name for name in run.stdout.splitlines()[-1].split()[1:] if not name.startswith("_")}


def loaded_by(*words: object, status: int = 0) -> set[str]:
    """Which heavy libraries `lmms` with these words has loaded when it ends, with this exit status."""
    return loaded_after(command(*words, status=status))


def command(*words: object, status: int = 0) -> str:
    """The code of a process that runs `lmms` with these words, and goes on if that ends with this exit status."""
    return f"""
import sys
from lmms.cli.main import main
sys.argv[1:] = {[str(word) for word in words]!r}
try:
    main()
except SystemExit as exit:
    assert (exit.code or 0) == {status}, exit.code
else:
    assert {status} == 0
"""
