"""Random changes to files of records of every kind: whatever a file holds, reading ends with rows or with a sentence.

    python -m tools.faults.files --changes 2000 --report docs/faults.md

A sound file is made of each kind; each change hits a copy: bytes flipped, cut out, put in, or the end cut off. A
process reads a batch of copies as a build does, to the last record. Wrong are: a process that dies or hangs, an error
that does not name its file, an exception that is not for the user, and a table that gives another number of rows.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from lmms.configs.errors import SourceError
from lmms.prep.chunks import BLANK, chunk_values, source_chunks
from lmms.prep.records.record import parse_record
from lmms.prep.reject import Reject
from lmms.prep.rows.child import ReadTable, table_reader
from lmms.prep.sources import find_sources
from tools.faults.page import told
from tools.faults.sound_files import ROWS, damaged, sound_files

TITLE = "# Damaged files"
BATCH, PATIENCE_S = 100, 600.0
_TABLES = (".parquet", ".arrow", ".stream.arrow")

READ, REJECTED, REFUSED = "read", "rows rejected", "file refused"


def outcome(file: Path, read_table: ReadTable) -> str:
    """What became of a damaged file: READ, REJECTED, REFUSED, or a sentence about what is wrong."""
    rows = rejected = 0
    try:
        (source,), _ = find_sources([str(file)], None)
        for chunk in source_chunks(0, source, read_table):
            for _, value in chunk_values(chunk, source.columns):
                rows += 1
                try:
                    if isinstance(value, Reject):
                        raise value
                    if value is not BLANK:
                        parse_record(value)
                except Reject:
                    rejected += 1
    except SourceError as error:
        return REFUSED if str(file) in str(error) else f"an error does not name {file}: {error}"
    except Exception as error:  # noqa: BLE001  (the campaign looks for exceptions of any kind)
        return f"{file}: {type(error).__name__}: {error}"
    if file.name.endswith(_TABLES) and rows != ROWS:
        return f"{file}: {rows} rows in place of {ROWS}"
    return REJECTED if rejected else READ


def read_batch(folder: Path) -> None:
    """Print a line of JSON (name, outcome) for each file of a folder, after a line with the name alone."""
    with table_reader() as read_table:
        for file in sorted(folder.iterdir()):
            print(json.dumps([file.name]), flush=True)
            print(json.dumps([file.name, outcome(file, read_table)]), flush=True)


def campaign(
    changes: int, seed: int, keep: Path, say: Callable[[str], None]
) -> tuple[Mapping[str, Counter[str]], list[str]]:
    """(ending -> outcome -> files, sentences about what went wrong). Files that went wrong stay in `keep`."""
    rng, sound = random.Random(seed), sound_files()
    outcomes: dict[str, Counter[str]] = {ending: Counter() for ending in sound}
    wrong: list[str] = []
    for start in range(0, changes, BATCH):
        with tempfile.TemporaryDirectory(prefix="lmms-files-") as made:
            folder = Path(made)
            for number in range(start, min(start + BATCH, changes)):
                ending = rng.choice(list(sound))
                (folder / f"{number:06d}{ending}").write_bytes(damaged(sound[ending], rng))
            for name, result in _read_in_process(folder).items():
                ending = name[6:]
                outcomes[ending][result if result in (READ, REJECTED, REFUSED) else "wrong"] += 1
                if result not in (READ, REJECTED, REFUSED):
                    wrong.append(f"{name}: {result}")
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / name).write_bytes((folder / name).read_bytes())
        say(f"{min(start + BATCH, changes)} changes, {len(wrong)} wrong")
    return outcomes, wrong


def _read_in_process(folder: Path) -> dict[str, str]:
    """Name -> outcome of each file of a folder; a process that dies or hangs is the outcome of its last file."""
    results: dict[str, str] = {}
    while left := [file for file in sorted(folder.iterdir()) if file.name not in results]:
        with tempfile.TemporaryDirectory(prefix="lmms-files-") as made:
            for file in left:
                (Path(made) / file.name).hardlink_to(file)
            command = [sys.executable, "-m", "tools.faults.files", "--batch", made]
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, timeout=PATIENCE_S)
                said, end = done.stdout, f"the process ended with status {done.returncode}"
            except subprocess.TimeoutExpired as error:
                said, end = error.stdout or b"", f"the process did not end within {PATIENCE_S:g} s"
        lines = [json.loads(line) for line in said.splitlines()]
        results |= {line[0]: line[1] for line in lines if len(line) == 2}
        if unfinished := [line[0] for line in lines if line[0] not in results]:
            results[unfinished[0]] = end
        elif len(lines) < 2 * len(left):
            raise SystemExit(f"the campaign's own process failed: {end}")
    return results


def report(outcomes: Mapping[str, Counter[str]], wrong: list[str], changes: int, seed: int, seconds: float) -> str:
    """The part of the page about files."""
    kinds = (READ, REJECTED, REFUSED)
    lines = [
        TITLE,
        "",
        "Made by `python -m tools.faults.files`: a sound file of every kind, hit by a random change (bytes changed,",
        "cut out, put in, or the end cut off) and read as a build does, to the last record. A changed text may",
        "still be sound.",
        "",
        f"Seed {seed}: {changes:,} changes in {seconds / 60:.0f} minutes.",
        f"**{len(wrong) or 'None'} of them ended a process, hung, gave an error without the file's name or"
        " lost a row of a table.**",
        "",
        f"| file | {' | '.join(kinds)} |",
        "|---|---|---|---|",
        *(f"| `{ending}` | {' | '.join(str(counts[kind]) for kind in kinds)} |" for ending, counts in outcomes.items()),
        *(["", "What went wrong:", "", *(f"- {sentence}" for sentence in wrong)] if wrong else []),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign and write its part of the page; returns 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="write the part of the page here")
    parser.add_argument("--keep", type=Path, default=Path("wrong-files"), help="folder for files that went wrong")
    parser.add_argument("--batch", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.batch:
        read_batch(given.batch)
        return 0
    began = time.monotonic()
    outcomes, wrong = campaign(given.changes, given.seed, given.keep, lambda line: print(line, flush=True))
    text = report(outcomes, wrong, given.changes, given.seed, time.monotonic() - began)
    return told(text, given.report, bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
