"""A document -> ids and targets without a chat template; a long one as pieces that fit a pack, nothing lost.

Neighbouring texts are tokenized as one text. A picture has the tokens that the family's template puts around it. The
family's end token closes the document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from lmms.prep.records.document import Document, Passage
from lmms.prep.records.parts import Image
from lmms.prep.records.strict_json import check_text
from lmms.prep.reject import Reject
from lmms.prep.render.render import Rendered
from lmms.prep.render.renderer import Renderer
from lmms.prep.render.tokens import encode_texts, tokens_behind


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document that becomes one sample."""

    rendered: Rendered
    images: tuple[int, int]
    """[first, last) of the document's images."""


def render_document(renderer: Renderer, document: Document, image_tokens: Sequence[int]) -> Rendered:
    """The tokens of a whole document whose k-th image takes image_tokens[k] tokens."""
    around = renderer.family.image_around
    marks = (around[0], renderer.image, around[1]) if around and renderer.image else ()
    if document.images and not marks:
        place = document.images[0].place
        raise Reject("images_unsupported", "the record has images, this model reads text only", place)
    sizes = iter(image_tokens)
    ids: list[int] = []
    targets: list[tuple[int, int]] = []
    image_starts = []
    for part in _joined(document.parts):
        if isinstance(part, Image):
            before, picture, after = (renderer.control_ids[token] for token in marks)
            image_starts.append(len(ids) + 1)
            ids += [before, *[picture] * next(sizes), after]
        else:
            _add_text(renderer, part, ids, targets)
    _extend(targets, len(ids), len(ids) + 1)
    ids.append(renderer.control_ids[renderer.family.text_end])
    # Nothing stands before the first token, from which it could be predicted.
    learned = [(max(start, 1), end) for start, end in targets if end > 1]
    return Rendered(np.array(ids, np.int32), learned, [1.0] * len(learned), image_starts, dropped_text=False)


def _joined(parts: Sequence[Passage | Image]) -> Iterator[Image | list[Passage]]:
    """The pictures, and the texts between them."""
    texts: list[Passage] = []
    for part in parts:
        if isinstance(part, Passage):
            texts.append(part)
        else:
            yield from [texts] if texts else []
            texts = []
            yield part
    yield from [texts] if texts else []


def _add_text(renderer: Renderer, passages: Sequence[Passage], ids: list[int], targets: list[tuple[int, int]]) -> None:
    text = "".join(passage.text for passage in passages)
    check_text(text, "text")
    tokens = encode_texts(renderer.encoder, [text]).ids
    places = list(accumulate(len(passage.text) for passage in passages))[:-1]
    borders = [0, *(tokens_behind(renderer.encoder, text, tokens, places) if places else ()), len(tokens)]
    for passage, first, last in zip(passages, borders[:-1], borders[1:], strict=True):
        if passage.is_learned:
            _extend(targets, len(ids) + first, len(ids) + last)
    ids += tokens.tolist()


def _extend(targets: list[tuple[int, int]], start: int, end: int) -> None:
    """Add a span, joined to the last if nothing is between them."""
    if start < end and targets and targets[-1][1] == start:
        targets[-1] = (targets[-1][0], end)
    elif start < end:
        targets.append((start, end))


def cut_document(
    whole: Rendered, image_tokens: Sequence[int], image_patches: Sequence[int], most: tuple[int, int], overlap: int
) -> Iterator[Piece]:
    """Pieces of a document, each of at most `most` (tokens, patches). Together they have every token, in order.

    A piece ends at a token border, never within a picture. Each piece but the first begins with the last `overlap`
    tokens of the piece before, as context. Raises Reject for a picture that no piece holds.
    """
    seq_len, max_patches = most
    # A picture with its two tokens around cannot be cut.
    pictures = [(start - 1, start + size + 1) for start, size in zip(whole.image_starts, image_tokens, strict=True)]
    learned_from, first = 0, 0
    tokens = len(whole.input_ids)
    while learned_from < tokens:
        end = _piece_end(first, tokens, pictures, image_patches, most)
        if end <= learned_from:  # the overlap leaves no room for a picture
            first = learned_from
            end = _piece_end(first, tokens, pictures, image_patches, most)
        if tokens - end == 1 and not overlap:  # a piece of one token would have nothing to learn
            end = next((start for start, stop in pictures if start < end - 1 < stop), end - 1)
        if end <= learned_from:
            i = next(i for i, (start, _) in enumerate(pictures) if start == first)
            message = f"a picture of {image_tokens[i]} tokens and {image_patches[i]} patches"
            raise Reject("too_long", f"{message} that no pack of {seq_len} tokens and {max_patches} patches holds")
        inside = [i for i, (start, _) in enumerate(pictures) if first <= start < end]
        yield Piece(_slice(whole, first, end, learned_from, inside), (inside[0], inside[-1] + 1) if inside else (0, 0))
        learned_from = end
        first = _overlapped(end, overlap, pictures)


def _piece_end(
    first: int,
    tokens: int,
    pictures: Sequence[tuple[int, int]],
    image_patches: Sequence[int],
    most: tuple[int, int],
) -> int:
    """The end of a piece that begins with this token: within both limits, and not within a picture."""
    end, patches = min(first + most[0], tokens), 0
    for (start, stop), size in zip(pictures, image_patches, strict=True):
        if first <= start < end:
            patches += size
            if stop > end or patches > most[1]:
                return start
    return end


def _overlapped(end: int, overlap: int, pictures: Sequence[tuple[int, int]]) -> int:
    """The begin of the piece behind a piece that ends here: no picture is in the overlap."""
    first = end - overlap
    return max([first, *(stop for _, stop in pictures if first < stop <= end)])


def _slice(whole: Rendered, first: int, end: int, learned_from: int, images: Sequence[int]) -> Rendered:
    low = max(learned_from, first + 1)
    spans = [(max(start, low) - first, min(stop, end) - first) for start, stop in whole.targets]
    targets = [(start, stop) for start, stop in spans if start < stop]
    return replace(
        whole,
        input_ids=whole.input_ids[first:end],
        targets=targets,
        weights=[1.0] * len(targets),
        image_starts=[whole.image_starts[i] - first for i in images],
    )
