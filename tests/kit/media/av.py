"""What a build makes of records of the real videos and sounds of ../shared, without the shards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import Pack
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.first_pass import find_input, recipe_of
from lmms.prep.progress import silent
from lmms.prep.reject import Reject
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


def outcomes(expected: dict[str, Any]) -> tuple[bool, set[str]]:
    """Whether an edge case may be accepted, and the reasons for which it may be rejected."""
    ways = [expected, expected.get("outcome_also_ok", {})]
    reasons = {way["reason"] for way in ways if "reason" in way} | set(expected.get("reason_also_ok", ()))
    return any(way.get("outcome") == "accepted" for way in ways), {_NAMES.get(reason, reason) for reason in reasons}


_NAMES = {"not_media": "not_a_video"}
"""Reasons of the expectations that have another name here."""
