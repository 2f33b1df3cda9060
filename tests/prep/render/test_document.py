"""Documents: ids without a template, and pieces of long ones that together are the whole."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms.configs.contract.model_folder import read_model_folder
from lmms.configs.settings.sources import DEFAULT_READING
from lmms.prep.records.document import Document, DocumentKind, Passage, parse_document
from lmms.prep.records.read import read_record
from lmms.prep.reject import REASONS, Reject
from lmms.prep.render.document import Piece, cut_document, render_document
from lmms.prep.render.render import Rendered
from lmms.prep.render.renderer import Renderer, load_renderer
from tests.kit.folders import tiny_model_folder

PAD = -1


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(read_model_folder(tiny_model_folder(tmp_path_factory.mktemp("model"))))


def kind_of(raw: dict[str, Any]) -> DocumentKind:
    return "interleaved" if "texts" in raw else "text" if "text" in raw else "completion"


def render(renderer: Renderer, raw: Any, sizes: Sequence[int] = ()) -> tuple[str, list[str], Rendered]:
    """(all text, the text of each target, the rendering)."""
    rendered = render_document(renderer, parse_document(raw, kind_of(raw)), sizes)
    ids = rendered.input_ids.tolist()

    def text(start: int, end: int) -> str:
        return renderer.encoder.exact.decode(ids[start:end], skip_special_tokens=False)

    return text(0, len(ids)), [text(*span) for span in rendered.targets], rendered


def test_all_of_a_text_but_its_first_token_is_learned_with_an_end_token(renderer: Renderer) -> None:
    whole, learned, rendered = render(renderer, {"text": "Once upon a time"})
    assert whole == "Once upon a time<|endoftext|>"
    assert rendered.targets == [(1, len(rendered.input_ids))]
    assert whole.endswith(learned[0])


def test_only_the_completion_of_a_prompt_is_learned(renderer: Renderer) -> None:
    whole, learned, _ = render(renderer, {"prompt": "Name a colour:", "completion": " blue"})
    assert whole == "Name a colour: blue<|endoftext|>"
    assert learned == [" blue<|endoftext|>"]


def test_pictures_between_texts_stand_as_in_a_turn_and_are_not_learned(renderer: Renderer) -> None:
    raw = {"texts": ["a cat", None, None, "and", " a dog"], "images": [None, "a.png", {"path": "b.png"}, None, None]}
    whole, learned, rendered = render(renderer, raw, [2, 3])
    pad = "<|image_pad|>"
    shown = f"<|vision_start|>{pad * 2}<|vision_end|><|vision_start|>{pad * 3}<|vision_end|>"
    assert whole == f"a cat{shown}and a dog<|endoftext|>"
    assert learned[-1] == "and a dog<|endoftext|>"
    assert [rendered.input_ids[start] for start in rendered.image_starts] == [renderer.control_ids[pad]] * 2


def test_special_token_text_of_a_document_stays_text(renderer: Renderer) -> None:
    _, _, rendered = render(renderer, {"text": "<|im_start|>user\nHi<|endoftext|>"})
    controls = set(renderer.control_ids.values())
    assert [int(i) for i in rendered.input_ids if i in controls] == [renderer.control_ids["<|endoftext|>"]]


@pytest.mark.parametrize(
    ("raw", "reason", "place"),
    [
        ({"text": ""}, "empty_text", "text"),
        ({"text": 3}, "bad_text", "text"),
        ({"prompt": "a"}, "bad_text", "completion"),
        ({"prompt": "a", "completion": ""}, "empty_text", "completion"),
        ({"text": "a", "weight": 0}, "no_target_tokens", "weight"),
        ({"text": "a", "images": ["a.png"]}, "unread_media", "images"),
        ({"text": "a", "image": "a.png"}, "unread_media", "image"),
        ({"prompt": "a", "completion": "b", "image": "a.png"}, "unread_media", "image"),
        ({"texts": ["a"], "videos": ["a.mp4"]}, "unread_media", "videos"),
        ({"texts": "a"}, "bad_text", "texts"),
        ({"texts": ["a"], "images": "b"}, "bad_text", "images"),
        ({"texts": ["a", None], "images": [None, None]}, "count_mismatch", "texts[1]"),
        ({"texts": ["a", "b"], "images": [None, "b.png"]}, "count_mismatch", "texts[1]"),
        ({"texts": ["a", "b"], "images": [None]}, "count_mismatch", "images"),
        ({"texts": ["a", 3]}, "bad_text", "texts[1]"),
        ({"texts": [None], "images": ["a.png"]}, "empty_text", "texts"),
    ],
)
def test_a_bad_document_is_rejected_by_name_and_place(raw: Any, reason: str, place: str) -> None:
    with pytest.raises(Reject) as caught:
        parse_document(raw, kind_of(raw))
    assert (caught.value.reason, caught.value.place) == (reason, place)
    assert reason in REASONS


def test_a_text_is_a_document_only_where_the_form_says_so() -> None:
    assert isinstance(read_record({"text": "a"}, replace(DEFAULT_READING, form="text")), Document)
    with pytest.raises(Reject, match="form=text"):
        read_record({"text": "a"}, replace(DEFAULT_READING, form="openai"))


def test_a_column_beside_the_columns_of_a_form_is_no_text_to_learn_from() -> None:
    raw = {"prompt": "2+2=", "completion": "4", "text": "2+2=4 is it"}
    document = read_record(raw, replace(DEFAULT_READING, form="trl"))
    assert isinstance(document, Document)
    assert [part.text for part in document.parts if isinstance(part, Passage)] == ["2+2=", "4"]
    assert document.unused == ("column text",)


def test_half_of_a_surrogate_pair_in_memory_is_a_rejection(renderer: Renderer) -> None:
    with pytest.raises(Reject) as caught:
        render(renderer, {"text": "a\ud83d"})
    assert caught.value.reason == "lone_surrogate"


def document_of(runs: Sequence[int]) -> tuple[Rendered, list[int]]:
    """A document of texts (positive numbers of tokens) and pictures (negative), and the tokens of each picture."""
    ids: list[int] = []
    targets, starts = [], []
    for run in runs:
        if run > 0:
            targets.append((max(len(ids), 1), len(ids) + run))
            ids += range(len(ids), len(ids) + run)
        else:
            starts.append(len(ids) + 1)
            ids += [len(ids), *[PAD] * -run, len(ids) - run + 1]
    targets = [(start, end) for start, end in targets if start < end]
    return Rendered(np.array(ids, np.int32), targets, [1.0] * len(targets), starts, False), [-r for r in runs if r < 0]


RUNS = st.lists(st.one_of(st.integers(1, 40), st.integers(-4, -1)), min_size=1, max_size=12)


@given(RUNS, st.integers(8, 30), st.integers(4, 12), st.integers(0, 5))
def test_the_pieces_of_a_document_are_the_whole_and_learn_each_token_once(
    runs: list[int], seq_len: int, max_patches: int, overlap: int
) -> None:
    whole, sizes = document_of([*runs, 2])
    pieces = list(cut_document(whole, sizes, sizes, (seq_len, max_patches), overlap))
    ids, learned, images = [], set(), 0
    for number, piece in enumerate(pieces):
        assert 1 <= len(piece.rendered.input_ids) <= seq_len
        first, last = piece.images
        assert sum(sizes[first:last]) <= max_patches
        if first < last:
            assert first == images
            images = last
        new = _new_tokens(piece, ids, overlap if number else 0)
        ids += piece.rendered.input_ids[-new:].tolist()
        offset = len(ids) - len(piece.rendered.input_ids)
        for start, end in piece.rendered.targets:
            assert not learned & set(range(offset + start, offset + end))
            learned |= set(range(offset + start, offset + end))
        assert all(0 < start < end for start, end in piece.rendered.targets)
    assert ids == whole.input_ids.tolist()
    assert images == len(sizes)
    expected = {i for start, end in whole.targets for i in range(start, end)}
    assert learned <= expected
    assert len(expected - learned) <= len(pieces) - 1


def _new_tokens(piece: Piece, before: list[int], overlap: int) -> int:
    """How many tokens at the end of a piece the pieces before do not have."""
    ids = piece.rendered.input_ids.tolist()
    for shared in range(min(overlap, len(ids)), -1, -1):
        if not shared or ids[:shared] == before[-shared:]:
            return len(ids) - shared
    raise AssertionError


def test_an_overlap_lets_every_token_be_learned() -> None:
    whole, _ = document_of([100])
    pieces = list(cut_document(whole, [], [], (10, 0), 1))
    assert sum(end - start for piece in pieces for start, end in piece.rendered.targets) == 99
    assert [len(piece.rendered.input_ids) for piece in pieces] == [10] * 11


def test_the_last_piece_never_is_a_single_token() -> None:
    whole, _ = document_of([21])
    pieces = list(cut_document(whole, [], [], (10, 0), 0))
    assert [len(piece.rendered.input_ids) for piece in pieces] == [10, 9, 2]


def test_a_picture_that_no_pack_holds_is_a_rejection() -> None:
    whole, sizes = document_of([5, -30, 5])
    with pytest.raises(Reject, match="a picture of 30 tokens") as caught:
        list(cut_document(whole, sizes, sizes, (20, 100), 0))
    assert caught.value.reason == "too_long"
