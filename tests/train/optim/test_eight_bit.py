"""Averages in few bits: a neighbour among the codes, nothing lost over steps or at either end, rows for themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmms.train.optim import eight_bit as module
from lmms.train.optim.eight_bit import BLOCK, blocks_of_row, code_book, dequantize, quantize, rounded, threshold

SHAPES = [(5, 256), (3, 700), (4, 17), (2, 3, 2, 90), (1, 1), (0, 300)]
CPU = torch.device("cpu")


def values_of(seed: int, shape: tuple[int, ...], spread: float, signed: bool) -> Tensor:
    """Values over many decades, a tenth of them 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))
    values[torch.rand(shape, generator=generator) < 0.1] = 0.0
    return values if signed else values.abs()


def there_and_back(values: Tensor, signed: bool, step: int = 1) -> Tensor:
    codes, scales = quantize(values, signed, step)
    assert (codes.dtype, codes.shape) == (torch.uint8, values.shape)
    assert (scales.dtype, scales.shape) == (torch.float32, (len(values), blocks_of_row(values.shape)))
    return dequantize(codes, scales, signed)


def blocks(values: Tensor) -> list[Tensor]:
    return [block for row in values.flatten(1) for block in row.split(min(BLOCK, max(len(row), 1)))]


@pytest.mark.parametrize("signed", [True, False])
def test_the_codes_are_256_values_or_255_alike_on_both_sides_that_rise_from_decade_to_decade(signed: bool) -> None:
    book = code_book(signed, CPU).double()
    assert len(book) == 256 - signed
    assert (book.diff() > 0).all()
    assert {0.0, 1.0} <= set(book.tolist())
    above = book[book > 0][:-1]
    per_decade = [int(((above > 10.0 ** -(d + 1)) & (above < 10.0**-d)).sum()) for d in range(7)]
    assert per_decade == ([63, 32, 16, 8, 4, 2, 1] if signed else [128 // 2**d for d in range(7)])
    assert torch.equal(-book.flip(0), book) == signed
    assert signed == bool((book < 0).any())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from(SHAPES), st.floats(0, 8), st.booleans(), st.integers(1, 10**6))
def test_each_value_becomes_one_of_its_two_neighbours_in_its_block(
    seed: int, shape: tuple[int, ...], spread: float, signed: bool, step: int
) -> None:
    values = values_of(seed, shape, spread, signed)
    found, book = there_and_back(values, signed, step), code_book(signed, CPU).double()
    assert torch.isfinite(found).all()
    for block, back in zip(blocks(values), blocks(found), strict=True):
        largest = block.abs().max().double()
        units, last = block.double() / largest.clamp(min=1e-300), len(book) - 1
        lower = (torch.bucketize(units - 1e-6, book, right=True) - 1).clamp(min=0)
        upper = torch.bucketize(units + 1e-6, book).clamp(max=last)
        if not signed:
            lower, upper = (torch.where(block > 0, one.clamp(min=1), one) for one in (lower, upper))
        low, high = (largest * book[torch.stack([lower, upper])]).sort(dim=0).values
        assert ((back >= low - 1e-6 * largest) & (back <= high + 1e-6 * largest)).all()
        assert (back[block == 0] == 0).all()
        assert signed or bool((back[block > 0] > 0).all())
        assert back.abs().max() == largest.float()


def test_the_mean_over_steps_is_the_value_and_the_sign_changes_nothing_else() -> None:
    for signed in (True, False):
        values = values_of(5, (4, 300), 2.0, signed)
        every = torch.stack([there_and_back(values, signed, step).double() for step in range(1, 513)])
        gaps = every.amax(0) - every.amin(0)
        least = code_book(False, CPU)[1] * torch.cat([block.abs().max().expand_as(block) for block in blocks(values)])
        reached = (values.abs() >= least.view_as(values)) | (values == 0) | signed
        assert ((every.mean(0) - values.double()).abs() <= 0.01 * gaps + 1e-6 * values.abs())[reached].all()
        assert (gaps > 0).float().mean() > 0.8
    assert torch.equal(there_and_back(-values, True, 7), -there_and_back(values, True, 7))


def squares_over_steps(gradients: Tensor, constant: float) -> tuple[Tensor, Tensor]:
    """The root of the squares' average of one block's gradients [steps, values], in 8 bits and in fp32."""
    codes, scales = quantize(torch.zeros_like(gradients[:1]), False, 0)
    exact = torch.zeros_like(gradients[0])
    for step, gradient in enumerate(gradients, 1):
        average = constant * dequantize(codes, scales, False).square() + (1 - constant) * gradient**2
        codes, scales = quantize(average.sqrt(), False, step)
        exact = constant * exact + (1 - constant) * gradient**2
    return dequantize(codes, scales, False)[0], exact.sqrt()


def noise(steps: int) -> Tensor:
    """Gradients of sizes over two decades and more, beside one that is the largest of the block throughout."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp(1.5 * torch.randn(BLOCK, generator=generator))
    sizes[0] = 100.0
    return torch.randn(steps, BLOCK, generator=generator) * sizes


def test_an_average_with_a_constant_of_0_999_falls_as_in_fp32_where_rounding_to_nearest_would_keep_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over 2,000 steps without the gradients that it was made of, to 0.37; one value of the block goes on. Each by
    some of its codes too many or too few, which are up to 14 % apart, and all together as they should."""
    gradients = noise(2500)
    gradients[500:, 1:] = 0.0
    found, exact = squares_over_steps(gradients, 0.999)
    ratio = found[1:] / exact[1:]
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.05)
    assert float((ratio - 1).abs().quantile(0.9)) < 0.6
    monkeypatch.setattr(module, "threshold", lambda step, offset: 0 * offset + 32768)
    module._bounds.cache_clear()
    found, exact = squares_over_steps(gradients, 0.999)
    module._bounds.cache_clear()
    assert float((found[1:] / exact[1:]).min()) > 1.5


@pytest.mark.parametrize("period", [2, 4])
def test_an_average_follows_gradients_that_come_in_turns(period: int) -> None:
    """As of two sets of a mixture in turns; then tenfold smaller."""
    gradients = noise(3000)
    gradients[torch.arange(3000) % period > 0] *= 0.1
    gradients[1000:, 1:] *= 0.1
    found, exact = squares_over_steps(gradients, 0.999)
    assert float((found / exact).mean()) == pytest.approx(1.0, abs=0.1)


def test_what_falls_below_the_least_code_stays_there() -> None:
    gradients = torch.zeros(1200, BLOCK)
    gradients[:, 0] = 1.0
    gradients[0, 1:] = 1e-4
    found, exact = squares_over_steps(gradients, 0.99)
    assert float(exact[1]) < 1e-7
    assert torch.equal(found[1:], torch.full((BLOCK - 1,), float(found[0] * code_book(False, CPU)[1])))
    assert float(found[0]) == pytest.approx(float(exact[0]), rel=1e-5)


def test_thresholds_are_each_as_frequent_and_their_pairs_balanced() -> None:
    every = [threshold(step, 7) for step in range(2 * 65536)]
    assert sorted(every) == sorted([*range(65536), *range(65536)])
    assert all(a + b == 65535 for a, b in zip(every[::2], every[1::2], strict=True))


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
    codes, scales = quantize(values, signed=True, step=3)
    for cut in range(len(values) + 1):
        parts = [quantize(part, signed=True, step=3) for part in (values[:cut], values[cut:])]
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
