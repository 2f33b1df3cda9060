"""One rank alone: the bits of FSDP2, without its copies."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmms.configs.settings.lora import LoraConfig
from lmms.configs.settings.optim import OptimConfig
from lmms.train.model.build import blocks, build_model, init_random, keep_in, materialize
from lmms.train.model.forward import TrainModel
from lmms.train.model.kernels import compile_blocks
from lmms.train.model.lora import add_lora, init_lora
from lmms.train.optim.groups import make_optimizer, set_trained
from lmms.train.parallel.sharding import local_of, reshard_all, shard_model
from lmms.train.parallel.world import World, start_world, stop_world
from tests.kit.model.compiled import no_recompiles
from tests.kit.model.models import VISION_FAMILIES, frozen, joined, make_pack, picture, talk, tiny_config, tiny_recipe

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


def batches_of(family: str) -> list:  # type: ignore[type-arg]
    """Two passes; of a vision family, the second one has no picture."""
    pictures = [picture(seed, 24 + 16 * seed, 40) for seed in range(2)] if family in VISION_FAMILIES else []
    packs = [make_pack([talk(1, 40, pictures), talk(2, 30)]), make_pack([talk(3, 50)])]
    return [joined([pack], tiny_recipe(family)) for pack in packs]


def model_on(
    world: World, family: str, *, fsdp: bool, recompute: str, reshard: bool, tied: bool, part: str = ""
) -> TrainModel:
    model = build_model(tiny_config(family, tied), recompute)  # type: ignore[arg-type]
    if part == "lora":
        train, lora = {"default": "lora", "norm": "full"}, LoraConfig(rank=3, dropout=0.0)
        add_lora(model, train, lora)  # type: ignore[arg-type]
        set_trained(model, train, lora)  # type: ignore[arg-type]
    else:
        set_trained(model, frozen(*[part] if part else []))  # type: ignore[list-item]
    keep_in(model, BF16, {name for name, parameter in model.named_parameters() if parameter.requires_grad})
    # On a CPU offload moves nothing: it is FSDP2 as it is elsewhere.
    shard_model(model, blocks(model), world, BF16, reshard, offload=fsdp)
    materialize(model, world.device)
    init_random(model, 0)
    init_lora(model, 0)
    return model


def two_steps(model: TrainModel, family: str) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of two steps of two passes with a look at the weights between; gradients and weights after them."""
    optimizer = make_optimizer(model, OptimConfig(lr={"default": 1e-2}))
    losses, found = [], {}
    for step in range(2):
        for batch in batches_of(family):
            loss, _ = model(batch, batch.images > 0)
            losses.append(loss.item())
            if loss.requires_grad:
                loss.backward()
            else:
                reshard_all(model)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.dtype == parameter.dtype == torch.float32
                found[f"{step} {name}.grad"] = local_of(parameter.grad).clone()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            losses.append(model(batches_of(family)[0], family in VISION_FAMILIES)[0].item())
        reshard_all(model)
    found |= {name: local_of(parameter).detach().clone() for name, parameter in model.named_parameters()}
    return losses, found


CASES = [
    ("qwen3", "full", True, True, ""),
    ("qwen3", "none", False, False, ""),
    ("qwen3_vl", "full", False, True, ""),
    ("qwen3_vl", "none", True, True, "llm"),
    ("qwen2_5_vl", "none", False, True, ""),
    ("qwen2_5_vl", "full", False, False, "vision"),
    ("qwen3_vl", "full", False, True, "lora"),
]


@pytest.mark.parametrize(("family", "recompute", "tied", "reshard", "part"), CASES)
def test_losses_gradients_and_weights_are_those_of_fsdp2_to_the_bit(
    world: World, family: str, recompute: str, tied: bool, reshard: bool, part: str
) -> None:
    ours, theirs = (
        two_steps(
            model_on(world, family, fsdp=fsdp, recompute=recompute, reshard=reshard, tied=tied, part=part), family
        )
        for fsdp in (False, True)
    )
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    assert [name for name in ours[1] if not torch.equal(ours[1][name], theirs[1][name])] == []


class Traffic(TorchDispatchMode):
    """Bytes that copies and casts read and write, and the operations on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = func(*args, **(kwargs or {}))
        name = str(func)
        if any(word in name for word in ("_to_copy", "copy_", "_foreach_copy", "chunk_cat", "aten.div", "split_with")):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())
        return output


def copied(world: World, *, fsdp: bool, trained: bool) -> float:
    """Bytes a parameter that a pass over two linear blocks copies."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(2)))
    if not trained:
        layers.requires_grad_(False).to(BF16)
    shard_model(layers, list(layers), world, BF16, offload=fsdp)
    rows = torch.ones(1, 256, dtype=BF16, requires_grad=True)
    layers(rows).sum().backward()
    with Traffic() as traffic:
        layers(rows).sum().backward()
    return traffic.bytes / (2 * 256 * 256)


def test_less_is_copied_than_by_fsdp2_and_of_frozen_weights_nothing(world: World) -> None:
    assert copied(world, fsdp=False, trained=False) < 0.1
    assert copied(world, fsdp=True, trained=False) > 4
    assert copied(world, fsdp=False, trained=True) < 0.6 * copied(world, fsdp=True, trained=True)


def sizes(layers: nn.Sequential) -> list[int]:
    """Bytes of the storages that the layers' weights lie in."""
    return [layer.weight.untyped_storage().nbytes() for layer in layers]  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("reshard", [True, False])
def test_copies_come_and_go_with_their_block(world: World, reshard: bool) -> None:
    layers = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)))
    masters = list(layers.parameters())
    shard_model(layers, list(layers), world, BF16, reshard)
    rows, seen = torch.ones(2, 8, dtype=BF16, requires_grad=True), []
    for layer in layers:
        layer.register_forward_hook(lambda *_: seen.append(sizes(layers)))
    loss = layers(rows).sum()
    # The last one stays in any case: backward starts with it.
    assert seen == ([[0, 0, 0], [0, 0, 0], [0, 0, 128]] if reshard else [[128, 0, 0], [128, 128, 0], [128, 128, 128]])
    assert {parameter.dtype for parameter in layers.parameters()} == {BF16}
    loss.backward()
    assert all(ours is master for ours, master in zip(layers.parameters(), masters, strict=True))
    assert [master.grad.dtype for master in masters if master.grad is not None] == [torch.float32] * 3


def test_weights_in_the_compute_type_are_used_as_they_are(world: World) -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before = list(layers.parameters())
    shard_model(layers, list(layers), world, torch.float32)
    layers(torch.ones(2, 8)).sum().backward()
    assert all(ours is one for ours, one in zip(layers.parameters(), before, strict=True))
    assert not any(layer._forward_pre_hooks for layer in layers)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_that_are_compiled_are_compiled_once(world: World) -> None:
    """The copies are the same parameters in every step, though their memory is not."""
    torch._dynamo.reset()
    batch, norms = batches_of("qwen3")[0], []
    for compiled in (False, True):
        model = build_model(tiny_config("qwen3"), "full")
        if compiled:
            compile_blocks(blocks(model), backend="aot_eager")
        shard_model(model, blocks(model), world, BF16)
        materialize(model, world.device)
        init_random(model, 0)
        for step in range(3):
            with no_recompiles() if step else nullcontext():
                model(batch, False)[0].backward()
        norms.append([float(parameter.grad.norm()) for parameter in model.parameters() if parameter.grad is not None])
    torch._dynamo.reset()
    assert norms[0] == pytest.approx(norms[1], rel=2e-2)
