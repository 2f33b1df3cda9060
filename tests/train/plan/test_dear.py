"""The packs that stay dear: which sample makes them so, and with which area of pictures they would not be."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from lmms.configs.contract.costs import ModelCost, folder_cost
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.train.data.costs import table_costs
from lmms.train.data.sets import Sets, open_sets
from lmms.train.plan.dear import dear_packs
from tests.kit.folders import tiny_model_folder

SEQ_LEN = 512


def built(folder: Path, **more: int) -> tuple[Sets, npt.NDArray[np.int64], ModelCost]:
    """A set of talks, of which one has a picture that costs more than a pack of talks."""
    model = tiny_model_folder(folder)
    Image.effect_noise((360, 360), 50).save(folder / "large.png")
    talk = [{"role": "user", "content": "word " * 20}, {"role": "assistant", "content": "answer"}]
    look = [
        {"role": "user", "content": [{"type": "image", "image": "large.png"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "noise"},
    ]
    talks = [look if i == 70 else talk for i in range(400)]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talks))
    out = folder / f"out-{more.get('max_pixels', 0)}"
    build_shards(
        PrepConfig(
            sources=(str(folder / "talks.jsonl"),), model=str(model), seq_len=SEQ_LEN, out=str(out), workers=1, **more
        )
    )
    sets, cost = open_sets([out]), folder_cost(model, {})
    return sets, table_costs(cost, sets.sidecars[0]).sum(axis=0), cost


def test_a_picture_that_costs_more_than_the_mean_pack_is_named_with_the_area_that_it_should_have(
    tmp_path: Path,
) -> None:
    sets, costs, cost = built(tmp_path)
    (dear,) = dear_packs(sets, costs, cost)
    assert (Path(dear.source).name, dear.row, dear.pictures) == ("talks.jsonl", 70, 1)
    assert dear.pack == int(np.argmax(costs))
    assert dear.cost == pytest.approx(costs.max() / costs.mean())
    assert 1 < dear.sample_cost <= dear.cost + 1e-9
    assert dear.max_pixels is not None
    assert dear.max_pixels < 360 * 360
    before = dear.sample_cost * costs.mean()
    sets, costs, cost = built(tmp_path, max_pixels=dear.max_pixels)
    after = max((each.sample_cost for each in dear_packs(sets, costs, cost)), default=1.0) * costs.mean()
    assert after < before / 2, "the picture is a third of what it was, and so is its cost"
    assert 0.7 * costs.mean() < after < 1.1 * costs.mean()


def test_a_pack_of_many_samples_is_named_without_an_area(tmp_path: Path) -> None:
    sets, costs, cost = built(tmp_path)
    costs = costs.copy()
    text = int(np.argmin(costs))
    costs[text] = 3 * costs.max()
    first = next(dear_packs(sets, costs, cost))
    assert (first.pack, first.pictures, first.max_pixels) == (text, 0, None)
