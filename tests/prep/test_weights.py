"""Weights of messages and records, from the line or row to the pack and the sidecar."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmms.configs.contract.manifest import Dataset, open_dataset
from lmms.configs.contract.model_folder import read_model_folder
from lmms.configs.contract.pack import Pack
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.records.record import parse_record
from lmms.prep.records.strict_json import parse_line
from lmms.prep.reject import REASONS, Reject
from lmms.prep.render.render import render_record
from lmms.prep.render.renderer import Renderer, load_renderer
from lmms.train.data.shards import PackReader, read_sidecar, read_table
from lmms.train.data.verify import verify
from tests.kit.folders import tiny_model_folder

BAD = {
    "negative": "-1",
    "infinite": "1e400",
    "a string": '"1"',
    "a boolean": "true",
    "a list": "[1]",
    "too small": "1e-13",
    "too large": "1e13",
    "a whole number too large": "1" + "0" * 400,
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('{"messages": [{"role": "assistant", "content": "a", "weight": %s}]}', "messages[0].weight"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "weight": %s}', "weight"),
    ],
)
def test_a_weight_that_cannot_count_is_rejected_by_name_and_place(kind: str, line: str, place: str) -> None:
    with pytest.raises(Reject, match=r"weight is .*; expected a number, 0 or from 1e-12 to 1e\+12") as caught:
        parse_record(parse_line((line % BAD[kind]).encode()))
    assert (caught.value.reason, caught.value.place) == ("bad_weight", place)
    assert "bad_weight" in REASONS


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_what_is_no_number_in_json_is_rejected_with_its_line(value: str) -> None:
    with pytest.raises(Reject) as caught:
        parse_line(b'{"messages": [], "weight": %s}' % value.encode())
    assert caught.value.reason == "invalid_number"


def test_a_weight_of_nan_in_a_table_is_rejected() -> None:
    with pytest.raises(Reject) as caught:
        parse_record({"messages": [{"role": "assistant", "content": "a"}], "weight": float("nan")})
    assert caught.value.reason == "bad_weight"


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(read_model_folder(tiny_model_folder(tmp_path_factory.mktemp("model"))))


def token_weights(renderer: Renderer, turns: list[tuple[str, str]], weights: list[float]) -> list[float]:
    """The weight of every token of a conversation whose assistant turns have these weights, in order."""
    left = iter(weights)
    messages = [
        {"role": role, "content": text, **({"weight": next(left)} if role == "assistant" else {})}
        for role, text in turns
    ]
    rendered = render_record(renderer, parse_record({"messages": messages}), [])
    found = np.zeros(len(rendered.input_ids))
    for (start, end), weight in zip(rendered.targets, rendered.weights, strict=True):
        assert (found[start:end] == 0).all()
        found[start:end] = weight
    return found.tolist()


@pytest.mark.parametrize("seed", range(15))
def test_spans_end_where_the_weight_changes(renderer: Renderer, seed: int) -> None:
    """Every token has the weight of the one turn that it belongs to: that of the turn when it alone has weight."""
    rng = random.Random(seed)
    words = ["", "a", "two words", "<|im_end|>", "\n\n", "ünï 中", "<think>\nx\n</think>\n\ny"]
    roles = ["assistant", *rng.choices(["user", "assistant"], k=rng.randint(0, 8))]
    rng.shuffle(roles)
    turns = [(role, rng.choice(words)) for role in roles]
    weights = [rng.choice([0.0, 0.1, 0.5, 1.0, 3.0, 1e-12, 1e12]) for role, _ in turns if role == "assistant"]
    weights[rng.randrange(len(weights))] = 0.7
    alone = [token_weights(renderer, turns, [float(i == k) for i in range(len(weights))]) for k in range(len(weights))]
    expected = [sum(w * mask for w, mask in zip(weights, masks, strict=True)) for masks in zip(*alone, strict=True)]
    assert token_weights(renderer, turns, weights) == expected


RECORDS: list[dict[str, Any]] = [
    {"turns": [0.1, 1.0, 0.0, 2.5], "weight": 0.3},
    {"turns": [1.0], "weight": None},
    {"turns": [None, 1e-6], "weight": 7},
    {"turns": [0.0, 3], "weight": 1e-7},
]
"""Weights of the assistant turns, and of the record."""


def record(row: int, weights: dict[str, Any]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for turn, weight in enumerate(weights["turns"]):
        messages.append({"role": "user", "content": f"question {turn} of {row}"})
        messages.append({"role": "assistant", "content": "word " * (turn + row + 1), "weight": weight})
    return {"messages": messages, "weight": weights["weight"]}


def write_jsonl(path: Path) -> Path:
    path = path / "records.jsonl"
    path.write_text("".join(json.dumps(record(*entry)) + "\n" for entry in enumerate(RECORDS)))
    return path


def write_parquet(path: Path) -> Path:
    path = path / "records.parquet"
    pq.write_table(pa.Table.from_pylist([record(*entry) for entry in enumerate(RECORDS)]), path)
    return path


def built(tmp_path: Path, source: Path, seq_len: int = 4096, max_rejects: float = 0.0) -> Dataset:
    build_shards(
        PrepConfig(
            sources=(str(source),),
            model=str(tiny_model_folder(tmp_path)),
            seq_len=seq_len,
            out=str(tmp_path / "out"),
            workers=0,
            max_rejects=max_rejects,
        )
    )
    return open_dataset(tmp_path / "out")


def read_packs(dataset: Dataset) -> list[Pack]:
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    packs = [reader.read(sidecar.place(i)) for i in range(len(sidecar))]
    reader.close()
    return packs


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
@pytest.mark.parametrize("seq_len", [4096, 160])
def test_weights_are_in_the_packs_as_they_are_in_the_records_and_summed_in_the_sidecar(
    write: Any, seq_len: int, tmp_path: Path
) -> None:
    dataset = built(tmp_path, write(tmp_path), seq_len)
    packs, sidecar = read_packs(dataset), read_sidecar(dataset)
    assert (len(packs) > 1) == (seq_len == 160)
    seen = 0
    for i, pack in enumerate(packs):
        sums = {"target_weight": 0.0, "conversation_weight": 0.0, "sqrt_weight": 0.0}
        for segment, (_, row) in enumerate(pack.samples.tolist()):
            start, end = pack.cu_seqlens[segment : segment + 2].tolist()
            own = [k for k, (a, _) in enumerate(pack.targets.tolist()) if start <= a < end]
            turns = [1.0 if weight is None else weight for weight in RECORDS[row]["turns"]]
            s = RECORDS[row]["weight"] or 1.0
            assert pack.target_weights[own].tolist() == [weight for weight in turns if weight]
            assert pack.sample_weights[segment] == s
            tokens = sum(float(np.diff(pack.targets[k])[0]) * pack.target_weights[k] for k in own)
            sums["target_weight"] += s * tokens
            sums["conversation_weight"] += s
            sums["sqrt_weight"] += s * tokens**0.5
            seen += 1
        for name, value in sums.items():
            assert getattr(sidecar, name)[i] == pytest.approx(value, rel=1e-14)
    assert seen == len(RECORDS)
    assert list(verify(tmp_path / "out")) == []


def test_a_column_weight_of_another_type_is_rejected_row_by_row(tmp_path: Path) -> None:
    messages = record(0, RECORDS[1])["messages"]
    rows = [{"messages": messages, "weight": weight} for weight in ("72 kg", None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "records.parquet")
    dataset = built(tmp_path, tmp_path / "records.parquet", max_rejects=0.5)
    (reject,) = read_table(dataset, "rejects.parquet").to_dicts()
    assert (reject["row"], reject["reason"], reject["place"]) == (0, "bad_weight", "weight")
    assert "weight is a string" in reject["message"]
