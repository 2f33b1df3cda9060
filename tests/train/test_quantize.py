"""Averages in few bits: the nearest code of a block, nothing lost at 0 or at either end, the same for any rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmms.train.quantize import BLOCK, blocks_of_row, code_book, dequantize, quantize, rounded

SHAPES = [(5, 256), (3, 700), (4, 17), (2, 3, 2, 90), (1, 1), (0, 300)]
CPU = torch.device("cpu")


def values_of(seed: int, shape: tuple[int, ...], spread: float, signed: bool) -> Tensor:
    """Values over many decades, a tenth of them 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))
    values[torch.rand(shape, generator=generator) < 0.1] = 0.0
    return values if signed else values.abs()


def there_and_back(values: Tensor, signed: bool) -> Tensor:
    codes, scales = quantize(values, signed)
    assert (codes.dtype, codes.shape) == (torch.uint8, values.shape)
    assert (scales.dtype, scales.shape) == (torch.float32, (len(values), blocks_of_row(values.shape)))
    return dequantize(codes, scales, signed)


def blocks(values: Tensor) -> list[Tensor]:
    return [block for row in values.flatten(1) for block in row.split(min(BLOCK, max(len(row), 1)))]


@pytest.mark.parametrize("signed", [True, False])
def test_the_codes_are_256_values_that_rise_from_decade_to_decade(signed: bool) -> None:
    book = code_book(signed, CPU).double()
    assert len(book) == 256
    assert (book.diff() > 0).all()
    assert {0.0, 1.0} <= set(book.tolist())
    above = book[book > 0][:-1]
    per_decade = [int(((above > 10.0 ** -(d + 1)) & (above < 10.0**-d)).sum()) for d in range(7)]
    assert per_decade == [(64 if signed else 128) // 2**d for d in range(7)]
    assert signed == bool((book < 0).any())
    if signed:
        assert set((-above).tolist()) == set(book[book < 0].tolist())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from(SHAPES), st.floats(0, 8), st.booleans())
def test_each_value_becomes_the_nearest_of_its_block(
    seed: int, shape: tuple[int, ...], spread: float, signed: bool
) -> None:
    values = values_of(seed, shape, spread, signed)
    found, book = there_and_back(values, signed), code_book(signed, CPU).double()
    assert torch.isfinite(found).all()
    for block, back in zip(blocks(values), blocks(found), strict=True):
        largest = block.abs().max().double()
        errors = (block.double()[:, None] - largest * book).abs()
        if not signed:
            errors[block > 0, 0] = torch.inf
        error = (block - back).abs().double()
        assert (error <= errors.amin(1) + 1e-6 * largest).all()
        assert (back[block == 0] == 0).all()
        assert signed or bool((back[block > 0] > 0).all())
        assert (back[block.argsort()].diff() >= 0).all()
        assert block.max() < largest or back.max() == largest.float()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("largest", [3.4e38, 1e-37, 1e-41])
def test_the_ends_of_fp32_neither_overflow_nor_divide_by_nothing(largest: float, signed: bool) -> None:
    values = torch.tensor([[largest, largest / 2, 0.0], [0.0, 0.0, 0.0]])
    found = there_and_back(values, signed)
    assert torch.isfinite(found).all()
    assert float(found[0, 0]) == (pytest.approx(largest, rel=1e-6) if largest > 1e-38 else 0.0)
    assert not found[1].any()


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_rows_know_nothing_of_one_another(shape: tuple[int, ...]) -> None:
    values = values_of(3, shape, 3.0, signed=True)
    codes, scales = quantize(values, signed=True)
    for cut in range(len(values) + 1):
        parts = [quantize(part, signed=True) for part in (values[:cut], values[cut:])]
        assert torch.equal(torch.cat([part[0] for part in parts]), codes)
        assert torch.equal(torch.cat([part[1] for part in parts]), scales)


def test_rounding_to_bf16_takes_a_neighbour_and_keeps_the_mean_over_steps() -> None:
    values = torch.cat([values_of(1, (400,), 5.0, signed=True), torch.tensor([1.0, -1.0, 0.0])])
    every = torch.stack([rounded(values, step).double() for step in range(1, 1025)])
    bits = values.view(torch.int32) & -65536
    toward, away = bits.view(torch.float32), (bits + 65536).view(torch.float32)
    assert ((every == toward.double()) | (every == away.double())).all()
    gap = (away - toward).abs().double()
    assert ((every.mean(0) - values.double()).abs() <= 0.01 * gap).all()
    assert torch.equal(rounded(values.bfloat16().float(), 7), values.bfloat16())


def test_an_average_falls_in_bf16_as_in_fp32_where_rounding_to_nearest_would_keep_it() -> None:
    found = nearest = torch.linspace(1.0, 2.0, 100).bfloat16()
    for step in range(1, 1001):
        found = rounded(found.float() * 0.999, step)
        nearest = (nearest.float() * 0.999).bfloat16()
    expected = torch.linspace(1.0, 2.0, 100) * 0.999**1000
    assert ((found.float() / expected - 1).abs() < 0.05).all()
    assert (nearest.float() > 2 * expected).any()
