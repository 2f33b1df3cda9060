"""Errors of the system are told as what they are."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

from lmms.configs.errors import file_limit

EXHAUST = """
import os, resource, sys
from pathlib import Path
from lmms.configs.errors import LmmsError
from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from lmms.configs.stores.store import LocalStore
from lmms.prep.media.read import MediaRef, read_image
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
held = []
try:
    while True:
        held.append(os.open("/", os.O_RDONLY))
except OSError:
    pass
for read in (
    lambda: LocalStore(folder).read("file"),
    lambda: load_config(TrainConfig, folder / "file"),
    lambda: read_image(MediaRef("path", "file"), (folder,)),
):
    try:
        read()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_too_many_open_files_are_no_fault_of_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = subprocess.run([sys.executable, "-c", EXHAUST, str(tmp_path)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    for line in lines:
        assert line.startswith(
            "LmmsError too many open files: this process may have 64 open at a time; set `ulimit -n 4096`"
        )


def test_only_the_limits_of_open_files_are_told_so() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert f"{soft:,} open" in file_limit(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    assert "fs.file-max" in file_limit(OSError(errno.ENFILE, ""))
    assert file_limit(OSError(errno.ENOENT, "")) == ""
