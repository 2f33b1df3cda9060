"""Random changes to what is read again and again: records, kept chunks, packs, index and manifest.

    python -m tools.faults.fuzz --minutes 60 --seed 1 --data ../shared/data --report docs/faults.md

    records    real lines, changed: the quick ways to read them give what the strict ones give, record or reason
    kept       files of a store of chunks, damaged: what was kept, or nothing
    packs      the bytes of a pack: a pack that the check of the contract can judge, or ValueError
    index      index.json: what was stated, or DatasetError
    manifest   manifest.json: the same
    ...        videos and their rows: see fuzz_videos.py

Anything else, such as an exception of another kind, is wrong.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from backports import zstd

from lmms.configs.contract.check import check_pack, pack_limits
from lmms.configs.contract.manifest import MANIFEST_NAME, open_dataset, read_manifest
from lmms.configs.contract.mds import INDEX_NAME, decode_sample, read_index
from lmms.configs.contract.pack import COLUMNS, Pack
from lmms.configs.contract.sidecar import pack_row
from lmms.configs.errors import DatasetError
from lmms.configs.settings.sources import DEFAULT_READING, FormName, Reading
from lmms.configs.stores.store import LocalStore
from lmms.configs.typed import Json
from lmms.prep.build import build_shards
from lmms.prep.chunks import BLANK, chunk_values
from lmms.prep.engine.kept import Kept, keep, take_kept
from lmms.prep.engine.spooled import spool_path
from lmms.prep.engine.store import Spooled
from lmms.prep.records import read
from lmms.prep.records.forms import find_form
from lmms.prep.records.strict_json import parse_line
from lmms.prep.reject import REASONS, Reject
from lmms.prep.rows.chunk import Chunk
from tools.faults.build_faults import settings, write_sources
from tools.faults.fuzz_videos import container_target, decoder_target, row_target
from tools.faults.mutations import mutated
from tools.faults.page import ROOT, told
from tools.faults.sound_files import damaged, sound_files

TITLE = "# Fuzzed readers"
LINES_OF_A_FILE, LONGEST_LINE = 200, 20_000

SHARES = {
    "records": 200,
    "kept": 40,
    "packs": 40,
    "index": 10,
    "manifest": 10,
    "containers": 100,
    "decoders": 5,
    "rows": 40,
}
"""Target -> changes in a row."""

_THINKS_NOT = {"enable_thinking": Json(False)}
READINGS = (
    DEFAULT_READING,
    replace(DEFAULT_READING, targets="last", template_options=_THINKS_NOT),
    replace(DEFAULT_READING, targets="all", roles={"human": "user", "system": "tool"}),
    replace(DEFAULT_READING, reasoning="masked"),
    replace(DEFAULT_READING, reasoning="stripped"),
    replace(DEFAULT_READING, system="Be brief."),
)

Target = Callable[[random.Random], "tuple[str, str]"]
"""A change, tried: the outcome, and what is wrong, empty if nothing is."""


@dataclass(slots=True)
class Findings:
    """The result of a campaign."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


def real_lines(data: Path) -> Iterator[tuple[FormName, list[bytes]]]:
    """(form, lines) of each file of real records; without the folder, lines of ours."""
    yield "openai", sound_files()[".jsonl"].splitlines()
    for file in sorted(data.rglob("*.jsonl.zst")):
        with zstd.open(file) as stream:
            lines = [line for line in itertools.islice(stream, LINES_OF_A_FILE) if len(line) < LONGEST_LINE]
        values = [value for line in lines if isinstance(value := _strict_value(line), dict)]
        form = find_form(values[:16]) if values else None
        if form:
            yield form, [line.strip() for line in lines if isinstance(_strict_value(line), dict)]


def _strict_value(line: bytes) -> Any:
    try:
        return parse_line(line)
    except Reject as reject:
        return reject


def record_target(data: Path) -> Target:
    """Lines by the quick ways of a build, and by the strict parser and the walk alone."""
    files = [(form, lines) for form, lines in real_lines(data) if lines]
    everything = [line for _, lines in files for line in lines]

    def attempt(rng: random.Random) -> tuple[str, str]:
        form, lines = rng.choice(files)
        reading = replace(rng.choice(READINGS), form=form)
        batch = [mutated(rng.choice(lines), everything, rng) for _ in range(rng.choice((1, 1, 3)))]
        quick = [_read(value, reading) for _, value in chunk_values(Chunk(0, 0, batch, 0), ())]
        with patch.object(read, "parse_plain", return_value=None):
            strict = [_read(BLANK if not line.strip() else _strict_value(line), reading) for line in batch]
        for line, given, expected in zip(batch, quick, strict, strict=True):
            if given != expected or (isinstance(expected, tuple) and expected[0] not in REASONS):
                return "wrong", f"{given} in place of {expected}: {line!r} with {reading}"
        return "rejected" if any(isinstance(each, tuple) for each in strict) else "read", ""

    return attempt


