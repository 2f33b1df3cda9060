"""The bench's files of packs: the shares they promise, the same work in every step, shards that a run takes."""

from pathlib import Path

import numpy as np
import pytest

from lmms.configs.contract.manifest import open_dataset
from lmms.train.batch.recipe import make_recipe
from lmms.train.batch.shapes import shapes_of
from lmms.train.data.shards import read_sidecar
from lmms.train.model.build import build_model
from tools.gpu.pieces.models import FULL, MINI, MODELS, Sizes, model_config
from tools.gpu.pieces.packs import SHARES, make_layout, make_packs, pack_file


@pytest.mark.parametrize("sizes", [FULL, MINI])
def test_a_layout_fills_a_pack_with_the_share_of_images_that_is_asked_for(sizes: Sizes) -> None:
    for share in SHARES.values():
        layout = make_layout(sizes, share, 0)
        assert sum(conversation.tokens for conversation in layout) == sizes.seq_len
        assert sum(conversation.vision for conversation in layout) / sizes.seq_len == pytest.approx(share, abs=0.04)
        assert all(conversation.text >= 8 for conversation in layout)
        assert max(conversation.tokens for conversation in layout) <= sizes.conversation[2]
        assert layout == make_layout(sizes, share, 0)
        assert layout != make_layout(sizes, share, 1)


def test_the_layout_that_goals_are_held_to_is_as_its_description_says() -> None:
    layout = make_layout(FULL, 0.6, 0)
    assert sum(conversation.vision for conversation in layout) / FULL.seq_len == pytest.approx(0.6, abs=0.003)
    text = [conversation.tokens for conversation in make_layout(FULL, 0.0, 0)]
    assert min(text) >= FULL.conversation[0]
    assert 1000 < float(np.median(text)) < 2500


@pytest.mark.parametrize("model", ["Qwen2.5-VL-3B", "Qwen3-VL-2B"])
def test_packs_are_shards_for_their_model_and_all_of_one_shape(model: str, tmp_path: Path) -> None:
    make_packs(model, MINI, tmp_path / "packs")
    for name in SHARES:
        dataset = open_dataset(tmp_path / "packs" / name)
        recipe = make_recipe([dataset.manifest], model_config(model, thin=True), "stop")
        sidecar = read_sidecar(dataset)
        assert len(sidecar) == MINI.packs
        for column in ("tokens", "target_tokens", "segments", "sum_squared_lengths", "patches", "sum_squared_patches"):
            values = getattr(sidecar, column)
            assert (values == values[0]).all(), column
        assert len(shapes_of([sidecar], MINI.seq_len, 1, recipe.tower).conversations) == 1
    first, second = pack_file(tmp_path / "packs", "vision")
    assert not np.array_equal(first.input_ids, second.input_ids)
    assert first.media_bytes != second.media_bytes
    again = make_packs(model, MINI, tmp_path / "again")
    assert np.array_equal(pack_file(again, "vision")[0].input_ids, first.input_ids)
    assert (first.target_weights == 1).all()


def test_the_models_have_their_published_numbers_of_parameters() -> None:
    found = {}
    for name in MODELS:
        model = build_model(model_config(name, thin=False), "none")
        found[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    # https://huggingface.co: 4B, 2B and 9B in the hub's rounding; embeddings counted once where they are tied
    assert found == {
        "Qwen2.5-VL-3B": pytest.approx(3.7546, abs=1e-4),
        "Qwen3-VL-2B": pytest.approx(2.1275, abs=1e-4),
        "Qwen3-VL-8B": pytest.approx(8.7671, abs=1e-4),
    }
