"""Four ranks with a run of the tokens each do what one does with all of them: attention, documents, gradients."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lmms.configs.errors import ConfigError, TrainError
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.model.reference import reference_attention
from lmms.train.parallel.sequence import to_heads, to_tokens
from lmms.train.parallel.share import WHOLE, Share
from lmms.train.parallel.world import start_world, stop_world
from lmms.train.run import train
from lmms.train.setup import start
from lmms.train.watch.watch import unwatched
from tests.kit.model.models import FIRST_SPECIAL, Talk, make_pack, places, talk, tiny_model, tiny_recipe
from tests.kit.ranks import on_ranks
from tests.kit.runs import run_config, silent, write_run

RANKS = 4
HEADS = ((4, 4), (4, 2), (8, 1), (12, 6), (12, 3))
"""(heads, key heads): as many key heads as ranks, fewer, one, and numbers that the ranks do not divide."""
CU_SEQLENS = torch.tensor([0, 5, 6, 17, 20], dtype=torch.int32)
CHANGES = ("none", "first", "last", "no border")


def tensors_of(heads: int, key_heads: int) -> list[Tensor]:
    """Query, key, value, and a direction to take gradients in; float64 [20, ..., 16]."""
    generator = torch.Generator().manual_seed(heads)
    counts = (heads, key_heads, key_heads, heads)
    return [torch.randn(20, count, 16, dtype=torch.float64, generator=generator) for count in counts]


def batch_of(change: str, share: Share = WHOLE) -> Batch:
    """Two conversations, each cut by a border of four shares: perturbed in one, or made one conversation of."""
    talks = [talk(0, 30), talk(1, 29)]
    if change in ("first", "last"):
        number = ("first", "last").index(change)
        ids = tuple((i + 1) % FIRST_SPECIAL for i in talks[number].ids)
        talks[number] = Talk(ids, talks[number].targets, sample=talks[number].sample)
    recipe = replace(tiny_recipe("qwen3", by="source"), share=share)
    batch = make_batch([make_pack(talks)], recipe, places(0))
    if change == "no border":
        ends = batch.cu_seqlens[[0, -1]]
        return replace(batch, cu_seqlens=ends, max_length=int(ends[1]))
    return batch


def run_rank(rank: int, ranks: int, folder: Path) -> None:
    """Attention for each of HEADS, and losses and gradients of a model for each of CHANGES; saved as found."""
    world = start_world("cpu", sequence=RANKS)
    assert world.sequence_group is not None
    assert (world.data_rank, world.data_size, world.share) == (0, 1, Share(rank, RANKS))
    found: dict[Any, Any] = {}
    for heads in HEADS:
        *inputs, direction = [part[5 * rank : 5 * rank + 5] for part in tensors_of(*heads)]
        inputs = [part.clone().requires_grad_() for part in inputs]
        q, k, v = to_heads(*inputs, world.sequence_group)
        output = to_tokens(reference_attention(q, k, v, CU_SEQLENS, 0.3, True), world.sequence_group)
        found[heads] = [output.detach(), *torch.autograd.grad((output * direction).sum(), inputs)]
    for change in CHANGES:
        model = tiny_model("qwen3")
        loss, by_group = model(batch_of(change, world.share), False, world.sequence_group)
        loss.backward()
        dist.all_reduce(by_group)
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        for grad in grads.values():
            dist.all_reduce(grad)
        found[change] = (by_group, grads)
    torch.save(found, folder / f"{rank}.pt")
    stop_world()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each rank has found."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(run_rank, RANKS, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("heads", HEADS)
def test_attention_over_shared_heads_is_that_of_one_rank_with_its_gradients(
    found: list[dict[Any, Any]], heads: tuple[int, int]
) -> None:
    *inputs, direction = tensors_of(*heads)
    inputs = [part.requires_grad_() for part in inputs]
    output = reference_attention(*inputs, CU_SEQLENS, 0.3, True)
    expected = [output, *torch.autograd.grad((output * direction).sum(), inputs)]
    for parts, whole in zip(zip(*(rank[heads] for rank in found), strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("change", CHANGES)
def test_losses_and_gradients_of_shares_sum_up_to_those_of_the_whole(found: list[dict[Any, Any]], change: str) -> None:
    model = tiny_model("qwen3")
    loss, by_group = model(batch_of(change), False)
    loss.backward()
    for rank in found:
        torch.testing.assert_close(rank[change][0], by_group, rtol=1e-6, atol=0)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            close = 1e-5 * float(parameter.grad.abs().max().clamp(min=0.1))
            torch.testing.assert_close(rank[change][1][name], parameter.grad, rtol=0, atol=close)


@pytest.mark.parametrize(("change", "kept"), [("first", 1), ("last", 0)])
def test_a_document_cut_by_a_border_sees_nothing_of_its_neighbour(
    found: list[dict[Any, Any]], change: str, kept: int
) -> None:
    starts = [batch_of("none", Share(i, RANKS)).input_ids.shape[1] * i for i in range(1, RANKS)]
    first, last = (range(*batch_of("none").cu_seqlens[i : i + 2].tolist()) for i in (0, 1))
    assert all(any(start in document and start != document.start for start in starts) for document in (first, last))
    plain, changed = (found[0][name][0] for name in ("none", change))
    assert torch.equal(plain[kept], changed[kept])
    assert not torch.isclose(plain[1 - kept, 0], changed[1 - kept, 0], rtol=1e-3)


def test_without_the_border_between_documents_the_second_sees_the_first(found: list[dict[Any, Any]]) -> None:
    """So the test before this one can fail."""
    plain, one = (found[0][name][0] for name in ("none", "no border"))
    assert torch.equal(plain[0], one[0])
    assert not torch.isclose(plain[1, 0], one[1, 0], rtol=1e-3)


def test_a_share_is_refused_by_a_model_that_runs_it_alone() -> None:
    with pytest.raises(TrainError, match="cut for 4 ranks, but the sequence group has 1"):
        tiny_model("qwen3")(batch_of("none", Share(1, RANKS)), False)


def test_ranks_that_do_not_divide_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = run_config(write_run(tmp_path, "qwen3"), parallel__sequence=2)
    with pytest.raises(ConfigError, match=r"parallel\.sequence is 2, but there is 1 rank"):
        train(config, silent)
    assert not Path(config.output).exists()


def test_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    config = run_config(write_run(tmp_path, "qwen3"), parallel__sequence=2)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_attention_heads": 3, "num_key_value_heads": 1}))
    world = start_world("cpu")
    try:
        with pytest.raises(ConfigError, match=r"parallel\.sequence is 2, but the model has 3 attention heads"):
            start(config, world, unwatched())
    finally:
        stop_world()