def _read(value: Any, reading: Reading) -> Any:
    if isinstance(value, Reject) or value is BLANK:
        return (value.reason, value.message, value.place) if isinstance(value, Reject) else "blank"
    try:
        return read.read_record(value, reading)
    except Reject as reject:
        return reject.reason, reject.message, reject.place
    except RecursionError:
        return "nested_too_deep", "", ""
    except Exception as error:  # noqa: BLE001  (the campaign looks for exceptions of any kind)
        return f"{type(error).__name__}: {error}", "", ""


def kept_target(folder: Path) -> Target:
    """A chunk that is kept, with one of its files damaged, or with the file of another chunk."""
    limits = pack_limits(512, 0, None, None)
    kept, spool = Kept(folder / "store", b"", limits), folder / "spool"
    spool.mkdir()
    chunk = Chunk(3, 0, sound_files()[".jsonl"].splitlines(), 0)
    keys = ["a" * 32, "b" * 32]
    for number, key in enumerate(keys):
        spool_path(spool, number).write_bytes(bytes(range(256)) * 20)
        keep(kept, key, _spooled(number), number, spool, {})
    sound = take_kept(kept, keys[0], chunk, 9, spool)
    assert sound
    files = [folder / "store" / "aa" / f"{keys[0]}{ending}" for ending in (".npz", ".samples")]
    contents = [file.read_bytes() for file in files]
    others = [folder / "store" / "bb" / f"{keys[1]}{ending}" for ending in (".npz", ".samples")]

    def attempt(rng: random.Random) -> tuple[str, str]:
        number = rng.randrange(2)
        hit = others[number].read_bytes() if rng.random() < 0.02 else damaged(contents[number], rng)
        spool_path(spool, 9).unlink(missing_ok=True)
        files[number].unlink()  # the samples are linked into a spool
        files[number].write_bytes(hit)
        try:
            taken = take_kept(kept, keys[0], chunk, 9, spool)
        except Exception as error:  # noqa: BLE001  (the campaign looks for exceptions of any kind)
            return "wrong", f"{type(error).__name__}: {error}: {files[number].suffix} {hit!r}"
        finally:
            files[number].unlink()
            files[number].write_bytes(contents[number])
        if taken and repr(taken) != repr(sound):
            return "wrong", f"{taken}: {files[number].suffix} {hit!r}"
        return "made again" if taken is None else "taken", ""

    return attempt


def _spooled(number: int) -> tuple[Spooled, Spooled]:
    import numpy as np

    from lmms.prep.engine.store import SPOOLED

    samples = np.zeros(5, SPOOLED)
    samples["row"], samples["tokens"], samples["bytes"] = range(5), 7 + number, 100
    rejects = [(7, Reject("not_object", "a message", "messages[0]"))]
    facts: dict[str, Any] = {"source": 3, "rows": 40, "read": 6, "skipped": 0, "notes": Counter({"column id": 6})}
    facts |= {"cut_turns": 0, "digest": bytes(16), "file_bytes": 0, "filter_columns": frozenset({"id"})}
    return Spooled(samples=samples, rejects=rejects, **facts), Spooled(samples=samples[:0], rejects=[], **facts)


def _shards(folder: Path) -> Path:
    write_sources(folder)
    build_shards(settings(folder, store="none"))
    return folder / "out"


def pack_target(shards: Path) -> Target:
    """The bytes of a pack, damaged, to the last look at what they hold."""
    from lmms.configs.contract.mds import shard_offsets

    data = (shards / "shard.00000.mds").read_bytes()
    offsets = shard_offsets(data).tolist()
    packs = [data[start:end] for start, end in itertools.pairwise(offsets)]
    limits = open_dataset(shards).manifest.limits

    def attempt(rng: random.Random) -> tuple[str, str]:
        hit = damaged(rng.choice(packs), rng)
        try:
            pack = Pack.from_columns(decode_sample(COLUMNS, hit))
            if check_pack(pack, limits):
                return "breaks the contract", ""
            pack_row(pack)
        except ValueError:
            return "refused", ""
        except Exception as error:  # noqa: BLE001
            return "wrong", f"{type(error).__name__}: {error}: {hit!r}"
        return "a sound pack", ""

    return attempt


