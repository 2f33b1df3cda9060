"""Batches on their way to the device: in order, one ahead of their use on CUDA and none on the CPU."""

from collections.abc import Iterator

import pytest
import torch

from lmms.train.batch.batch import Batch
from lmms.train.batch.transfer import ahead, one_ahead
from tests.kit.model.models import joined, make_pack, picture, talk, tiny_recipe


def test_each_is_started_before_the_one_before_it_is_used_and_no_further() -> None:
    events: list[tuple[str, int]] = []

    def items() -> Iterator[int]:
        for i in range(4):
            events.append(("made", i))
            yield i

    def start(item: int) -> int:
        events.append(("started", item))
        return 10 * item

    used = []
    for value in one_ahead(items(), start):
        used.append(value)
        events.append(("used", value // 10))
    assert used == [0, 10, 20, 30]
    steps = [[("made", i), ("started", i)] for i in range(4)]
    expected = [*steps[0], *steps[1], ("used", 0), *steps[2], ("used", 1), *steps[3], ("used", 2), ("used", 3)]
    assert events == expected


@pytest.mark.parametrize("count", [0, 1])
def test_few_items(count: int) -> None:
    assert list(one_ahead(range(count), str)) == ["0"][:count]


def made(seeds: list[int], asked: list[int]) -> Iterator[Batch]:
    for seed in seeds:
        asked.append(seed)
        yield joined([make_pack([talk(seed, 8, [picture(seed)])])], tiny_recipe("qwen2_5_vl"))


def test_on_the_cpu_no_batch_is_made_before_it_is_asked_for() -> None:
    asked: list[int] = []
    arriving = ahead(made([3, 1, 2], asked), torch.device("cpu"))
    expected = made([3, 1, 2], [])
    assert asked == []
    for number, batch in enumerate(arriving, 1):
        assert len(asked) == number
        assert torch.equal(batch.input_ids, next(expected).input_ids)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_batches_arrive_whole_while_the_stream_is_busy() -> None:
    device = torch.device("cuda", 0)
    seeds = list(range(20))
    busy = torch.randn(2048, 2048, device=device)
    found = []
    for batch in ahead(made(seeds, []), device):
        for _ in range(20):
            busy = busy @ busy / 2048
        assert batch.vision is not None
        found.append((batch.input_ids + 0, batch.vision.patches + 0))
    for (ids, patches), expected in zip(found, made(seeds, []), strict=True):
        assert expected.vision is not None
        assert torch.equal(ids.cpu(), expected.input_ids)
        assert torch.equal(patches.cpu(), expected.vision.patches)
