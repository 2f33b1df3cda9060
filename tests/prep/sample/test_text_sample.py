"""Samples of text alone: the bytes that a Pack of the same gives, and packs that are joined of such bytes."""

from pathlib import Path

import numpy as np
import pytest
import xxhash

from lmms.configs.contract.mds import decode_sample, encode_sample
from lmms.configs.contract.pack import COLUMNS, Pack, join_packs
from lmms.prep.engine.spooled import read_pack, spool_path
from lmms.prep.engine.store import SPOOLED
from lmms.prep.render.render import Batch
from lmms.prep.sample.text_sample import bytes_of, text_sample

SIZES = [(2, 1), (255, 2), (256, 100), (300, 255), (65_535, 256), (65_536, 300), (70_000, 65_536)]
"""Tokens and targets on both sides of the bounds where the numbers of a shape take another byte."""


def batch(sizes: list[tuple[int, int]], draw: np.random.Generator) -> Batch:
    spans = sum(n for _, n in sizes)
    return Batch(
        ids=draw.integers(0, 150_000, sum(tokens for tokens, _ in sizes), np.int32),
        cuts=[0, *np.cumsum([tokens for tokens, _ in sizes]).tolist()],
        targets=np.sort(draw.integers(0, 256, (spans, 2), np.int32), axis=1),
        weights=draw.random(spans),
        target_cuts=[0, *np.cumsum([n for _, n in sizes]).tolist()],
        media={},
        layouts=[],
    )


def packs_of(given: Batch) -> list[Pack]:
    """A pack of each record, of source 3, with the row 7, 8, ... and the weights 0.5, 1.0, ..."""
    packs = []
    for i in range(len(given.cuts) - 1):
        ids, spans = given.ids[given.cuts[i] : given.cuts[i + 1]], slice(*given.target_cuts[i : i + 2])
        packs.append(
            Pack(
                input_ids=ids,
                cu_seqlens=np.array([0, len(ids)], np.int32),
                targets=given.targets[spans],
                target_weights=given.weights[spans],
                sample_weights=np.array([(i + 1) / 2]),
                samples=np.array([(3, i + 7)]),
                media=(),
                media_bytes=b"",
            )
        )
    return packs


@pytest.fixture(scope="module")
def given() -> Batch:
    return batch([*SIZES, *SIZES[::-1]], np.random.default_rng(1))


def test_the_bytes_are_those_of_the_pack_of_the_sample(given: Batch) -> None:
    of = bytes_of(given)
    for i, pack in enumerate(packs_of(given)):
        made = text_sample(of, i, (3, i + 7), (i + 1) / 2, ("note",), is_for_evaluation=True)
        columns = pack.to_columns() | {"samples": np.array([(0, i + 7)])}
        assert made.data == encode_sample(COLUMNS, columns)
        assert decode_sample(COLUMNS, made.data)["input_ids"].tolist() == pack.input_ids.tolist()
        assert made.tokens == len(pack.input_ids)
        assert made.target_tokens == int(np.diff(pack.targets).sum())
        assert (made.place, made.notes, made.is_for_evaluation) == ((3, i + 7), ("note",), True)


def test_a_pack_is_joined_of_stored_samples_in_their_order(given: Batch, tmp_path: Path) -> None:
    of, packs = bytes_of(given), packs_of(given)
    entries = np.zeros(len(packs), SPOOLED)
    for chunk in (0, 1):
        with spool_path(tmp_path, chunk).open("wb") as file:
            for i in range(chunk, len(packs), 2):
                made = text_sample(of, i, (3, i + 7), (i + 1) / 2, (), is_for_evaluation=False)
                entries[i]["source"], entries[i]["row"], entries[i]["tokens"] = 3, i + 7, made.tokens
                entries[i]["chunk"], entries[i]["offset"], entries[i]["bytes"] = chunk, file.tell(), len(made.data)
                file.write(made.data + xxhash.xxh3_64_digest(made.data))
    order = np.random.default_rng(2).permutation(len(packs))
    pack, expected = read_pack(tmp_path, entries[order]), join_packs([packs[i] for i in order])
    assert encode_sample(COLUMNS, pack.to_columns()) == encode_sample(COLUMNS, expected.to_columns())
