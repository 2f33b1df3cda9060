"""Steps by token, by conversation and by the square root of length are those of the formula, in float64."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from lmms.configs.contract.loss_rule import LossWeight
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import Pack
from lmms.train.checkpoint.keep import BEST_NAME
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.data.order import step_packs
from lmms.train.data.phases import order_of, read_phases
from lmms.train.data.sets import open_sets
from lmms.train.data.shards import PackReader
from lmms.train.model.forward import TrainModel, last_hidden_state
from lmms.train.plan.open import MOST_SOURCES
from lmms.train.run import train
from tests.kit.model.models import FIRST_SPECIAL, VISION_FAMILIES, joined, tiny_model, tiny_recipe
from tests.kit.runs import (
    SMALL_RUN,
    assert_same_steps,
    assert_same_tensors,
    read_metrics,
    read_tensors,
    run_config,
    silent,
    train_on_ranks,
    write_model_folder,
)
from tests.kit.shards import make_pack, write_shards

RULES: tuple[LossWeight, ...] = get_args(LossWeight)
FAMILIES = ("qwen3", "qwen3_vl")
CASES = [(family, rule) for family in FAMILIES for rule in RULES]
SOURCES = ("first.jsonl", "second.jsonl")
STEPS, PACKS = 2, 7
SHARED: dict[str, dict[str, Any]] = {
    "a pack a pass": {},
    "two packs a pass": {"data__micro_packs": 2},
    "all packs by both": {"parallel__sequence": 2},
    "one rank idle": {"data__micro_packs": 3},
}
"""How two ranks may share the four packs of a step."""
ON_TWO = [
    *((family, rule, "a pack a pass") for family, rule in CASES),
    *(("qwen3", rule, "two packs a pass") for rule in RULES),
    ("qwen3_vl", "sqrt", "all packs by both"),
    ("qwen3_vl", "conversation", "one rank idle"),
]


def weighted(pack: Pack, rng: np.random.Generator) -> Pack:
    """Every span of a pack in up to three parts, with weights of many sizes; conversations of two sources."""
    spans = []
    for start, end in pack.targets.tolist():
        cuts = sorted({start, end, *rng.integers(start, end, 2).tolist()})
        spans += list(pairwise(cuts))
    samples = pack.samples.copy()
    samples[:, 0] = rng.integers(0, 2, len(samples))
    return replace(
        pack,
        targets=np.array(spans, np.int32),
        target_weights=rng.choice([0.1, 0.7, 1.0, 30.0], len(spans)),
        sample_weights=rng.choice([0.01, 0.3, 1.0, 5.0], len(samples)),
        samples=samples,
    )


def packs_of(family: str, model: ModelFolder) -> list[Pack]:
    """Packs of one to three conversations of 6 to 60 tokens; every third shows pictures in a vision family."""
    rng = np.random.default_rng(11)
    images = [2 * int(family in VISION_FAMILIES and i % 3 == 0) for i in range(PACKS)]
    lengths = [rng.integers(6, 60, 1 + (i + 1) % 3).tolist() for i in range(PACKS)]
    return [
        weighted(make_pack(rng, *each, model), rng)
        for each in zip(lengths, repeat(FIRST_SPECIAL), images, strict=False)
    ]


def write_case(
    folder: Path, family: str, change: Callable[[list[Pack]], Sequence[Pack]] = lambda packs: packs
) -> dict[str, Any]:
    """A model, and shards of packs that were changed; returns the settings of a run on them."""
    model = write_model_folder(folder / "model", family)
    write_shards(folder / "shards", change(packs_of(family, model)), model, 512, SOURCES)
    places = {"model.path": "model", "data.shards": "shards", "output": "out"}
    return {**SMALL_RUN, **{key: str(folder / name) for key, name in places.items()}, "max_steps": STEPS}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The settings of each family."""
    return {family: write_case(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def outputs(cases: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """family/rule/`one` of a rank alone, `passes` with two packs a pass, and what two ranks did, by name."""
    folder = tmp_path_factory.mktemp("outputs")
    for family, rule in CASES:
        for name, packs in (("one", 1), ("passes", 2)):
            out = str(folder / family / rule / name)
            train(run_config(cases[family], output=out, loss_weight=rule, data__micro_packs=packs), silent)
    on_two = [
        run_config(cases[family], output=str(folder / family / rule / name), loss_weight=rule, **SHARED[name])
        for family, rule, name in ON_TWO
    ]
    train_on_ranks(on_two, 2)
    return folder


@dataclass(frozen=True)
class Expected:
    """What a step is to report."""

    loss: float
    by_source: dict[str, float]
    grad_norm: float


def token_losses(model: TrainModel, pack: Pack, family: str) -> Tensor:
    """float64 [target tokens]: the cross entropy of each."""
    batch = joined([pack], tiny_recipe(family))
    hidden = last_hidden_state(model.hf, batch, batch.images > 0)[0, batch.target_rows]
    logits = hidden @ model.hf.lm_head.weight.T
    return -logits.log_softmax(dim=1).gather(1, batch.labels[:, None])[:, 0]


def token_weights(pack: Pack, rule: LossWeight) -> list[tuple[float, int]]:
    """(weight, source) of each target token, by the definition."""
    found = []
    for k, (s, (source, _)) in enumerate(zip(pack.sample_weights.tolist(), pack.samples.tolist(), strict=True)):
        first, last = pack.cu_seqlens[k : k + 2].tolist()
        spans = zip(pack.targets.tolist(), pack.target_weights.tolist(), strict=True)
        m = [weight for (start, end), weight in spans if first <= start < last for _ in range(start, end)]
        divisor = {"token": 1.0, "conversation": math.fsum(m), "sqrt": math.sqrt(math.fsum(m))}[rule]
        found += [(s * weight / divisor, source) for weight in m]
    return found


def formula(packs: Sequence[Pack], family: str, rule: LossWeight) -> Expected:
    """Loss and gradient of the model before its first step, in float64, all packs in one sum."""
    model = tiny_model(family).double()
    losses = torch.cat([token_losses(model, pack, family) for pack in packs])
    both = [entry for pack in packs for entry in token_weights(pack, rule)]
    weights = torch.tensor([weight for weight, _ in both], dtype=torch.float64)
    sources = torch.tensor([source for _, source in both])
    loss = (weights * losses).sum() / weights.sum()
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    of = {name: sources == k for k, name in enumerate(SOURCES) if (sources == k).any()}
    return Expected(
        loss=float(loss.detach()),
        by_source={
            name: float((weights * losses.detach())[own].sum() / weights[own].sum()) for name, own in of.items()
        },
        grad_norm=float(torch.stack([grad.norm() for grad in grads]).norm()),
    )


def first_packs(settings: dict[str, Any], output: Path) -> list[Pack]:
    """The packs of the first step of a run."""
    sets = open_sets([settings["data.shards"]])
    numbers = step_packs(order_of(sets, read_phases(output)[0]), 0).tolist()
    reader = PackReader(sets.datasets)
    packs = [reader.read(sets.place(pack)) for pack in numbers]
    reader.close()
    return packs


@pytest.mark.parametrize(("family", "rule"), CASES)
def test_a_step_is_the_formula_in_float64(
    cases: dict[str, dict[str, Any]], outputs: Path, family: str, rule: LossWeight
) -> None:
    output = outputs / family / rule / "one"
    packs = first_packs(cases[family], output)
    assert any(pack.media for pack in packs) == (family in VISION_FAMILIES)
    expected, found = formula(packs, family, rule), read_metrics(output)[0]
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert found["grad_norm"] == pytest.approx(expected.grad_norm, rel=1e-5)
    assert found["loss_by_source"] == pytest.approx(expected.by_source, rel=1e-5)
    assert len(expected.by_source) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rules_differ(outputs: Path, family: str) -> None:
    losses = sorted(read_metrics(outputs / family / rule / "one")[0]["loss"] for rule in RULES)
    assert all(b - a > 1e-3 for a, b in pairwise(losses))


@pytest.mark.parametrize(("family", "rule", "other"), [*((*case, "passes") for case in CASES), *ON_TWO])
def test_however_the_packs_are_shared_the_steps_and_the_weights_are_one_ranks(
    outputs: Path, family: str, rule: LossWeight, other: str
) -> None:
    one, two = outputs / family / rule / "one", outputs / family / rule / other
    assert len(read_metrics(two)) == STEPS
    assert_same_steps(read_metrics(two), read_metrics(one))
    assert_same_tensors(*(read_tensors(output / checkpoint_name(STEPS), "model.") for output in (two, one)))


@pytest.mark.parametrize(("rule", "factor"), [("token", 1.001e-10), ("sqrt", 1e11), ("conversation", 1.001e-10)])
def test_the_unit_of_the_records_weights_is_all_the_same(tmp_path: Path, rule: LossWeight, factor: float) -> None:
    plain: list[Pack] = []

    def scaled(packs: list[Pack]) -> list[Pack]:
        plain.extend(packs)
        return [replace(pack, sample_weights=pack.sample_weights * factor) for pack in packs]

    settings = write_case(tmp_path, "qwen3", scaled) | {"data.global_packs": PACKS, "max_steps": 1}
    train(run_config(settings, loss_weight=rule), silent)
    (found,) = read_metrics(settings["output"])
    expected = formula(plain, "qwen3", rule)
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert found["grad_norm"] == pytest.approx(expected.grad_norm, rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_where_images_fail_the_step_is_the_formula_without_their_conversations(
    tmp_path: Path, rule: LossWeight
) -> None:
    whole: list[Pack] = []

    def damaged(packs: list[Pack]) -> list[Pack]:
        whole.extend(packs[1:6])
        return [replace(pack, media_bytes=b"\0" * len(pack.media_bytes)) for pack in whole]

    settings = write_case(tmp_path, "qwen3_vl", damaged) | {"data.global_packs": 5, "max_steps": 1}
    train(run_config(settings, loss_weight=rule, data__on_bad_media="mask"), silent)
    (found,) = read_metrics(settings["output"])
    assert found["masked"] == 1
    expected = formula([without_first(pack) if pack.media else pack for pack in whole], "qwen3_vl", rule)
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert found["loss_by_source"] == pytest.approx(expected.by_source, rel=1e-5)


def without_first(pack: Pack) -> Pack:
    """A pack of the other conversations."""
    cut = int(pack.cu_seqlens[1])
    others = pack.targets[:, 0] >= cut
    return replace(
        pack,
        input_ids=pack.input_ids[cut:],
        cu_seqlens=pack.cu_seqlens[1:] - np.int32(cut),
        targets=pack.targets[others] - np.int32(cut),
        target_weights=pack.target_weights[others],
        sample_weights=pack.sample_weights[1:],
        samples=pack.samples[1:],
        media=(),
        media_bytes=b"",
    )


def test_an_evaluation_is_by_token_whatever_the_training_counts(
    cases: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    settings = cases["qwen3"]
    changes = {"eval.shards": settings["data.shards"], "max_steps": 1, "optim.lr": 1e-12}
    for rule in RULES:
        train(run_config(settings | changes, output=str(tmp_path / rule), loss_weight=rule), silent)
    sets = open_sets([settings["data.shards"]])
    reader = PackReader(sets.datasets)
    expected = formula([reader.read(sets.place(pack)) for pack in range(PACKS)], "qwen3", "token")
    reader.close()
    for rule in RULES:
        (line,) = read_metrics(tmp_path / rule)
        assert line["eval_loss"] == pytest.approx(expected.loss, rel=1e-5)
        assert line["eval_loss_by_source"] == pytest.approx(expected.by_source, rel=1e-5)


def test_a_run_goes_on_with_another_loss_weight_says_so_and_forgets_the_best_by_loss(
    cases: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    settings = cases["qwen3"] | {"output": str(tmp_path), "save_steps": 1, "metric_for_best_model": "loss"}
    train(run_config(settings, max_steps=1), silent)
    assert json.loads((tmp_path / BEST_NAME).read_text())["loss_weight"] == "token"
    said: list[object] = []
    train(run_config(settings, loss_weight="conversation"), said.append)
    assert "changed since the checkpoint: loss_weight was token, is conversation" in said
    assert any("step-00000001 was the best by loss, but is not any more" in str(line) for line in said)
    best = json.loads((tmp_path / BEST_NAME).read_text())
    assert (best["step"], best["loss_weight"]) == (2, "conversation")


def test_sources_of_a_mixture_are_told_apart_and_each_sets_add_up_to_it(
    cases: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    model = write_model_folder(tmp_path / "model", "qwen3")
    other = write_shards(tmp_path / "other", packs_of("qwen3", model)[2:5], model, 512, SOURCES)
    mixture = [{"shards": place, "weight": 1.0} for place in (cases["qwen3"]["data.shards"], str(other))]
    settings = cases["qwen3"] | {"data.shards": None, "data.mixture": mixture, "output": str(tmp_path / "out")}
    train(run_config(settings, loss_weight="sqrt", max_steps=3), silent)
    for line in read_metrics(tmp_path / "out"):
        names = {f"set {k}, {source}" for k in range(2) for source in SOURCES}
        assert set(line["loss_by_source"]) <= names
        assert sum(one["share"] * one["loss"] for one in line["sets"].values()) == pytest.approx(line["loss"], rel=1e-6)
        for k, one in enumerate(line["sets"].values()):
            own = [loss for name, loss in line["loss_by_source"].items() if name.startswith(f"set {k},")]
            assert min(own) <= one["loss"] * (1 + 1e-12) <= max(own) * (1 + 1e-9)


def test_one_source_is_the_loss_and_of_many_there_is_none(tmp_path: Path) -> None:
    model = write_model_folder(tmp_path / "model", "qwen3")
    packs = packs_of("qwen3", model)
    said: dict[int, list[str]] = {}
    for number in (1, MOST_SOURCES, MOST_SOURCES + 1):
        names = [f"{k}.jsonl" for k in range(number)]
        own = packs if number > 1 else [replace(p, samples=p.samples * [0, 1]) for p in packs]
        shards = write_shards(tmp_path / str(number), own, model, 512, names)
        places: dict[str, Any] = {
            "model.path": str(model.path),
            "data.shards": str(shards),
            "output": str(tmp_path / f"out {number}"),
        }
        places["eval"] = {"shards": str(shards), "every_steps": 1}
        events: list[object] = []
        train(run_config({**SMALL_RUN, **places}, max_steps=1), events.append)
        said[number] = [event for event in events if isinstance(event, str) and "by source" in event]
    lines = {number: read_metrics(tmp_path / f"out {number}")[0] for number in said}
    found = {number: set(line["loss_by_source"]) for number, line in lines.items()}
    assert found == {1: set(), MOST_SOURCES: {"0.jsonl", "1.jsonl"}, MOST_SOURCES + 1: set()}
    found = {number: set(line["eval_loss_by_source"]) for number, line in lines.items()}
    assert found == {1: {"0.jsonl"}, MOST_SOURCES: {"0.jsonl", "1.jsonl"}, MOST_SOURCES + 1: set()}
    assert said == {
        1: [],
        MOST_SOURCES: [],
        MOST_SOURCES + 1: [
            f"the {loss} is not logged by source: the shards have 65, more than 64"
            for loss in ("loss", "evaluation's loss")
        ],
    }
