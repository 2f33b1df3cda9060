"""What a user is told when something stops.

    LmmsError            one or two lines: where, what was found, what was expected, what to do
    |-- ConfigError      a setting is unknown, malformed or contradicts another
    |-- ModelError       a model folder cannot be used, or does not fit the shards
    |-- SourceError      an input file cannot be read as a whole (a bad record is a reject, not an error)
    |-- BuildError       a build stopped before its manifest: too many rejects, output in the way
    |-- DatasetError     a shard folder is incomplete, damaged, or of another contract
    `-- TrainError       a run stopped: bad media at training, checkpoint that does not fit, no progress

The command line prints the message and exits with 1; --debug adds the traceback.
"""

import errno
import resource
from collections.abc import Iterable
from difflib import get_close_matches


class LmmsError(Exception):
    """Base of every error that is addressed to the user."""


class ConfigError(LmmsError):
    """A setting is unknown, malformed or contradicts another."""


class ModelError(LmmsError):
    """A model folder cannot be used, or does not fit the shards."""


class SourceError(LmmsError):
    """An input file cannot be read as a whole."""


class BuildError(LmmsError):
    """A build stopped before its manifest was written."""


class DatasetError(LmmsError):
    """A shard folder is incomplete, damaged, or of another contract."""


class TrainError(LmmsError):
    """A training run cannot start or go on."""


def file_limit(error: OSError) -> str:
    """Message to the user if the system gives no more open files; "" for any other error."""
    if error.errno == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"too many open files: this process may have {soft:,} open at a time; set `ulimit -n {hard}` in the shell"
            " that starts it, or a higher nofile for the user in /etc/security/limits.conf"
        )
    if error.errno == errno.ENFILE:
        return "too many open files on this machine; set a higher fs.file-max with sysctl, or stop other programs"
    return ""


def refuse_file_limit(error: OSError) -> None:
    """LmmsError if the system gives no more open files: then the fault is not in the file that was opened."""
    if text := file_limit(error):
        raise LmmsError(text) from error


def nearest(name: str, known: Iterable[str], place: str = "") -> str:
    """`; did you mean 'x'?` for the closest known name, else the list of known names. place: what stands before x."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    return f"; did you mean {place + close[0]!r}?" if close else f"; known: {', '.join(names)}"
