"""The arithmetic of memory against real ranks: every byte of states, the saved activations, the peak of a pass."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lmms.configs.by_part import Part
from lmms.configs.settings.optim import OptimConfig
from lmms.train.model.attention import ATTENTION_NAME, attend_documents
from lmms.train.model.build import blocks, build_model, init_random, materialize
from lmms.train.model.forward import TrainModel
from lmms.train.optim.groups import make_optimizer, set_trained
from lmms.train.optim.rules import bytes_by_rule
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import start_world, stop_world
from lmms.train.plan.memory import States, copied_bytes, gathered_bytes, local_elements, rank_memory, state_bytes
from lmms.train.plan.trace import Peak, tensors_in, trace_pass, units
from tests.kit.live import TOLERANCE, LiveStorages, kept_bytes, kernel_attention, local
from tests.kit.model.models import frozen, tiny_config, tiny_model
from tests.kit.passes import some_batch
from tests.kit.ranks import on_ranks

FAMILIES = ("qwen3", "qwen2_5_vl", "qwen3_vl")
CASES: list[tuple[str, str, tuple[Part, ...]]] = [
    *((family, recompute, ()) for family in FAMILIES for recompute in ("none", "full")),
    ("qwen3_vl", "none", ("vision",)),
    ("qwen2_5_vl", "full", ("llm",)),
    *((family, "elementwise", ()) for family in FAMILIES),
    ("qwen3_vl", "elementwise", ("vision",)),
]
COPIES = {1: 1, 2: 1, 4: 2}
"""Ranks -> copies of the weights."""
VARIANTS: dict[int, list[tuple[torch.dtype, bool]]] = {
    1: [(torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)],
    2: [(torch.float32, True)],
    4: [(torch.float32, False)],
}
"""Ranks -> compute types, with parallel.reshard. One rank alone copies weights for bf16 and for fp32 none; others
gather the same for both."""
SMALL = 256
"""Of each call of attention the kernel keeps 16 bytes of random state, which the copy does not."""


def meta_model(family: str, recompute: str, parts: Sequence[Part] = ()) -> TrainModel:
    model = build_model(tiny_config(family), recompute)
    set_trained(model, frozen(*parts))
    return model


def measure(rank: int, ranks: int, folder: Path) -> None:
    """What one of these ranks holds in each case: the bytes of its states, and the peak of two accumulated passes.

    Four ranks hold two copies of the weights.
    """
    AttentionInterface.register(ATTENTION_NAME, partial(attend_documents, kernel_attention))
    world = start_world("cpu", replicate=COPIES[ranks])
    found = []
    for (family, recompute, parts), (dtype, reshard) in product(CASES, VARIANTS[ranks]):
        model, batch = meta_model(family, recompute, parts), some_batch(family)
        shard_model(model, blocks(model), world, dtype, reshard)
        materialize(model, world.device)
        init_random(model, 0)
        optimizer = make_optimizer(model, OptimConfig())
        states = [value for state in optimizer.state.values() for value in state.values()]
        one = {"weights": sum(map(local_bytes, model.parameters())), "optimizer": sum(map(local_bytes, states))}
        with LiveStorages(map(local, [*model.parameters(), *states, *tensors_in(batch)])) as live:
            for accumulated in (False, True):
                live.peak = 0
                model(batch, batch.images > 0)[0].backward()
                one["peak of two" if accumulated else "peak of one"] = live.peak
        one["gradients"] = sum(local_bytes(p.grad) for p in model.parameters() if p.grad is not None)
        found.append(one)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    stop_world()


def local_bytes(tensor: Tensor) -> int:
    return local(tensor).nbytes


@pytest.fixture(scope="module", params=list(COPIES))
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """[rank][case]: what each of one, two or four real ranks held."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(measure, request.param, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_states_are_what_each_rank_holds_to_the_byte(measured: list[list[dict[str, Any]]], case: int) -> None:
    model = meta_model(*CASES[case])
    sharers = len(measured) // COPIES[len(measured)]
    for rank, found in enumerate(measured):
        states = state_bytes(model.parameters(), rank % sharers, sharers, bytes_by_rule("adamw", model))
        for one in found[case * len(VARIANTS[len(measured)]) :][: len(VARIANTS[len(measured)])]:
            assert asdict(states) == {name: one[name] for name in asdict(states)}


