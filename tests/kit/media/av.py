"""What a build makes of records of the real videos and sounds of ../shared, without the shards."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import Pack
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.first_pass import find_input, recipe_of
from lmms.prep.progress import silent
from lmms.prep.reject import REASONS, Reject
from lmms.prep.render.renderer import load_renderer
from lmms.prep.sample.samples import draft_samples, finish_alone


def records_of(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, compressed or not."""
    with pa.input_stream(str(file)) as stream:
        yield from map(json.loads, stream.read().splitlines())


def made_of(
    records: list[dict[str, Any]], av: Path, model: Path, folder: Path, **settings: Any
) -> tuple[ModelFolder, list[Pack | Reject]]:
    """The model's folder, and what a build makes of each record: its sample, or why there is none."""
    source = folder / "records.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = PrepConfig(
        sources=(str(source),),
        model=str(model),
        out=str(folder / "shards"),
        seq_len=65536,
        media_root=str(av),
        video_encoding="png",
        **settings,
    )
    given = find_input(config, folder, silent, None)
    recipe, renderer = recipe_of(config, given.model), load_renderer(given.model)

    def made(number: int, record: dict[str, Any]) -> Pack | Reject:
        try:
            draft = draft_samples(record, number, 0, given.sources[0], renderer, recipe)
            (sample,) = finish_alone(draft, renderer, recipe).samples
        except Reject as reject:
            return reject
        return sample

    return given.model, [made(i, record) for i, record in enumerate(records)]


def edge_cases(av: Path, kind: str) -> list[dict[str, Any]]:
    """The records of odd media whose ids begin with this letter: v for videos, a for sounds."""
    return [record for record in records_of(av / "edge_cases.jsonl.zst") if record["id"].startswith(f"{kind}-")]


def wrong_outcomes(
    records: list[dict[str, Any]],
    made: list[Pack | Reject],
    av: Path,
    is_whole: Callable[[dict[str, Any], Pack, dict[str, Any]], bool],
) -> dict[str, Any]:
    """Id -> what became of an edge case, of those that became something else than expected.

    is_whole: (record, sample, what a full decode gives) -> whether the sample has what it should.
    """
    expected = json.loads((av / "edge_cases.expected.json").read_text())["records"]
    wrong: dict[str, Any] = {}
    for record, sample in zip(records, made, strict=True):
        case = expected[record["id"]]
        may_be_taken, reasons = _outcomes(case)
        if isinstance(sample, Reject):
            assert sample.reason in REASONS
            if not {sample.reason, OTHER_NAMES.get(sample.reason)} & reasons:
                wrong[record["id"]] = (sample.reason, sample.message, reasons)
        elif not may_be_taken or not is_whole(record, sample, case.get("media", {})):
            wrong[record["id"]] = ("taken", sample.media, case)
    return wrong


OTHER_NAMES = {
    "not_a_video": "not_media",
    "not_a_sound": "not_media",
    "audio_too_short": "empty_audio",
    "part_missing_field": "bad_part",
}
"""Our reasons -> their names in the expectations."""


def _outcomes(expected: dict[str, Any]) -> tuple[bool, set[str]]:
    """Whether an edge case may be accepted, and the reasons for which it may be rejected."""
    ways = [expected, expected.get("outcome_also_ok", {})]
    reasons = {way["reason"] for way in ways if "reason" in way} | set(expected.get("reason_also_ok", ()))
    return any(way.get("outcome") == "accepted" for way in ways), reasons
