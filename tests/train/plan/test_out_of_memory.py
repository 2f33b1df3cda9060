"""A GPU whose memory runs out, which no CPU can: torch's own error is raised inside the model."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmms.configs.errors import TrainError
from lmms.configs.load import to_yaml
from lmms.train import setup
from lmms.train.model.forward import TrainModel
from lmms.train.optim.groups import make_optimizer
from lmms.train.plan import out_of_memory
from lmms.train.plan.advice import Advice, Proposal, advise
from lmms.train.plan.cards import GIB, Card
from lmms.train.plan.dry_run import dry_run
from lmms.train.plan.open import open_run
from lmms.train.plan.out_of_memory import CardUse, advice_text, card_text
from lmms.train.run import train
from tests.kit.runs import run_config, silent, write_run

SAID = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 2.00 GiB of which"
USE = CardUse(name="small", memory=2 * GIB, free=GIB // 8, allocated=3 * GIB // 2, reserved=7 * GIB // 4)


class _Failing(torch.autograd.Function):
    """The same tensor, whose gradient does not fit."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError(SAID)


def fail_at(monkeypatch: pytest.MonkeyPatch, where: str, number: int) -> None:
    """Have memory run out in the forward or backward pass of this number, of those with values."""
    monkeypatch.setattr(out_of_memory, "card_use", lambda device: USE)
    forward, passes = TrainModel.forward, iter(range(1, 1000))

    def fails(self: TrainModel, *args: Any, **options: bool) -> tuple[Tensor, Tensor]:
        if self.hf.lm_head.weight.is_meta or next(passes) != number:
            return forward(self, *args, **options)
        if where == "forward":
            raise torch.cuda.OutOfMemoryError(SAID)
        loss, by_group = forward(self, *args, **options)
        return _Failing.apply(loss), by_group  # type: ignore[no-untyped-call]

    monkeypatch.setattr(TrainModel, "forward", fails)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, Any]]:
    yield write_run(tmp_path, "qwen3_vl") | {"data.micro_packs": 2}
    assert not torch.distributed.is_initialized()


