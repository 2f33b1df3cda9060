"""Two gloo ranks do what one does: loss, gradient norms and weights, whoever holds the images."""

import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from lmms.configs.errors import ConfigError
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.data.phases import order_of, read_phases
from lmms.train.data.sets import open_sets
from lmms.train.data.steps import RankShare, plan_steps
from lmms.train.model.names import part_of
from lmms.train.parallel.world import compute_dtype, start_world
from lmms.train.run import train
from tests.kit.runs import (
    assert_same_steps,
    assert_same_tensors,
    read_metrics,
    read_tensors,
    run_config,
    silent,
    train_on_ranks,
    write_run,
)

STEPS = 3

CASES: dict[str, dict[str, Any]] = {
    "text": {"family": "qwen3", "tied": True},
    "images": {"family": "qwen3_vl"},
    "tied, windows": {"family": "qwen2_5_vl", "tied": True},
    "vision frozen": {"family": "qwen2_vl", "train": {"vision": "frozen"}},
    "vision alone": {"family": "qwen3_vl", "train": {"llm": "frozen", "aligner": "frozen"}, "memory.recompute": "none"},
    "lora": {"family": "qwen3_vl", "train": {"default": "lora"}, "lora.rank": 3, "lora.bias": "all"},
    "lora, full, frozen": {
        "family": "qwen2_5_vl",
        "tied": True,
        "train": {"llm": "lora", "vision": "frozen"},
        "lora.targets": ["q_proj", "down_proj"],
        "lora.modules_to_save": ["norm"],
    },
}
WENT_ON = ("images", "lora")
"""Cases that go on from their second step too, on two ranks what one began, in the folder `one on two`."""
UNEVEN = [(3, 2), (1, 2), (5, 4)]
"""Packs of a step, and ranks: some of them have none in its last pass. Runs of the case "images"."""
LORA_ON_FOUR: dict[str, dict[str, Any]] = {
    "four": {},
    "four, shared packs": {"parallel.sequence": 2},
    "four, two copies": {"parallel.replicate": 2},
}
"""Outputs of the case "lora"."""


@dataclass(frozen=True)
class Both:
    """One case, trained on one rank and on two."""

    settings: dict[str, Any]
    one: Path
    two: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    """Every case, those of WENT_ON twice on two ranks; then UNEVEN and LORA_ON_FOUR."""
    both, on_two = {}, []
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("run")
        settings = write_run(folder, case["family"], tied=case.get("tied", False))
        settings |= {"max_steps": STEPS, "save_steps": 2} | {
            key: case[key] for key in case if key not in ("family", "tied")
        }
        both[name] = Both(settings, folder / "one", folder / "two")
        train(run_config(settings, output=str(folder / "one")), silent)
        on_two.append(run_config(settings, output=str(folder / "two")))
    for name in WENT_ON:
        resumed = both[name].one.with_name("one on two")
        shutil.copytree(both[name].one / checkpoint_name(2), resumed / checkpoint_name(2))
        on_two.append(run_config(both[name].settings, output=str(resumed)))
    on_four = [
        run_config({**both["lora"].settings, **changes}, output=str(both["lora"].one.with_name(name)))
        for name, changes in LORA_ON_FOUR.items()
    ]
    for packs, ranks in UNEVEN:
        one, several = uneven_outputs(both, packs, ranks)
        settings = both["images"].settings | {"data.global_packs": packs}
        train(run_config(settings, output=str(one)), silent)
        {2: on_two, 4: on_four}[ranks].append(run_config(settings, output=str(several)))
    train_on_ranks(on_two, 2)
    train_on_ranks(on_four, 4)
    return both


def uneven_outputs(runs: dict[str, Both], packs: int, ranks: int) -> tuple[Path, Path]:
    """Where one rank trains on so many packs a step, and where so many ranks do."""
    folder = runs["images"].one.parent
    return folder / f"{packs} packs on one", folder / f"{packs} packs on {ranks}"


