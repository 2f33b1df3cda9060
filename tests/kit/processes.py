"""What a fresh process has loaded."""

import subprocess
import sys

HEAVY = {"torch", "torchvision", "transformers", "streaming", "liger_kernel", "flash_attn"}


def loaded_after(code: str) -> set[str]:
    """Which of the heavy libraries a fresh process has loaded at the end of `code`."""
    report = "import sys; print('loaded', *(name for name in sys.argv[1:] if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}", *sorted(HEAVY)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split()[1:])
