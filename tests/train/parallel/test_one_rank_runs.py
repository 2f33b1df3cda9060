"""Whole runs in bf16 on one rank alone: what happens between its steps is what happens under FSDP2, and after it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmms.configs.settings.train import TrainConfig
from lmms.train import setup
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.parallel.sharding import shard_model
from tests.kit.broken_steps import poisoned, train_with
from tests.kit.runs import (
    read_metrics,
    read_tensors,
    run_config,
    write_run,
)


def under_fsdp2(model: Any, blocks: Any, world: Any, dtype: torch.dtype, reshard: bool, offload: bool) -> None:
    """On a CPU offload moves nothing: it is FSDP2 as it is on several ranks."""
    assert not offload
    shard_model(model, blocks, world, dtype, reshard, offload=True)


def outcome(config: TrainConfig) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    last = Path(config.output) / checkpoint_name(config.max_steps or 0)
    return read_metrics(config.output), read_tensors(last)


@pytest.mark.parametrize(
    ("family", "reshard", "recompute"),
    [("qwen2_5_vl", False, "full"), ("qwen3_vl", True, "elementwise")],
)
def test_evaluations_and_skipped_steps_leave_the_numbers_of_fsdp2(
    family: str, reshard: bool, recompute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = write_run(tmp_path, family, packs=4, tied=True) | {
        "model.precision": "bf16",
        "max_steps": 4,
        "max_skipped": 1,
    }
    evaluation = {"shards": settings["data.shards"], "every_steps": 2}
    changes: dict[str, Any] = {"memory__recompute": recompute, "parallel__reshard": reshard, "eval": evaluation}
    ours, theirs = (run_config(settings, output=str(tmp_path / name), **changes) for name in ("ours", "theirs"))
    train_with(monkeypatch, poisoned({2}), ours)
    with monkeypatch.context() as patch:
        patch.setattr(setup, "shard_model", under_fsdp2)
        train_with(monkeypatch, poisoned({2}), theirs)
    (lines, tensors), (others, expected) = outcome(ours), outcome(theirs)
    assert [line["skipped"] for line in lines] == [0, 1, 0, 0]
    assert [line["step"] for line in lines if line["eval_loss"] is not None] == [2, 4]
    # What is not a number is written as null.
    assert lines == others
    assert tensors.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(tensors[name], expected[name])] == []
