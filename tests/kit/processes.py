"""What a fresh process has loaded."""

import subprocess
import sys

HEAVY = {"torch", "torchvision", "transformers", "streaming", "liger_kernel", "flash_attn"}


def loaded_after(code: str) -> set[str]:
    """Which of the heavy libraries a fresh process has loaded at the end of `code`."""
    report = f"import sys; print('loaded', *(name for name in {sorted(HEAVY)} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split()[1:])


def loaded_by(*words: object, status: int = 0) -> set[str]:
    """Which of them `lmms` with these words has loaded when it ends, with this exit status."""
    code = f"""
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
    return loaded_after(code)