@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_the_peak_of_a_pass_is_that_of_real_ranks(
    measured: list[list[dict[str, Any]]], case: int, accumulates: bool
) -> None:
    family = CASES[case][0]
    model, batch, ranks = meta_model(*CASES[case]), some_batch(family), len(measured)
    sharers = ranks // COPIES[ranks]
    of_batch = sum(tensor.nbytes for tensor in tensors_in(batch))
    for number, (dtype, reshard) in enumerate(VARIANTS[ranks]):
        gathered = partial(gathered_bytes, units=units(model), element_size=4, ranks=sharers, reshard=reshard)
        moments = trace_pass(meta_model(*CASES[case]), batch, dtype, alone=ranks == 1)
        for rank, found in enumerate(measured):
            states = state_bytes(model.parameters(), rank % sharers, sharers, bytes_by_rule("adamw", model))
            copied = copied_bytes(units(model), dtype, reshard)
            held = (lambda moment, copied=copied: copied) if ranks == 1 else gathered
            needed = rank_memory(states, held, moments, of_batch, accumulates=accumulates)
            # The test has no batch on its way, and no context of a GPU.
            expected = sum(needed.values()) - needed["allowance"] - of_batch
            one = found[case * len(VARIANTS[ranks]) + number]
            real = one["peak of two" if accumulates else "peak of one"]
            assert expected == pytest.approx(real, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", ["none", "elementwise", "full"])
@pytest.mark.parametrize("family", [*FAMILIES, "qwen2_5_omni_thinker"])
def test_without_values_autograd_saves_what_it_saves_with_them(
    monkeypatch: pytest.MonkeyPatch, family: str, recompute: str, dtype: torch.dtype
) -> None:
    batch = some_batch(family)
    models = meta_model(family, recompute), tiny_model(family, recompute=recompute)
    for model in models:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    on_meta = kept_bytes(models[0], batch.to(torch.device("meta")))
    kernels = AttentionInterface._global_mapping
    monkeypatch.setitem(kernels, ATTENTION_NAME, partial(attend_documents, kernel_attention))
    # In bf16 the CPU keeps the statistics of LayerNorm in bf16, a GPU in fp32.
    allowed = {"abs": SMALL} if dtype == torch.float32 else {"rel": 0.01}
    assert on_meta == pytest.approx(kept_bytes(models[1], batch), **allowed)


@pytest.mark.parametrize("family", [*FAMILIES, "qwen2_5_omni_thinker"])
def test_activations_that_are_held_are_those_that_are_saved(family: str) -> None:
    batch = some_batch(family)
    used = trace_pass(meta_model(family, "none"), batch, torch.float32)[0].used
    saved = kept_bytes(meta_model(family, "none"), batch.to(torch.device("meta")))
    # At that moment there may be the logits too, or a part of what was saved is done with.
    assert used["llm"] + used.get("vision", 0) + used.get("audio", 0) + used["loss"] == pytest.approx(saved, rel=0.06)


def test_full_recompute_keeps_far_less() -> None:
    batch = some_batch("qwen3_vl")
    none, full = (
        trace_pass(meta_model("qwen3_vl", recompute), batch, torch.float32)[0].used for recompute in ("none", "full")
    )
    assert 3 * (full["llm"] + full["vision"]) < none["llm"] + none["vision"]


def test_a_frozen_tower_keeps_nothing_of_its_blocks() -> None:
    batch = some_batch("qwen3_vl")
    trained, fixed = (
        trace_pass(meta_model("qwen3_vl", "none", parts), batch, torch.float32)[0].used
        for parts in ((), ("vision", "aligner"))
    )
    assert 10 * fixed["vision"] < trained["vision"]


def test_rows_are_cut_as_fsdp_cuts_them() -> None:
    parameter = nn.Parameter(torch.empty(5, 3, device="meta"))
    assert [local_elements(parameter, rank, 4) for rank in range(4)] == [6, 6, 3, 0]


def test_gradients_count_from_when_they_are_there_and_always_where_passes_accumulate() -> None:
    states = States(weights=0, optimizer=0, gradients=100)
    moments = [
        Peak(used={"llm": 1000}, reducing=0, reduced=0),
        Peak(used={"backward": 10}, reducing=400, reduced=800),
    ]
    once = rank_memory(states, lambda moment: 0, moments, 0, accumulates=False)
    often = rank_memory(states, lambda moment: 0, moments, 0, accumulates=True)
    assert (once["llm"], once["gradients"], often["gradients"]) == (1000, 0, 100)
