"""Whatever is computed again in backward, gradients are the same to the bit; what is kept is what the setting says."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmms.configs.settings.memory import Recompute
from lmms.train.batch.batch import Batch
from lmms.train.model.build import blocks, build_model
from lmms.train.model.forward import TrainModel
from lmms.train.model.names import language_model
from lmms.train.model.recompute import ATTENTIONS, PRODUCTS
from lmms.train.plan.trace import tensors_in, trace_pass
from lmms.train.run import train
from tests.kit.live import LiveStorages
from tests.kit.model.models import FAMILIES, VISION_FAMILIES, tiny_config
from tests.kit.passes import LORA, TRAINED, assert_bitwise, batch_of, model_of, step
from tests.kit.runs import read_metrics, run_config, silent, write_run

AGAIN: tuple[Recompute, ...] = ("elementwise", "full")


@pytest.mark.parametrize("recompute", AGAIN)
@pytest.mark.parametrize(
    ("family", "trained"),
    [("qwen3", "full"), ("qwen3", "lora"), *(("qwen2_5_vl", one) for one in TRAINED), ("qwen3_vl", "lora")],
)
def test_gradients_are_those_of_a_model_that_keeps_everything(family: str, trained: str, recompute: Recompute) -> None:
    batch = batch_of(family)
    assert_bitwise(step(model_of(family, recompute, trained), batch), step(model_of(family, "none", trained), batch))


@pytest.mark.parametrize("recompute", AGAIN)
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_so_are_those_of_text_alone_and_in_half_precision(family: str, recompute: Recompute) -> None:
    models = model_of(family, recompute), model_of(family, "none")
    text = batch_of(family, images=False)
    assert_bitwise(step(models[0], text), step(models[1], text))
    half = [model_of(family, kept).bfloat16() for kept in (recompute, "none")]
    found, expected = (step(model, batch_of(family)) for model in half)
    assert_bitwise(found, expected)


def count_products(model: TrainModel, batch: Batch) -> Counter[tuple[int, ...]]:
    """Shape of the second factor -> products that forward and backward take."""
    taken: Counter[tuple[int, ...]] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.name() in PRODUCTS:
                taken[tuple(args[-1].shape)] += 1
            return func(*args, **(kwargs or {}))

    with Count():
        step(model, batch)
    return taken


@pytest.mark.parametrize("family", FAMILIES)
def test_elementwise_takes_no_product_twice(family: str) -> None:
    batch = batch_of(family)
    none, elementwise, full = (count_products(model_of(family, one), batch) for one in ("none", "elementwise", "full"))
    assert elementwise == none
    assert full.total() > none.total() + 3 * 4


def test_so_it_is_where_weights_share_a_storage() -> None:
    batch, models = batch_of("qwen3"), [model_of("qwen3", one) for one in ("none", "elementwise")]
    for block in blocks(models[1]):
        parameters = list(block.parameters())
        whole = torch.cat([parameter.detach().flatten() for parameter in parameters])
        for parameter, part in zip(parameters, whole.split([one.numel() for one in parameters]), strict=True):
            parameter.data = part.view_as(parameter)
    none, elementwise = (count_products(model, batch) for model in models)
    assert elementwise == none


def test_elementwise_takes_but_loras_narrow_products_twice() -> None:
    batch = batch_of("qwen3_vl")
    none, elementwise = (count_products(model_of("qwen3_vl", one, "lora"), batch) for one in ("none", "elementwise"))
    again = elementwise - none
    assert again.total() > 0
    assert {shape[0] for shape in again} == {LORA.rank}


@pytest.mark.parametrize("name", sorted(PRODUCTS | ATTENTIONS))
def test_the_operators_that_are_kept_have_these_names(name: str) -> None:
    space, _, operator = name.partition("::")
    if space == "flash_attn":
        pytest.importorskip("flash_attn")
    assert getattr(getattr(torch.ops, space), operator).default.name() == name


def kept_by_blocks(model: TrainModel, batch: Batch) -> list[int]:
    """Bytes that exist after the forward of each block and did not before: what it keeps, and its output, which is as
    large as its input."""
    kept: list[int] = []

    def watched(forward: Any, *args: Any, **kwargs: Any) -> Any:
        before = live.bytes_now()
        output = forward(*args, **kwargs)
        kept.append(live.bytes_now() - before)
        return output

    for block in blocks(model):
        block.forward = partial(watched, block.forward)  # type: ignore[method-assign]
    with LiveStorages([*model.parameters(), *model.buffers(), *tensors_in(batch)]) as live:
        model(batch, batch.images > 0)
    return kept


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5_vl", "qwen3_vl"])
def test_blocks_keep_what_the_arithmetic_says(family: str) -> None:
    """On the meta device, as a GPU would. Of a token or patch, in fp32: the input, the results of all products but the
    last, what attention gives with a sum a head; and 16 bytes of random state a call of attention."""
    batch, config = batch_of(family).to(torch.device("meta")), tiny_config(family)
    text = config.get_text_config()
    size = getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
    heads, key_heads = text.num_attention_heads, text.num_key_value_heads
    tokens = batch.input_ids.shape[1]
    of_token = 2 * text.hidden_size + 2 * heads * size + 2 * key_heads * size + 2 * text.intermediate_size + heads
    found = {
        recompute: kept_by_blocks(build_model(config, recompute), batch)
        for recompute in ("none", "elementwise", "full")
    }
    count = text.num_hidden_layers
    assert found["elementwise"][-count:] == [4 * tokens * of_token + 16] * count
    assert found["full"][-count:] == [4 * tokens * text.hidden_size] * count
    if family in VISION_FAMILIES:
        vision, patches = config.vision_config, len(batch.vision.patches)  # type: ignore[union-attr]
        wide = vision.hidden_size
        of_mlp = vision.intermediate_size * (2 if family == "qwen2_5_vl" else 1)
        of_patch = 6 * wide + of_mlp + vision.num_heads
        calls = [(kept - 4 * patches * of_patch) / 16 for kept in found["elementwise"][:-count]]
        # Within windows of Qwen2.5-VL the dense ones are a call of their own.
        assert set(calls) == ({1, 2} if family == "qwen2_5_vl" else {1})
        assert found["full"][:-count] == [4 * patches * wide] * vision.depth
    for none, elementwise in zip(found["none"], found["elementwise"], strict=True):
        assert elementwise < 0.6 * none


def test_the_tower_is_recomputed_apart() -> None:
    batch, config = batch_of("qwen3_vl").to(torch.device("meta")), tiny_config("qwen3_vl")
    count = len(language_model(build_model(config, "none").hf).layers)
    apart = kept_by_blocks(build_model(config, "elementwise", "full"), batch)
    same = {one: kept_by_blocks(build_model(config, one), batch) for one in AGAIN}
    assert apart == [*same["full"][:-count], *same["elementwise"][-count:]]
    assert same["full"][:-count] != same["elementwise"][:-count]


def test_a_dry_run_sees_what_each_setting_keeps() -> None:
    batch, config = batch_of("qwen3_vl"), tiny_config("qwen3_vl")
    held = [
        max(sum(moment.used.values()) for moment in trace_pass(build_model(config, *how), batch, torch.float32))
        for how in (("none",), ("elementwise",), ("elementwise", "full"), ("full",))
    ]
    assert held == sorted(set(held), reverse=True)


def test_a_run_goes_on_with_another_setting_as_if_nothing_had_changed(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3_vl") | {"max_steps": 4, "save_steps": 2, "optim.schedule": "constant"}
    train(run_config(settings, output=str(tmp_path / "one"), memory__recompute="none"), silent)
    changed = settings | {"output": str(tmp_path / "other")}
    train(run_config(changed, memory__recompute="elementwise", max_steps=2), silent)
    said: list[object] = []
    train(run_config(changed, memory__recompute="full", memory__recompute_vision="elementwise"), said.append)
    assert "changed since the checkpoint: memory.recompute was elementwise, is full" in said
    found, expected = ([{**line, "steps": 4} for line in read_metrics(tmp_path / name)] for name in ("other", "one"))
    assert len(found) == 4
    assert found == expected
