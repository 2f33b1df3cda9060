"""Kernels that are compared: each is held to fp32, and what is wrong does not pass."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmms.configs.errors import ConfigError
from lmms.train.model.attention import Attend, Documents, varlen_attention
from lmms.train.model.reference import reference_attention
from tools.gpu.pieces.attention import KERNELS, attend_by, check_layer, drawn, nested_attention
from tools.gpu.pieces.losses import CHUNKED, PACKAGES, TOLERANCES, WHOLE, check_loss, loss_by, whole_cross_entropy
from tools.gpu.pieces.models import MINI, model_config
from tools.gpu.pieces.packs import make_packs, pack_file
from tools.gpu.pieces.shapes import Layer, attention_layers
from tools.gpu.processes import NotHereError

CPU = torch.device("cpu")
LANGUAGE = Layer(
    name="language",
    heads=4,
    key_heads=2,
    width=16,
    causal=True,
    cu_seqlens=torch.tensor([0, 5, 12, 13], dtype=torch.int32),
    dense_windows=0,
    max_length=7,
    count=2,
)
WINDOWS = replace(LANGUAGE, name="windows", causal=False, key_heads=4, dense_windows=5, max_length=8)


@pytest.mark.parametrize("layer", [LANGUAGE, WINDOWS], ids=lambda layer: str(layer.name))
def test_the_trainers_attention_passes_and_others_do_not(layer: Layer) -> None:
    assert check_layer(varlen_attention, layer, CPU, 20).passed

    wrong: list[Attend] = [
        lambda q, k, v, of: reference_attention(q, k, v, of.cu_seqlens, 1.1 * of.scale, of.causal),
        lambda q, k, v, of: reference_attention(q, k, v, of.cu_seqlens[[0, -1]], of.scale, of.causal),
    ]
    assert not any(check_layer(attend, layer, CPU, 20).passed for attend in wrong)


PLAIN = F.scaled_dot_product_attention


def one_by_one(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, scale: float) -> Tensor:
    """SDPA of jagged [documents, heads, length, width]."""
    documents = zip(query.unbind(), key.unbind(), value.unbind(), strict=True)
    with sdpa_kernel(SDPBackend.MATH):
        outputs = [PLAIN(q, k, v, is_causal=is_causal, scale=scale).transpose(0, 1) for q, k, v in documents]
    return torch.nested.as_nested_tensor(outputs, layout=torch.jagged).transpose(1, 2)


@pytest.mark.parametrize("causal", [True, False])
def test_jagged_attention_is_the_reference(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU torch attends to jagged tensors by a slow way of its own, which is not what is compared here."""
    layer = replace(LANGUAGE, causal=causal)
    q, k, v = (part.detach().float() for part in drawn(layer, CPU)[0])
    expected = reference_attention(q, k, v, layer.cu_seqlens, 0.25, causal)
    monkeypatch.setattr("tools.gpu.pieces.attention.F.scaled_dot_product_attention", one_by_one)
    torch.testing.assert_close(nested_attention(q, k, v, Documents(layer.cu_seqlens, 7, 0.25, causal)), expected)


def test_what_a_cpu_cannot_do_is_said_and_not_tried() -> None:
    for backend in KERNELS:
        if backend in ("varlen", "sdpa"):
            assert callable(attend_by(backend, CPU))
        else:
            with pytest.raises((NotHereError, ConfigError), match="GPU"):
                attend_by(backend, CPU)


def test_layers_are_those_of_the_model_with_the_lengths_of_the_pack(tmp_path: Path) -> None:
    folder = make_packs("Qwen2.5-VL-3B", MINI, tmp_path)
    pack = pack_file(folder, "vision")[0]
    layers = {layer.name: layer for layer in attention_layers(model_config("Qwen2.5-VL-3B", thin=False), pack)}
    assert {name: layer.count for name, layer in layers.items()} == {"language": 36, "images": 4, "windows": 28}
    assert layers["language"].positions == MINI.seq_len
    assert layers["images"].positions == layers["windows"].positions == pack.patches
    assert layers["images"].flops == 4 * 1280 * pack.sum_squared_patches
    assert layers["language"].flops == 2 * 2048 * int((pack.lengths.astype(int) ** 2).sum())
    text = attention_layers(model_config("Qwen3-VL-2B", thin=False), pack_file(folder, "text")[0])
    assert [layer.name for layer in text] == ["language"]


def some_rows() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(48, 32, generator=generator).bfloat16().requires_grad_()
    weight = (0.02 * torch.randn(500, 32, generator=generator)).bfloat16().requires_grad_()
    return hidden, weight, torch.randint(500, (48,), generator=generator), torch.ones(48)


@pytest.mark.parametrize("name", [*CHUNKED, *WHOLE])
def test_a_loss_of_ours_passes_with_its_gradients(name: str) -> None:
    torch._dynamo.reset()
    found = check_loss(loss_by(name, CPU, chunk=16 * 500, backend="aot_eager"), *some_rows())
    assert found.passed, found
    assert found.errors.keys() == TOLERANCES.keys()
    assert any(error > 0 for error in found.errors.values())


def test_a_loss_that_is_wrong_does_not_pass() -> None:
    def mean(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ weight.T).float(), labels, label_smoothing=0.1, reduction="sum")

    assert not check_loss(mean, *some_rows()).passed


def test_losses_of_packages_are_not_tried_without_a_gpu() -> None:
    for name in PACKAGES:
        with pytest.raises(NotHereError, match="runs on a GPU"):
            loss_by(name, CPU)


def test_losses_and_attention_take_tensors_of_a_gpu() -> None:
    """Shapes and types of the forward pass; without a GPU torch's backward does not start."""
    cuda = torch.device("cuda")
    with FakeTensorMode():
        hidden, weight = (
            torch.empty(rows, 32, device=cuda, dtype=torch.bfloat16, requires_grad=True) for rows in (64, 500)
        )
        labels, ones = torch.zeros(64, device=cuda, dtype=torch.int64), torch.ones(64, device=cuda)
        for name in ("chunked", "chunked, 1/8", "whole"):
            loss = loss_by(name, cuda, chunk=16 * 500)(hidden, weight, labels, ones)
            assert (loss.is_cuda, loss.shape, loss.dtype) == (True, (), torch.float32)
        assert whole_cross_entropy(hidden, weight, labels, ones, labels, 3)[1].shape == (3, 2)
        q, k, v = (torch.empty(16, heads, 128, device=cuda, dtype=torch.bfloat16) for heads in (4, 2, 2))
        bounds = torch.zeros(3, device=cuda, dtype=torch.int32)
        output = attend_by("varlen", cuda)(q, k, v, Documents(bounds, 8, 0.1, True))
        assert (output.is_cuda, output.shape, output.dtype) == (True, q.shape, torch.bfloat16)
