"""The message for a file that could not be written because there is no room."""

import errno
import re
import resource
import shutil
from pathlib import Path

_NUMBER = re.compile(r"\[Errno (\d+)\]|os error (\d+)")
"""The number of an error in the text of an OSError, or of an error of safetensors."""


def no_room(text: str, folder: Path, needed: int) -> str:
    """What is full and what to do, from the text of an error while files were written into `folder`.

    needed: bytes of all files together. Empty for an error of another kind.
    """
    numbers = {int(number) for match in _NUMBER.findall(text) for number in match if number}
    wants = f"{size_text(needed)} are needed"
    if errno.ENOSPC in numbers:
        free = shutil.disk_usage(folder).free
        return f"the disk of {folder} is full: {wants}, {size_text(free)} are free; make room, or choose another folder"
    if errno.EDQUOT in numbers:
        return f"the quota for {folder} is used up: {wants}; make room, or choose another folder"
    if errno.EFBIG in numbers:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        limit = "" if most == resource.RLIM_INFINITY else f" than {size_text(most)} (ulimit -f)"
        return f"no file in {folder} may be larger{limit}: {wants}; raise the limit, or choose another folder"
    return ""


def why_not(error: OSError, folder: Path, needed: int) -> str:
    """Why a file of `needed` bytes could not be written into `folder`, in a short sentence: see no_room."""
    return no_room(str(error), folder, needed) or error.strerror or str(error)


def size_text(size: int) -> str:
    """A number of bytes for a person: 1.4 GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
