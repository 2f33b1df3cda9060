"""Activations in main memory: gradients are the same to the bit, the limit holds, memory is what the dry run says.

A CPU has no other memory to put them into, so here they go from main memory to main memory, in the same order.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lmms.configs.errors import ConfigError
from lmms.configs.settings.memory import Recompute
from lmms.configs.settings.train import TrainConfig
from lmms.train import setup
from lmms.train.batch.batch import Batch
from lmms.train.model import offload
from lmms.train.model.attention import ATTENTION_NAME, attend_documents
from lmms.train.model.build import blocks, build_model, init_random, materialize
from lmms.train.model.forward import TrainModel
from lmms.train.model.offload import Copy, copy_at_once, copy_on_stream, offload_blocks, pinned_room
from lmms.train.optim.rules import bytes_by_rule
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import start_world, stop_world
from lmms.train.plan import trace as memory_trace
from lmms.train.plan.memory import rank_memory, state_bytes
from lmms.train.plan.trace import offloaded_bytes, tensors_in, trace_pass
from lmms.train.run import train
from tests.kit.live import TOLERANCE, LiveStorages, kernel_attention, local
from tests.kit.model.models import FAMILIES, VISION_FAMILIES, part_of, tiny_config, tiny_model
from tests.kit.offload import PLENTY, offloaded, room_of
from tests.kit.passes import assert_bitwise, batch_of, count_forward_calls, model_of, some_batch, step
from tests.kit.ranks import free_port, on_ranks
from tests.kit.runs import assert_same_steps, read_metrics, run_config, silent, train_as_rank, write_run

EVERY: tuple[Recompute, ...] = ("none", "full")
"""Of uncompiled blocks: see check_recompute."""


@pytest.mark.parametrize("recompute", EVERY)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_every_pass_are_those_of_a_model_that_keeps_everything(family: str, recompute: Recompute) -> None:
    model, plain = model_of(family, recompute), model_of(family, "none")
    copies, used = offloaded(model)
    for images in (True, False, True):
        model.zero_grad()
        plain.zero_grad()
        batch = batch_of(family, images=images)
        assert_bitwise(step(model, batch), step(plain, batch))
        assert used() > 0
    # Each storage went once each way.
    assert sorted(copies.out) == sorted(copies.back) != []


@pytest.mark.parametrize("trained", ["lora", "frozen llm", "frozen tower"])
@pytest.mark.parametrize("recompute", EVERY)
def test_so_are_those_of_lora_and_of_frozen_parts(recompute: Recompute, trained: str) -> None:
    model, batch = model_of("qwen3_vl", recompute, trained), batch_of("qwen3_vl")
    copies, _ = offloaded(model)
    assert_bitwise(step(model, batch), step(model_of("qwen3_vl", "none", trained), batch))
    assert copies.out


@pytest.mark.parametrize("recompute", EVERY)
def test_the_limit_holds_and_what_was_saved_first_goes_first(recompute: Recompute) -> None:
    batch = batch_of("qwen3_vl")
    whole = model_of("qwen3_vl", recompute)
    all_copies, used = offloaded(whole)
    step(whole, batch)
    for share in (0.1, 0.5, 0.9):
        limit = int(share * used())
        model = model_of("qwen3_vl", recompute)
        copies, now_used = offloaded(model, limit)
        assert_bitwise(step(model, batch), step(model_of("qwen3_vl", "none"), batch))
        assert sum(copies.out) <= now_used() <= limit
        # Smaller ones may fill what is left of the room.
        same = [one == other for one, other in zip(copies.out, all_copies.out, strict=False)]
        first = (*same, False).index(False)
        assert sum(size + 512 for size in all_copies.out[: first + 1]) > limit


def test_the_last_block_keeps_its_own_and_each_other_one_comes_back_a_block_ahead() -> None:
    model, batch = model_of("qwen3", "full"), batch_of("qwen3")
    copies, _ = offloaded(model)
    calls = count_forward_calls(model)
    calls_to_events(model, copies.events)
    step(model, batch)
    # In full a block's only storage is its input, saved before it runs.
    forward = ["out", "run", "out", "run", "run"]
    assert copies.events[: len(forward)] == forward
    assert copies.events[len(forward) :] == ["back", "run", "back", "run", "run"]
    assert len(calls) == 6


def calls_to_events(model: TrainModel, events: list[str]) -> None:
    for block in blocks(model):
        linear = next(module for module in block.modules() if isinstance(module, nn.Linear))
        linear.register_forward_hook(lambda *_: events.append("run"))


def test_small_storages_stay() -> None:
    copies, _ = offloaded(model := model_of("qwen3", "none"), least=4096)
    step(model, batch_of("qwen3"))
    assert min(copies.out) >= 4096
    everything, _ = offloaded(model := model_of("qwen3", "none"))
    step(model, batch_of("qwen3"))
    assert sorted(copies.out) == sorted(size for size in everything.out if size >= 4096)
    assert len(copies.out) < len(everything.out)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_what_all_blocks_share_stay(family: str) -> None:
    model = model_of(family, "none")
    copies, _ = offloaded(model)
    # Held, so that no other tensor takes over their place.
    rotations: list[Tensor] = []

    def note(block: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        rotations.extend(kwargs["position_embeddings"])

    for block in blocks(model):
        block.register_forward_pre_hook(note, with_kwargs=True)
    step(model, batch_of(family))
    assert rotations
    assert copies.sources
    assert not {tensor.data_ptr() for tensor in (*model.parameters(), *rotations)} & copies.sources


@pytest.mark.parametrize("recompute", EVERY)
def test_a_frozen_tower_puts_nothing_out(recompute: Recompute) -> None:
    model = tiny_model("qwen3_vl", recompute=recompute)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of("qwen3_vl", name) == "llm")
    copies, _ = offloaded(model)
    of_tower: list[int] = []
    model.hf.model.visual.register_forward_hook(lambda *_: of_tower.append(len(copies.out)))
    step(model, batch_of("qwen3_vl"))
    assert of_tower == [0]
    assert copies.out


def test_without_gradients_nothing_goes_out() -> None:
    model = model_of("qwen3_vl", "full")
    copies, _ = offloaded(model)
    with torch.no_grad():
        model(batch_of("qwen3_vl"), True)
    assert copies.events == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storages of any size are worth it."""
    monkeypatch.setattr(memory_trace, "LEAST_BYTES", 1)


