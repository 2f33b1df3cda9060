"""A rung and a comparator as a GPU has them, in miniature: in bf16, with batches from loader processes."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from lmms.train import StepResult
from tools.gpu.pieces.ladder import LEAST
from tools.gpu.pieces.measuring import Steps, faults_of, time_steps
from tools.gpu.pieces.models import FULL, MINI, MINI_ON_GPU, SECOND, Sizes
from tools.gpu.pieces.packs import make_packs
from tools.gpu.pieces.training import Training, measure_training
from tools.gpu.report.goals import LOSS_WITHIN, NORM_WITHIN
from tools.gpu.rivals.comparator import STAND_IN, measure_comparator

SMALL = replace(MINI, seq_len=128, conversation=(16, 30, 50), image=(4, 12))
LIKE_A_GPU = replace(SMALL, precision="bf16", workers=2)

pytestmark = [
    # transformers 5.17, which is still allowed, has no other name for it.
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning"),
    # dynamo looks at gradients where there are none yet.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(SECOND, SMALL, tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def faulty(packs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Training]:
    """The first two results of a rung in fp32 that compiles late and waits early."""

    def compiled_late(take: Callable[[], StepResult], sizes: Sizes, device: torch.device, deadline: float) -> Steps:
        return replace(time_steps(take, sizes, device, deadline), recompiles=2)

    output = str(tmp_path_factory.mktemp("faulty") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.gpu.pieces.training.time_steps", compiled_late)
        patch.setattr("tools.gpu.pieces.training.waits_in", lambda take: {"train/model/build.py:7": 1})
        with closing(measure_training(SECOND, "vision", "+ attention", str(packs), output, 60.0, SMALL)) as results:
            return [replace(result, faults=[*result.faults]) for result in islice(results, 2)]


def test_a_rung_that_compiles_late_or_waits_early_does_not_pass(faulty: list[Training]) -> None:
    late = "2 graphs were compiled after the first 1 steps"
    early = "a step waits for the GPU before its end: {'train/model/build.py:7': 1}"
    assert [(result.faults, result.passed) for result in faulty] == [([late], False), ([late, early], False)]


def test_a_rung_in_bf16_with_loader_processes_is_that_in_fp32_but_for_rounding(
    packs: Path, faulty: list[Training], tmp_path: Path
) -> None:
    assert (LIKE_A_GPU.precision, MINI_ON_GPU.precision, FULL.precision) == ("bf16", "bf16", "bf16")
    assert min(LIKE_A_GPU.workers, MINI_ON_GPU.workers, FULL.workers) > 0
    output = str(tmp_path / "run")
    (*_, half) = measure_training(SECOND, "vision", LEAST, str(packs), output, 60.0, LIKE_A_GPU)
    assert half.faults == []
    assert half.steps.losses[-1] < half.steps.losses[0]
    # The same weights before any update.
    exact = faulty[0].steps.losses[0]
    assert half.steps.losses[0] == pytest.approx(exact, rel=2e-3)
    assert half.steps.losses[0] != pytest.approx(exact, rel=1e-7)
    (*_, theirs) = measure_comparator(STAND_IN, SECOND, "vision", str(packs), 60.0, LIKE_A_GPU)
    assert theirs.steps.losses[0] == pytest.approx(half.steps.losses[0], rel=LOSS_WITHIN)
    assert theirs.steps.grad_norms[0] == pytest.approx(half.steps.grad_norms[0], rel=NORM_WITHIN)
    for name in ("tokens", "target_tokens", "patches", "flops", "parameters", "optimizer_bytes"):
        assert getattr(theirs, name) == getattr(half, name)


def test_faults_of_steps_say_what_happened() -> None:
    steps = Steps(losses=[5.0, 4.0, 3.0, 3.5], seconds=[1.0], waited=[0.0], recompiles=2)
    assert faults_of(steps) == ["2 graphs were compiled after the first 3 steps"]
    assert faults_of(replace(steps, losses=[5.0, 5.0], recompiles=0)) == ["the loss did not fall: 5.0000, then 5.0000"]
