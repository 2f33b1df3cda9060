"""A step waits for the device once, at its end; what is frozen saves nothing.

On a CPU nothing waits, so every call that would wait on a GPU is told: those of Python (item, tolist, bool) and the
operators whose result has a size that only the device knows.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PreTrainedModel

import lmms.train.optim.rules
from lmms.configs.by_part import Part
from lmms.configs.settings.optim import OptimConfig, OptimName
from lmms.train.batch.batch import Batch
from lmms.train.data.shards import Request
from lmms.train.data.steps import StepPlan
from lmms.train.model.build import blocks, build_model, init_random, materialize
from lmms.train.model.forward import TrainModel
from lmms.train.optim.adamw import new_averages
from lmms.train.optim.groups import make_optimizer, trained_parts
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import World, start_world, stop_world
from lmms.train.step import Learner, take_step
from lmms.train.watch.watch import unwatched
from tests.kit.model.models import (
    FAMILIES,
    VISION_FAMILIES,
    joined,
    make_pack,
    part_of,
    picture,
    places,
    talk,
    tiny_config,
    tiny_model,
    tiny_recipe,
)

HOST_CALLS = {
    "item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero", "argwhere", "unique",
    "unique_consecutive", "masked_select", "equal", "allclose", "is_nonzero", "bincount",
}  # fmt: skip
OPERATORS = {
    "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal", "aten.bincount",
    "aten._unique2", "aten.unique_consecutive", "aten.unique_dim",
}  # fmt: skip
NAME = "lmms_flash_without_waiting"


def attend_without_waiting(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """One matrix of all tokens under a mask, in place of a kernel that takes boundaries on the device."""
    tokens = torch.arange(query.shape[2], device=query.device)
    document = torch.searchsorted(cu_seq_lens_q, tokens, right=True)
    mask = document[:, None] == document[None]
    if module.is_causal if is_causal is None else is_causal:
        mask = mask & (tokens[:, None] >= tokens[None])
    grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped)
    return output.transpose(1, 2), None


AttentionInterface.register(NAME, attend_without_waiting)


class HostCalls(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(function, "__name__", "") in HOST_CALLS:
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(function).rpartition(".")[0]
        indices = args[1] if name in ("aten.index", "aten.index_put", "aten.index_put_") else ()
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        by_lengths = name == "aten.repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in OPERATORS or by_mask or by_lengths:
            self.found.append(name)
        if name == "c10d.allreduce_":
            self.found.append("reduced")
        return function(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """Grows by each call that would wait for a GPU, and by `reduced` where ranks sum up."""
    found: list[str] = []
    with ExitStack() as held:
        held.enter_context(HostCalls(found))
        held.enter_context(Operators(found))
        yield found


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


def batches_of(family: str) -> list[Batch]:
    """One with images of several sizes, one of text alone."""
    images = [picture(1, 56, 40), picture(2, 8, 8), picture(4, 120, 30)] if family in VISION_FAMILIES else []
    packs = [make_pack([talk(0, 10), talk(1, 12, images)]), make_pack([talk(2, 9)])]
    return [joined([pack], tiny_recipe(family, by="source")) for pack in packs]


@pytest.mark.parametrize("recompute", ["none", "elementwise", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_waits_for_the_device_once_after_everything_is_summed(family: str, recompute: str, world: World) -> None:
    model = build_model(tiny_config(family), recompute)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = NAME
    shard_model(model, blocks(model), world, torch.float32)
    materialize(model, world.device)
    init_random(model, 0)
    optimizer = make_optimizer(model, OptimConfig())
    batches = batches_of(family)
    plan = StepPlan(
        step=1,
        position=0,
        packs=torch.arange(2).numpy(),
        passes=[Request(tuple(places(i)), counts=True) for i in range(2)],
        has_images=[family in VISION_FAMILIES] * 2,
        has_sounds=[batch.num_sounds > 0 for batch in batches],
        weight=sum(batch.weight for batch in batches),
        tokens=60,
        target_tokens=30,
        visual_tokens=0,
        sound_tokens=0,
        padding_tokens=0,
    )
    with waits() as found:
        parts = trained_parts(model)
        learner = Learner(model=model, optimizer=optimizer, parts=parts, max_grad_norm=1.0, world=world)
        take_step(learner, plan, iter(batches), 1e-3, unwatched())
    assert found.count("reduced") == 1
    assert found == ["reduced", "tolist"], "before the reduction, and between it and the update, nothing may wait"


@pytest.mark.parametrize("name", ["adamw-bf16", "adamw-8bit", "muon"])
def test_an_update_reads_its_own_counts_of_steps_alone_which_are_in_main_memory(
    name: OptimName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmms.train.optim.rules, "SMALL", 0)
    model = tiny_model("qwen3_vl")
    optimizer = make_optimizer(model, OptimConfig(name=name))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    # Code books are made once.
    optimizer.step()
    with waits() as found:
        optimizer.step()
    few_bits = [group["params"] for group in optimizer.param_groups if group["rule"] in ("adamw-bf16", "adamw-8bit")]
    counted = [parameter for parameters in few_bits for parameter in parameters]
    assert sorted(set(found)) == (["__int__", "aten._local_scalar_dense"] if counted else [])
    assert found.count("aten._local_scalar_dense") == len(counted)
    on_device = nn.Parameter(torch.empty(64, 64, device="meta"))
    if name != "muon":
        assert new_averages(name, on_device)["step"].device.type == "cpu"


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: bool(t.any()),
        lambda t: t[t > 0],
        lambda t: torch.where(t > 0),
        lambda t: F.one_hot(t.long(), -1),
        lambda t: t.repeat_interleave(t.long()),
        lambda t: t.nonzero(),
        lambda t: t.masked_select(t > 0),
    ],
)
def test_what_waits_is_found(wait: Callable[[Tensor], object]) -> None:
    with waits() as found:
        wait(torch.tensor([1.0, 2.0]))
    assert found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_backward_on_a_gpu_never_wait(family: str) -> None:
    device = torch.device("cuda", 0)
    model = tiny_model(family).to(device, torch.bfloat16)
    batches = [batch.to(device) for batch in batches_of(family)]
    for checked in (False, True):
        torch.cuda.set_sync_debug_mode("error" if checked else "default")
        try:
            for batch in batches:
                model(batch, family in VISION_FAMILIES)[0].backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def saved_bytes(model: TrainModel, batch: Batch) -> tuple[int, int]:
    """Bytes that autograd keeps from the forward of the tower's patches and blocks, and from all of it."""
    kept = [0, 0]
    inside = [False]

    def keep(tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        kept[0] += size * inside[0]
        kept[1] += size
        return tensor

    def enter(*_: object) -> None:
        inside[0] = True

    def leave(*_: object) -> None:
        inside[0] = False

    visual = model.hf.model.visual
    hooks = []
    for module in (visual.patch_embed, *visual.blocks):
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch, True)
    for hook in hooks:
        hook.remove()
    return kept[0], kept[1]


@pytest.mark.parametrize("recompute", ["none", "elementwise", "full"])
@pytest.mark.parametrize("frozen", [("vision",), ("vision", "aligner")])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_frozen_tower_saves_nothing(family: str, frozen: tuple[Part, ...], recompute: str) -> None:
    batch = batches_of(family)[0]
    model = tiny_model(family, recompute=recompute)
    trained, whole = saved_bytes(model, batch)
    assert trained > 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(family, name) not in frozen)
    nothing, less = saved_bytes(model, batch)
    assert nothing == 0
    assert less <= whole - trained
    with torch.no_grad():
        pixels = torch.rand(len(batch.vision.patches), 3 * 2 * 16)  # type: ignore[union-attr]
    features = model.hf.model.visual(pixels, grid_thw=batch.vision.grid_thw, **batch.vision.tower)  # type: ignore[union-attr]
    assert features.pooler_output.requires_grad == ("aligner" not in frozen)
    assert not features.last_hidden_state.requires_grad