@pytest.fixture
def alone() -> Iterator[Any]:
    yield start_world("cpu")
    stop_world()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("family", "recompute", "limit"),
    [*(("qwen3_vl", one, PLENTY) for one in EVERY), ("qwen3_vl", "none", 10**6), ("qwen2_5_vl", "full", 10**4)],
)
def test_the_peak_of_a_pass_is_that_of_the_dry_run(
    family: str, recompute: Recompute, limit: int, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, config = some_batch(family), tiny_config(family)
    model, room = build_model(config, recompute), room_of(limit)
    offload_blocks(model, blocks(model), room, copy_at_once, 1)
    shard_model(model, blocks(model), alone, torch.float32)
    materialize(model, alone.device)
    init_random(model, 0)
    with monkeypatch.context() as patched:
        patched.setitem(AttentionInterface._global_mapping, ATTENTION_NAME, partial(attend_documents, kernel_attention))
        with LiveStorages(map(local, [*model.parameters(), *tensors_in(batch), room])) as live:
            model(batch, batch.images > 0)[0].backward()
    needed = rank_memory(
        state_bytes((plain := build_model(config, recompute)).parameters(), 0, 1, bytes_by_rule("adamw", plain)),
        lambda moment: 0,
        trace_pass(build_model(config, recompute), batch, torch.float32, limit, alone=True),
        sum(tensor.nbytes for tensor in tensors_in(batch)),
        accumulates=False,
    )
    expected = sum(needed.values()) - needed["allowance"] - needed["optimizer"] - needed["batch"] // 2
    assert expected == pytest.approx(live.peak - limit, rel=TOLERANCE[torch.float32])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("recompute", EVERY)
def test_the_room_that_a_dry_run_finds_is_what_is_used(recompute: Recompute) -> None:
    batch = some_batch("qwen3")
    found = offloaded_bytes(build_model(tiny_config("qwen3"), recompute), batch, torch.float32)
    model = tiny_model("qwen3", recompute=recompute)
    _, used = offloaded(model)
    step(model, batch)
    # The CPU's attention keeps what each document is made of, a GPU's does not.
    assert used() == found if recompute == "full" else used() == pytest.approx(found, rel=0.2)


def in_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on a CPU put activations out too."""
    monkeypatch.setattr(setup, "pinned_room", lambda size, device: room_of(size))
    monkeypatch.setattr(setup, "copy_on_stream", lambda device: copy_at_once)
    monkeypatch.setattr(setup, "LEAST_BYTES", 1)


def on_a_rank(rank: int, ranks: int, configs: list[TrainConfig], ports: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        in_main_memory(patched)
        train_as_rank(rank, ranks, configs, ports)


def test_runs_on_two_ranks_with_packs_apart_and_shared_are_the_run_that_keeps_everything(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3_vl") | {"max_steps": 2, "memory.offload_activations_gb": 0.001}
    plain = run_config(
        settings, output=str(tmp_path / "plain"), memory__recompute="none", memory__offload_activations_gb=0
    )
    train(plain, silent)
    changes: dict[str, dict[str, Any]] = {
        "apart": {"memory__recompute": "none"},
        "shared": {"memory__recompute": "full", "parallel__sequence": 2},
        "apart for vision": {"memory__recompute": "full", "memory__recompute_vision": "none"},
    }
    configs = [run_config(settings, output=str(tmp_path / name), **changed) for name, changed in changes.items()]
    on_ranks(on_a_rank, 2, configs, [free_port() for _ in configs])
    for name in changes:
        assert_same_steps(read_metrics(tmp_path / name), read_metrics(tmp_path / "plain"))


@pytest.mark.parametrize("recompute", EVERY)
def test_a_run_on_one_rank_in_half_precision_is_the_run_that_keeps_everything(
    recompute: Recompute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_main_memory(monkeypatch)
    settings = write_run(tmp_path, "qwen2_5_vl") | {"max_steps": 2, "model.precision": "bf16"}
    for name, how, room in (("plain", "none", 0), ("out", recompute, 0.001)):
        changes = {"memory__recompute": how, "memory__offload_activations_gb": room}
        train(run_config(settings, output=str(tmp_path / name), **changes), silent)
    assert read_metrics(tmp_path / "out") == read_metrics(tmp_path / "plain")


def test_a_run_on_a_cpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = run_config(write_run(tmp_path, "qwen3"), memory__offload_activations_gb=2)
    with pytest.raises(
        ConfigError, match=r"memory\.offload_activations_gb is 2, but this run is on cpu, .*set it to 0"
    ):
        train(config, silent)
    assert not list(Path(config.output).glob("*"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recompute", EVERY)
@pytest.mark.parametrize("family", ["qwen3", *VISION_FAMILIES])
def test_on_a_gpu_nothing_waits_and_gradients_are_the_same(family: str, recompute: Recompute) -> None:
    device = torch.device("cuda", 0)
    batch: Batch = batch_of(family).to(device)
    models = [model_of(family, one).to(device, torch.bfloat16) for one in (recompute, "none")]
    room = pinned_room(2**24, device)
    assert room.is_pinned()
    copy: Copy = copy_on_stream(device)
    used = offload_blocks(models[0], blocks(models[0]), room, copy, offload._ALIGNED)
    expected = step(models[1], batch)
    step(models[0], batch)
    for _ in range(3):
        models[0].zero_grad()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss, _ = models[0](batch, batch.images > 0)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found = {name: parameter.grad for name, parameter in models[0].named_parameters() if parameter.grad is not None}
        for name, gradient in expected[1].items():
            torch.testing.assert_close(found[name], gradient, rtol=2e-2, atol=2e-2 * float(gradient.abs().max()))
    assert 0 < used() <= len(room)