def test_one_rank_has_text_alone_beside_images_on_the_other(runs: dict[str, Both]) -> None:
    (phase,) = read_phases(runs["images"].two)
    sets = open_sets([runs["images"].settings["data.shards"]])
    plans = [islice(plan_steps(order_of(sets, phase), sets, RankShare(rank, 2)), STEPS) for rank in (0, 1)]
    passes = [[sets.media[request.places[0].pack] > 0 for plan in one for request in plan.passes] for one in plans]
    assert {(True, False), (False, False)} <= {(bool(a), bool(b)) for a, b in zip(*passes, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_report_what_one_reports(runs: dict[str, Both], case: str) -> None:
    one, two = read_metrics(runs[case].one), read_metrics(runs[case].two)
    assert len(one) == len(two) == STEPS
    assert_same_steps(two, one)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_end_with_the_weights_of_one(runs: dict[str, Both], case: str) -> None:
    assert_same_tensors(*(read_tensors(output / checkpoint_name(STEPS)) for output in (runs[case].two, runs[case].one)))


@pytest.mark.parametrize("case", WENT_ON)
def test_two_ranks_go_on_from_a_checkpoint_of_one(runs: dict[str, Both], case: str) -> None:
    one, resumed = runs[case].one, runs[case].one.with_name("one on two")
    assert [line["step"] for line in read_metrics(resumed)] == [STEPS]
    assert_same_steps(read_metrics(resumed), read_metrics(one)[-1:])
    assert_same_tensors(read_tensors(resumed / checkpoint_name(STEPS)), read_tensors(one / checkpoint_name(STEPS)))


@pytest.mark.parametrize("case", WENT_ON)
def test_one_rank_goes_on_from_a_checkpoint_of_two(runs: dict[str, Both], tmp_path: Path, case: str) -> None:
    both = runs[case]
    train(run_config(both.settings, output=str(tmp_path), resume=str(both.two / checkpoint_name(2))), silent)
    assert_same_steps(read_metrics(tmp_path), read_metrics(both.two)[-1:])
    assert_same_tensors(
        read_tensors(tmp_path / checkpoint_name(STEPS)), read_tensors(both.two / checkpoint_name(STEPS))
    )


@pytest.mark.parametrize("layout", LORA_ON_FOUR)
def test_four_ranks_train_lora_as_one_does(runs: dict[str, Both], layout: str) -> None:
    one, four = runs["lora"].one, runs["lora"].one.with_name(layout)
    assert_same_steps(read_metrics(four), read_metrics(one))
    assert_same_tensors(read_tensors(four / checkpoint_name(STEPS)), read_tensors(one / checkpoint_name(STEPS)))


@pytest.mark.parametrize(("packs", "ranks"), UNEVEN)
def test_ranks_without_a_pack_in_the_last_pass_change_nothing(runs: dict[str, Both], packs: int, ranks: int) -> None:
    one, several = uneven_outputs(runs, packs, ranks)
    assert [line["position"] for line in read_metrics(several)] == [packs * (k + 1) for k in range(STEPS)]
    assert_same_steps(read_metrics(several), read_metrics(one))
    assert_same_tensors(*(read_tensors(output / checkpoint_name(STEPS)) for output in (several, one)))


def test_frozen_weights_do_not_move_and_are_in_no_checkpoint(runs: dict[str, Both]) -> None:
    for case, held in (
        ("vision frozen", {"llm", "aligner"}),
        ("vision alone", {"vision"}),
        ("lora, full, frozen", {"llm", "aligner"}),
    ):
        names = read_tensors(runs[case].one / checkpoint_name(STEPS), "model.")
        assert {part_of(name) for name in names} == held


@pytest.mark.parametrize("case", ["text", "images", "lora", "lora, full, frozen"])
def test_micro_steps_of_one_pack_equal_one_of_all(runs: dict[str, Both], case: str, tmp_path: Path) -> None:
    train(run_config(runs[case].settings, output=str(tmp_path), data__micro_packs=4), silent)
    assert_same_steps(read_metrics(tmp_path), read_metrics(runs[case].one))
    assert_same_tensors(
        read_tensors(tmp_path / checkpoint_name(STEPS)), read_tensors(runs[case].one / checkpoint_name(STEPS))
    )


@pytest.mark.parametrize("case", ["text", "images", "lora"])
def test_recomputing_blocks_changes_nothing(runs: dict[str, Both], case: str, tmp_path: Path) -> None:
    train(run_config(runs[case].settings, output=str(tmp_path), memory__recompute="none"), silent)
    assert read_metrics(tmp_path) == read_metrics(runs[case].one)


@pytest.mark.parametrize("case", ["text", "images", "tied, windows", "lora, full, frozen"])
def test_bf16_computes_with_fp32_weights(runs: dict[str, Both], case: str, tmp_path: Path) -> None:
    train(run_config(runs[case].settings, output=str(tmp_path), model__precision="bf16", max_steps=1), silent)
    (found,) = read_metrics(tmp_path)
    expected = read_metrics(runs[case].one)[0]
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-2)
    assert found["loss"] != expected["loss"]
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.2)
    assert {tensor.dtype for tensor in read_tensors(tmp_path / checkpoint_name(1)).values()} == {torch.float32}


def test_precision_follows_the_device_unless_it_is_set() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert [compute_dtype("auto", device) for device in (cpu, cuda)] == [torch.float32, torch.bfloat16]
    assert [compute_dtype("fp32", device) for device in (cpu, cuda)] == [torch.float32] * 2
    assert compute_dtype("bf16", cpu) == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        start_world("cuda")
