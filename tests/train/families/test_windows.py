"""Windows of Qwen2.5-VL as a dense batch: the tower of transformers in its own order has the same features."""

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from lmms.train.families.family import Tower
from lmms.train.families.qwen2_5_vl import tower_inputs
from lmms.train.model.attention import Documents, varlen_attention, with_windows
from lmms.train.model.reference import reference_attention
from tests.kit.model.models import tiny_config, tiny_model

TOWER = Tower(patch_size=4, merge_size=2, window_size=16)
GRIDS = {
    "whole windows alone": [(1, 4, 8), (1, 8, 8)],
    "narrow windows alone": [(1, 2, 6), (1, 2, 2)],
    "both": [(1, 10, 14), (1, 2, 2), (1, 4, 4), (1, 6, 4), (1, 14, 30)],
}


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_features_and_gradients_are_those_of_the_unchanged_tower(grids: list[tuple[int, int, int]]) -> None:
    grid_thw = torch.tensor(grids)
    ours = tiny_model("qwen2_5_vl").hf.model.visual
    theirs = Qwen2_5_VisionTransformerPretrainedModel._from_config(
        tiny_config("qwen2_5_vl").vision_config, attn_implementation="eager"
    )
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(0)
    pixels = torch.randn(int(grid_thw.prod(1).sum()), 3 * 2 * 16)
    found = ours(pixels, grid_thw=grid_thw, **tower_inputs(grid_thw, TOWER)).pooler_output
    expected = theirs(pixels, grid_thw=grid_thw).pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(expected)
    for features in (found, expected):
        (features * direction).sum().backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        scale = max(float(other.grad.abs().max()), 1e-2)
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=2e-5 * scale, msg=name)


def test_whole_windows_come_first_and_rows_lead_there_and_back() -> None:
    grid_thw = torch.tensor(GRIDS["both"])
    inputs = tower_inputs(grid_thw, TOWER)
    image_rows, window_rows, narrow = (
        tensor
        for name in ("image_rows", "window_rows", "cu_window_seqlens")
        if isinstance(tensor := inputs[name], Tensor)
    )
    patches = int(grid_thw.prod(1).sum())
    # Whole windows of each image: (10 // 4) * (14 // 4), none, 1, 1, (14 // 4) * (30 // 4)
    assert inputs["dense_windows"] == 6 + 0 + 1 + 1 + 21
    assert inputs["max_window_seqlen"] == 16
    assert int(narrow[-1]) == patches - 29 * 16
    assert int(narrow.diff().max()) < 16
    assert int(narrow.diff().min()) > 0
    assert torch.equal(window_rows[image_rows], torch.arange(patches))
    first = window_rows[:16].sort().values
    # The corner of the first image: rows of squares are 7 squares of 4 patches long
    assert first.tolist() == [*range(8), *range(28, 36)]


@pytest.mark.parametrize("windows", [0, 2, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_windows_before_documents_are_documents_of_one_length(windows: int, causal: bool) -> None:
    torch.manual_seed(0)
    lengths = [4] * windows + ([1, 3, 2] if windows < 3 else [])
    tensors = [torch.randn(sum(lengths), heads, 8, dtype=torch.float64) for heads in (4, 4, 4)]
    all_of_them = torch.tensor([0, *lengths]).cumsum(0).int()
    rest = all_of_them[windows:] - 4 * windows
    asked: list[int] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        asked.append(len(q))
        return varlen_attention(q, k, v, documents)

    q, k, v = tensors
    found = with_windows(attend, windows, q, k, v, Documents(rest, 4, 0.3, causal))
    torch.testing.assert_close(found, reference_attention(*tensors, all_of_them, 0.3, causal))
    assert asked == ([6] if windows < 3 else [])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_patches_are_embedded_as_by_the_convolution(family: str) -> None:
    embed = tiny_model(family).hf.model.visual.patch_embed
    torch.manual_seed(0)
    pixels = torch.randn(7, 3 * 2 * 4 * 4, requires_grad=True)
    found, expected = embed(pixels), type(embed).forward(embed, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((out * direction).sum(), [pixels, *embed.parameters()]) for out in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