def file_target(shards: Path, name: str, read_it: Callable[[Path], object]) -> Target:
    """index.json or manifest.json, damaged. read_it: gets a folder with the file."""
    sound = (shards / name).read_bytes()
    with tempfile.TemporaryDirectory(prefix="lmms-fuzz-") as made:
        (Path(made) / name).write_bytes(sound)
        expected = read_it(Path(made))

    def attempt(rng: random.Random) -> tuple[str, str]:
        hit = damaged(sound, rng) if rng.random() < 0.5 else mutated(sound, [sound], rng)
        with tempfile.TemporaryDirectory(prefix="lmms-fuzz-") as made:
            (Path(made) / name).write_bytes(hit)
            try:
                stated = read_it(Path(made))
            except DatasetError:
                return "refused", ""
            except Exception as error:  # noqa: BLE001
                return "wrong", f"{type(error).__name__}: {error}: {hit!r}"
        return ("as stated" if stated == expected else "another statement"), ""

    return attempt


def campaign(seed: int, minutes: float, data: Path, say: Callable[[str], None]) -> Findings:
    """Try changes of every target in turn until the time is over."""
    findings, rng, began = Findings(), random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lmms-fuzz-") as made:
        shards = _shards(Path(made))
        targets: Mapping[str, Target] = {
            "records": record_target(data),
            "kept": kept_target(Path(made)),
            "packs": pack_target(shards),
            "index": file_target(shards, INDEX_NAME, lambda at: read_index((at / INDEX_NAME).read_bytes(), str(at))),
            "manifest": file_target(shards, MANIFEST_NAME, lambda at: read_manifest(LocalStore(at))),
            "containers": container_target(),
            "decoders": decoder_target(),
            "rows": row_target(),
        }
        findings.outcomes = {name: Counter() for name in targets}
        said = 0.0
        while findings.seconds < 60 * minutes and len(findings.wrong) < 50:
            for name, share in SHARES.items():
                for _ in range(share):
                    outcome, wrong = targets[name](rng)
                    findings.outcomes[name][outcome] += 1
                    if wrong:
                        findings.wrong.append(f"{name}: {wrong}")
                        say(findings.wrong[-1][:2000])
            findings.seconds = time.monotonic() - began
            if findings.seconds > said + 60:
                said = findings.seconds
                tried = sum(counts.total() for counts in findings.outcomes.values())
                say(f"{tried:,} changes, {len(findings.wrong)} wrong, {findings.seconds:.0f} s")
    return findings


def report(findings: Findings, seed: int) -> str:
    """The part of the page about readers."""
    tried = sum(counts.total() for counts in findings.outcomes.values())
    lines = [
        TITLE,
        "",
        "Made by `python -m tools.faults.fuzz`: real lines of records, files of kept chunks, packs, index, manifest,",
        "videos and the media of packs, changed at random (bytes; for lines and media also values, keys and order) and",
        "read. The quick ways to read a record have to give the strict ones' record, or their reason, message and",
        "place. containers, decoders: a video by the readers before a decoder, and by the process that decodes. rows:",
        "the media of a pack of videos, to the patches in training.",
        "",
        f"Seed {seed}: {tried:,} changes in {findings.seconds / 60:.0f} minutes.",
        f"**{len(findings.wrong) or 'None'} of them was read in two ways, or ended in an error without a name.**",
        "",
        "| what | changes | outcomes |",
        "|---|---|---|",
        *(
            f"| {name} | {counts.total():,} | {', '.join(f'{n:,} {what}' for what, n in counts.most_common())} |"
            for name, counts in findings.outcomes.items()
        ),
        *(
            ["", "What went wrong:", "", *(f"- {sentence[:300]}" for sentence in findings.wrong)]
            if findings.wrong
            else []
        ),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and write its part of the page; returns 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of .jsonl.zst files")
    parser.add_argument("--report", type=Path, help="write the part of the page here")
    given = parser.parse_args(arguments)
    findings = campaign(given.seed, given.minutes, given.data, lambda line: print(line, flush=True))
    return told(report(findings, given.seed), given.report, bool(findings.wrong))


if __name__ == "__main__":
    sys.exit(main())
