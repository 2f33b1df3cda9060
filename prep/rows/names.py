"""Names of the columns of a file: a column that is read may not be there twice."""

from collections.abc import Collection, Sequence

TWICE = "two columns have the name"
"""How the message of check_names begins: the file is sound."""


def check_names(names: Sequence[str], columns: Collection[str]) -> None:
    """OSError if two columns have one name that is read. columns: the names that are read."""
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise OSError(f"{TWICE} {twice[0]}, which is read; rename one of them")
