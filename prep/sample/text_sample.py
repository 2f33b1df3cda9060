"""Samples of text alone, the most of all, in less time: their bytes in the spool, cut out of the arrays of a batch.

They are the bytes that encode_sample gives for the sample's Pack; a test holds both to one another.
"""

from dataclasses import dataclass
from itertools import pairwise
from struct import Struct

import xxhash

from lmms.prep.render.render import Batch

_LETTERS = "BHI"
"""Kinds of the numbers that give the shape of a stored array, by their code, see configs/contract/mds.py."""
_HEADS = {letter: Struct(f"<8I BBii B{letter}") for letter in _LETTERS}
"""Sizes of the columns, cu_seqlens, and what stands before the ids."""
_MIDDLES = {letter: Struct(f"<2s BBd BBBqq B{letter}") for letter in _LETTERS}
"""media, sample_weights, samples, and what stands before the weights of targets."""
_TARGETS = {letter: Struct(f"<B2{letter}") for letter in _LETTERS}
"""What stands before the targets."""
_NUMBER, _REAL = Struct("<Q"), Struct("<d")
_ONE_DIMENSION, _TWO_DIMENSIONS = 4, 8
_CUTS_BYTES, _WEIGHT_BYTES, _PLACE_BYTES = 10, 10, 19
_NO_MEDIA = b"[]"


@dataclass(frozen=True, slots=True)
class MadeText:
    """What one record of text alone became: see Made."""

    place: tuple[int, int]
    """Number of the source, and row."""
    data: bytes
    """The sample in the spool, of source 0."""
    tokens: int
    target_tokens: int
    content: int
    """128-bit hash of all that the record says, as of a Made."""
    notes: tuple[str, ...]
    is_for_evaluation: bool


@dataclass(frozen=True, slots=True)
class BatchBytes:
    """The arrays of a batch as bytes, little-endian, to cut samples out of."""

    ids: memoryview
    targets: memoryview
    weights: memoryview
    cuts: list[int]
    target_cuts: list[int]
    target_tokens: list[int]
    """Tokens of the targets of each record."""


def bytes_of(batch: Batch) -> BatchBytes:
    """The bytes of a batch."""
    until = [0, *(batch.targets[:, 1] - batch.targets[:, 0]).cumsum().tolist()]
    cuts = batch.target_cuts
    return BatchBytes(
        ids=memoryview(batch.ids.astype("<i4", copy=False).tobytes()),
        targets=memoryview(batch.targets.astype("<i4", copy=False).tobytes()),
        weights=memoryview(batch.weights.astype("<f8", copy=False).tobytes()),
        cuts=batch.cuts,
        target_cuts=cuts,
        target_tokens=[until[end] - until[start] for start, end in pairwise(cuts)],
    )


def text_sample(
    of: BatchBytes, number: int, place: tuple[int, int], weight: float, notes: tuple[str, ...], is_for_evaluation: bool
) -> MadeText:
    """The sample of a record of a batch that has no media. weight: of the conversation."""
    begin, end = of.cuts[number], of.cuts[number + 1]
    first, last = of.target_cuts[number], of.target_cuts[number + 1]
    tokens, spans = end - begin, last - first
    ids = of.ids[4 * begin : 4 * end]
    targets = of.targets[8 * first : 8 * last]
    weights = of.weights[8 * first : 8 * last]
    content = (
        *(_NUMBER.pack(tokens), ids, _NUMBER.pack(2 * spans), targets),
        *(_NUMBER.pack(spans), weights, _NUMBER.pack(1), _REAL.pack(weight)),
    )
    return MadeText(
        place=place,
        data=_encoded(tokens, spans, place[1], weight, (ids, weights, targets)),
        tokens=tokens,
        target_tokens=of.target_tokens[number],
        content=xxhash.xxh3_128_intdigest(b"".join(content)),
        notes=notes,
        is_for_evaluation=is_for_evaluation,
    )


def _encoded(
    tokens: int, spans: int, row: int, weight: float, arrays: tuple[memoryview, memoryview, memoryview]
) -> bytes:
    """encode_sample of a Pack with these ids, weights of targets, and targets."""
    ids, weights, targets = arrays
    letter, code = _width(tokens)
    of_spans, code_of_spans = _width(spans)
    before_targets = _TARGETS[of_spans].pack(_TWO_DIMENSIONS | code_of_spans, spans, 2)
    head = _HEADS[letter].pack(
        *(_CUTS_BYTES, 1 + (1 << code) + len(ids), len(_NO_MEDIA), 0, _WEIGHT_BYTES, _PLACE_BYTES),
        *(1 + (1 << code_of_spans) + len(weights), len(before_targets) + len(targets)),
        *(_ONE_DIMENSION, 2, 0, tokens),
        *(_ONE_DIMENSION | code, tokens),
    )
    middle = _MIDDLES[of_spans].pack(
        *(_NO_MEDIA, _ONE_DIMENSION, 1, weight),
        *(_TWO_DIMENSIONS, 1, 2, 0, row),
        *(_ONE_DIMENSION | code_of_spans, spans),
    )
    return b"".join((head, ids, middle, weights, before_targets, targets))


def _width(most: int) -> tuple[str, int]:
    """Letter and code of the numbers of a shape, of which this is the largest."""
    return ("B", 0) if most < 2**8 else ("H", 1) if most < 2**16 else ("I", 2)