def failure(config: Any) -> str:
    """What the run says as it ends."""
    with pytest.raises(TrainError) as raised:
        train(config, silent)
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)
    return str(raised.value)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_it_names_the_place_the_packs_the_card_a_snapshot_and_what_would_help(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = run_config(settings)
    expected = dry_run(config, 1, [Card(name="small", memory=0, peak_flops=None)])
    fail_at(monkeypatch, where, 3)
    facts, advice = failure(config).split("\n")
    assert facts.startswith(f"rank 0, step 2, pass 1 of 2, {where}: the GPU's memory ran out with pack ")
    named = facts.split("ran out with ")[1].split("; ")[0]
    assert named.count(" tokens") == 2
    assert " patches)" in named
    assert (
        "small has 2.0 GiB: 1.5 GiB in tensors, 1.8 GiB reserved with them, 0.1 GiB free, 1.50 GiB asked for" in facts
    )
    snapshot = Path(config.output) / "oom" / "step-00000002-rank-0.pickle"
    assert f"{snapshot} opens in pytorch.org/memory_viz" in facts
    assert [path.name for path in snapshot.parent.iterdir()] == [snapshot.name]
    assert f"the heaviest pass {expected.total / GIB:.1f} GiB" in advice
    assert expected.proposals
    for proposal in expected.proposals:
        if "ranks" not in proposal.change:
            assert f"with {proposal.change} {proposal.total / GIB:.1f} GiB (fits)" in advice


def test_the_figures_are_those_of_the_dry_run_for_the_pass_and_for_the_heaviest(settings: dict[str, Any]) -> None:
    config = run_config(settings, data__micro_packs=1)
    opened = open_run(config, lambda coming: None)
    held = frozenset(name for name, _ in opened.model.named_parameters())
    expected = dry_run(config, 2, [Card(name="small", memory=0, peak_flops=None)])
    # 0 shows pictures, 10 does not.
    places = [opened.sets.place(pack) for pack in (0, 10)]
    found = [advise(config, opened, 2, held, 0, [place], goes_on=False) for place in places]
    assert {tuple(one.proposals) for one in found} == {tuple(expected.proposals)}
    with_pictures, without = (one.here or 0 for one in found)
    assert without < expected.total
    assert with_pictures == pytest.approx(expected.total, abs=50_000)
    assert [one.heaviest for one in found] == [max(with_pictures, expected.total), expected.total]
    assert advise(config, opened, 2, held, 0, [], goes_on=False).here is None


def test_between_passes_no_pack_is_named(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The averages of the optimizer are made in the first update."""

    def full(*args: Any) -> None:
        raise torch.cuda.OutOfMemoryError(SAID)

    monkeypatch.setattr(out_of_memory, "card_use", lambda device: USE)
    optimizer = type(make_optimizer(torch.nn.Linear(1, 1), run_config(settings).optim))
    monkeypatch.setattr(optimizer, "step", full)
    facts, advice = failure(run_config(settings)).split("\n")
    assert facts.startswith("rank 0, step 1, update: the GPU's memory ran out; small has")
    assert "this pass" not in advice


def test_an_evaluation_says_so(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(settings, eval={"shards": settings["data.shards"], "every_steps": 1})
    fail_at(monkeypatch, "forward", 3)
    assert failure(config).startswith("rank 0, step 1, the evaluation after it: the GPU's memory ran out; small has")


@pytest.mark.parametrize("what", ["materialize", "fill_initial", "make_optimizer"])
def test_before_the_first_step_too(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def full(*args: Any) -> None:
        raise torch.cuda.OutOfMemoryError(SAID)

    monkeypatch.setattr(out_of_memory, "card_use", lambda device: USE)
    monkeypatch.setattr(setup, what, full)
    config = run_config(settings)
    facts, advice = failure(config).split("\n")
    assert facts.startswith(
        "rank 0, before the first step, making the model and its averages: the GPU's memory ran out; "
    )
    snapshot = Path(config.output) / "oom" / "start-rank-0.pickle"
    assert f"{snapshot} opens in pytorch.org/memory_viz" in facts
    assert [path.name for path in snapshot.parent.iterdir()] == [snapshot.name]
    expected = dry_run(config, 1, [Card(name="small", memory=0, peak_flops=None)])
    assert f"the heaviest pass {expected.total / GIB:.1f} GiB" in advice
    assert "with data.micro_packs: 1 " in advice


def test_what_no_checkpoint_goes_on_with_is_said(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    advice = {}
    for saves in (100, 1):
        with monkeypatch.context() as patch:
            config = run_config(settings, output=f"{settings['output']}-{saves}", save_steps=saves, save_async=False)
            fail_at(patch, "forward", 3)
            advice[saves] = failure(config).split("\n")[1]
    frozen = "with train.vision: frozen "
    assert frozen in advice[100]
    assert "no checkpoint goes on" not in advice[100]
    assert advice[1].split(frozen)[1].split(",")[1].startswith(" but no checkpoint goes on with it)")
    assert "with data.micro_packs: 1 1.5 GiB (fits), " in advice[1]


def test_a_profiled_step_is_explained_too_and_its_window_is_not_written(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(settings, profile__start=2, profile__steps=1)
    monkeypatch.setattr(
        out_of_memory, "advise", lambda *_, **__: Advice(here=None, heaviest=1, proposals=[], remarks=[])
    )
    fail_at(monkeypatch, "backward", 4)
    assert failure(config).startswith("rank 0, step 2, pass 2 of 2, backward: the GPU's memory ran out with pack ")
    assert not torch.autograd._profiler_enabled()
    assert not (Path(config.output) / "profile").exists()


def test_advice_that_cannot_be_had_hides_nothing(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(device: torch.device) -> CardUse:
        shutil.rmtree(settings["data.shards"])
        return USE

    fail_at(monkeypatch, "forward", 1)
    monkeypatch.setattr(out_of_memory, "card_use", gone)
    facts, advice = failure(run_config(settings)).split("\n")
    assert "rank 0, step 1, pass 1 of 2, forward: the GPU's memory ran out with pack" in facts
    assert advice.startswith("what would help could not be reckoned (")


def test_a_snapshot_that_cannot_be_written_is_said(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(settings)
    Path(config.output).mkdir()
    (Path(config.output) / "oom").write_text("")
    fail_at(monkeypatch, "forward", 1)
    assert "oom/step-00000001-rank-0.pickle cannot be written: " in failure(config)


def test_a_card_in_pieces_or_used_by_others_is_told_apart() -> None:
    whole = replace(USE, memory=100 * GIB, free=0, allocated=96 * GIB, reserved=97 * GIB)
    assert (
        card_text(whole, "no number")
        == "small has 100.0 GiB: 96.0 GiB in tensors, 97.0 GiB reserved with them, 0.0 GiB free"
    )
    pieces = card_text(replace(whole, allocated=80 * GIB), SAID)
    assert (
        "; 17.0 GiB are reserved in pieces that did not fit: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in pieces
    )
    others = card_text(replace(whole, allocated=70 * GIB, reserved=71 * GIB), SAID)
    assert others.endswith("; 29.0 GiB are not torch's: libraries, or other processes, see nvidia-smi")


def test_advice_says_what_fits_in_the_order_of_the_dry_run() -> None:
    proposals = [
        Proposal(change="memory.recompute: full", total=3 * GIB),
        Proposal(change="2 ranks", total=GIB),
        Proposal(change="train.vision: frozen", total=GIB, from_start=True),
    ]
    advice = Advice(here=4 * GIB, heaviest=5 * GIB, proposals=proposals, remarks=["whole packs"])
    assert advice_text(advice, 2 * GIB) == (
        "by the arithmetic of --dry-run a rank needs: this pass 4.0 GiB, the heaviest pass 5.0 GiB;"
        " with memory.recompute: full 3.0 GiB (too much), with 2 ranks 1.0 GiB (fits),"
        " with train.vision: frozen 1.0 GiB (fits, but no checkpoint goes on with it); whole packs"
    )
    nothing = replace(advice, here=None, proposals=[], remarks=[])
    assert advice_text(nothing, 6 * GIB) == (
        "by the arithmetic of --dry-run a rank needs: the heaviest pass 5.0 GiB (fits: what is above took the rest);"
        " no setting needs less: build shorter packs"
    )


FAILING_RANK = """
import os, sys, torch
from lmms.train.plan import out_of_memory
from lmms.train.model.build import TrainModel

forward = TrainModel.forward
passes = iter(range(1, 1000))

def fails(self, *args, **options):
    if not self.hf.lm_head.weight.is_meta and os.environ["RANK"] == "1" and next(passes) == 3:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has")
    return forward(self, *args, **options)

TrainModel.forward = fails
use = out_of_memory.CardUse(name="small", memory=2**31, free=0, allocated=2**30, reserved=2**30)
out_of_memory.card_use = lambda device: use

if __name__ == "__main__":
    from lmms.cli.__main__ import main
    main()
"""


def test_one_rank_without_memory_ends_all_of_a_launched_run_with_its_message(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    config = run_config(settings, data__micro_packs=1, max_steps=50, stall_s=3000.0)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    (tmp_path / "failing.py").write_text(FAILING_RANK)
    command = [sys.executable, tmp_path / "failing.py", "train", "--config", tmp_path / "run.yaml", "--nproc", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=config.stall_s / 2, env={**os.environ, "COLUMNS": "5000"}
    )
    assert done.returncode == 1, done.stderr
    facts, advice = done.stderr.splitlines()[-2:]
    assert facts.startswith("error: rank 1: rank 1, step 2, pass 1 of 2, forward: the GPU's memory ran out with pack ")
    assert advice.startswith("by the arithmetic of --dry-run a rank needs: this pass ")
    assert [path.name for path in (Path(config.output) / "oom").iterdir()] == ["step-00000002-rank-1.pickle"]
    assert "step 1/50" in done.stdout
    assert "step 2/50" not in done.stdout
