"""Loops of one's own, with nothing but public names: a plain torch loop, and the pieces that `train` is made of."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmms.configs import ConfigError, DataConfig, DatasetError, TrainError
from lmms.train import (
    PackDataset,
    Step,
    StepLog,
    feed,
    load_model,
    open_shards,
    plain_loop,
    start,
    start_world,
    stop_world,
    take_step,
    train,
    unwatched,
)
from tests.kit.model.models import tiny_model
from tests.kit.runs import run_config, write_run


@pytest.fixture(scope="module", params=["qwen3", "qwen3_vl"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run on small shards, and a model with weights."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = write_run(folder, request.param)
    tiny_model(request.param, seed=2).hf.save_pretrained(folder / "model")
    return settings | {"model.init": "pretrained", "data.global_packs": 4, "data.micro_packs": 2, "max_steps": 3}


def packs_of(settings: dict[str, Any], seed: int = 0, workers: int = 0, global_packs: int = 4) -> PackDataset:
    data = DataConfig(shards=settings["data.shards"], global_packs=global_packs, micro_packs=2, workers=workers)
    return PackDataset(data, settings["model.path"], seed)


def logs_of(settings: dict[str, Any], **changes: Any) -> list[StepLog]:
    logs: list[StepLog] = []
    train(run_config(settings, **changes), lambda event: logs.append(event) if isinstance(event, StepLog) else None)
    return logs


def digests(steps: list[Step]) -> list[str]:
    return [f"{sum(batch.digest for batch in step.batches) % 2**64:016x}" for step in steps]


def test_a_plain_torch_loop_learns_what_a_run_learns(settings: dict[str, Any], tmp_path: Path) -> None:
    rate = {"optim__lr": {"default": 1e-2}, "optim__schedule": "constant", "optim__warmup_steps": 0}
    logs = logs_of(settings, output=str(tmp_path / "run"), optim__weight_decay=0.0, optim__max_grad_norm=1e9, **rate)

    model = load_model(settings["model.path"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0)
    losses = []
    for step in islice(packs_of(settings), 3):
        total = 0.0
        for batch in step.batches:
            loss, _ = model(batch, batch.images > 0)
            (loss / step.weight).backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / step.weight)
    assert losses == pytest.approx([log.loss for log in logs], rel=1e-5)
    assert len(set(losses)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_goes_on_from_a_state_sees_the_steps_that_would_have_come(
    settings: dict[str, Any], workers: int
) -> None:
    whole = list(islice(packs_of(settings), 7))
    first, second = packs_of(settings, workers=workers), packs_of(settings, workers=workers)
    before = list(islice(first, 3))
    second.load_state_dict(first.state_dict())
    after = list(islice(second, 4))
    assert [step.number for step in before + after] == [1, 2, 3, 4, 5, 6, 7]
    assert digests(before + after) == digests(whole)
    assert len(set(digests(whole))) == 7
    # Another iteration of the same object goes on, too.
    assert [step.number for step in islice(first, 2)] == [4, 5]


def test_a_state_of_another_order_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TrainError, match="the state was trained with seed 0, this run has 1: other packs would come"):
        packs_of(settings, seed=1).load_state_dict(packs_of(settings).state_dict())
    with pytest.raises(TrainError, match="the state is not one of a PackDataset"):
        packs_of(settings).load_state_dict({"position": 3})
    with pytest.raises(
        TrainError, match=r"global_packs.*make the PackDataset with the settings of the state"
    ) as caught:
        packs_of(settings, global_packs=2).load_state_dict(packs_of(settings).state_dict())
    assert "resume_changes" not in str(caught.value)


def test_a_store_is_waited_for_as_long_as_its_setting_says() -> None:
    """No limit of `lmms train` is in the way that a caller could not set; the store itself is the first to fail."""
    with pytest.raises(DatasetError, match=r"http://127\.0\.0\.1:1/shards/manifest\.json cannot be read"):
        PackDataset(DataConfig(shards="http://127.0.0.1:1/shards", retry_s=0.0), "nosuch")
    data = DataConfig(shards="http://127.0.0.1:1/shards", retry_s=5e6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_loop, "open_run", lambda config, beat: SimpleNamespace(fresh=None, config=config))
        assert PackDataset(data, "nosuch")._config.stall_s == 1e7


def test_workers_of_torch_are_refused_since_they_cannot_keep_a_position(settings: dict[str, Any]) -> None:
    loader = torch.utils.data.DataLoader(packs_of(settings), batch_size=None, num_workers=1)
    with pytest.raises(ConfigError, match=r"give DataLoader num_workers=0 and set data\.workers"):
        next(iter(loader))
    steps = torch.utils.data.DataLoader(packs_of(settings), batch_size=None)
    assert next(iter(steps)).number == 1


def test_the_pieces_of_train_make_the_same_run(settings: dict[str, Any], tmp_path: Path) -> None:
    expected = logs_of(settings, output=str(tmp_path / "run"), optim__schedule="constant", optim__warmup_steps=0)
    config = run_config(settings, output=str(tmp_path / "loop"), optim__schedule="constant", optim__warmup_steps=0)
    Path(config.output).mkdir()
    world, watch = start_world("cpu"), unwatched()
    try:
        run, state = start(config, world, watch)
        losses = [take_step(run.learner, plan, batches, 1.0, watch).loss for plan, batches in feed(run, state)]
    finally:
        stop_world()
    assert losses == [log.loss for log in expected]


def test_shards_open_with_their_counts(settings: dict[str, Any]) -> None:
    assert open_shards(settings["data.shards"]).manifest.counts["packs"] == 11
