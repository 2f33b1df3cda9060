"""What a floor counts as computed again is what torch computes again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.settings.memory import Recompute
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.recipe import make_recipe
from lmms.train.data.shards import Place
from lmms.train.model.build import blocks, build_model, init_random, materialize
from lmms.train.model.forward import TrainModel
from lmms.train.model.kernels import compile_blocks
from tools.gpu.models import model_config
from tools.gpu.packs import make_packs, pack_file
from tools.gpu.shapes import body_products, rows_of
from tools.gpu.sizes import MINI

SMALL = replace(MINI, seq_len=64, packs=1, conversation=(16, 30, 50), image=(4, 12))


def model_and_batch(name: str, packs: str, recompute: Recompute, folder: Path) -> tuple[TrainModel, Batch]:
    config = model_config(name, thin=True)
    model = build_model(config, recompute)
    materialize(model, torch.device("cpu"))
    init_random(model, 0)
    recipe = make_recipe([open_dataset(folder / packs).manifest], config, "stop")
    return model, make_batch(pack_file(folder, packs), recipe, [Place(0, 0, 0, 0, 0, 0)])


def repeated(name: str, packs: str, folder: Path) -> float:
    """Operations that the floor counts once more."""
    config, rows = model_config(name, thin=True), rows_of(pack_file(folder, packs)[0])
    return sum(product.flops * count for product, count in body_products(config, rows).items() if product.again)


@pytest.mark.parametrize("name", ["Qwen2.5-VL-3B", "Qwen3-VL-2B"])
def test_products_that_count_again_are_those_that_torchs_checkpoint_repeats(name: str, tmp_path: Path) -> None:
    folder = make_packs(name, SMALL, tmp_path)
    found: dict[Recompute, int] = {}
    for recompute in ("none", "elementwise", "full"):
        model, batch = model_and_batch(name, "vision", recompute, folder)
        with FlopCounterMode(display=False) as counter:
            model(batch, True)[0].backward()
        by_operator = counter.get_flop_counts()["Global"]
        found[recompute] = by_operator[torch.ops.aten.mm] + by_operator[torch.ops.aten.addmm]
    assert found["full"] - found["none"] == repeated(name, "vision", folder) > 0
    assert found["elementwise"] == found["none"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_block_repeats_the_same_products(tmp_path: Path) -> None:
    folder = make_packs("Qwen3-VL-2B", SMALL, tmp_path)
    found: dict[Recompute, int] = {}
    for recompute in ("none", "full"):
        torch._dynamo.reset()
        model, batch = model_and_batch("Qwen3-VL-2B", "text", recompute, folder)
        compile_blocks(blocks(model), "aot_eager")
        model(batch, False)[0].backward()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            model(batch, False)[0].backward()
        shapes = [event.input_shapes for event in profiler.events() or () if event.name == "aten::mm"]
        found[recompute] = sum(2 * a[0] * a[1] * b[1] for a, b, *_ in shapes)
    assert found["full"] - found["none"] == repeated("Qwen3-VL-2B", "text", folder) > 0
