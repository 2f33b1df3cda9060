"""One test for each way in which a pack can break the contract: what check_pack lets through, training reads."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lmms.configs.contract import mds
from lmms.configs.contract import pack as contract
from lmms.configs.contract.check import PackLimits, check_pack
from lmms.configs.contract.pack import COLUMNS, Media, Pack, Row

IMAGE = 99


def test_a_sound_pack_has_no_faults(image_pack: Pack, text_pack: Pack, limits: PackLimits) -> None:
    assert check_pack(image_pack, limits) == []
    assert check_pack(text_pack, replace(limits, seq_len=300)) == []
    assert check_pack(text_pack, replace(limits, seq_len=300, image_token_id=None, merge_size=1)) == []


def test_a_pack_round_trips_through_its_columns(image_pack: Pack, text_pack: Pack) -> None:
    for pack in (image_pack, text_pack):
        columns = mds.decode_sample(COLUMNS, mds.encode_sample(COLUMNS, pack.to_columns()))
        again = Pack.from_columns(columns)
        assert again.media == pack.media
        assert again.media_bytes == pack.media_bytes
        for name in ("input_ids", "cu_seqlens", "targets", "target_weights", "sample_weights", "samples"):
            np.testing.assert_array_equal(getattr(again, name), getattr(pack, name))
            assert getattr(again, name).dtype == getattr(pack, name).dtype


def test_media_json_has_the_keys_that_the_contract_states() -> None:
    media = Media("image", 4, 8, (60, 50), (1, 4, 4), 5)
    entry = {"kind": "image", "start": 4, "end": 8, "size": [60, 50], "grid_thw": [1, 4, 4], "bytes": 5}
    assert media.to_json() == entry
    assert Media.from_json(entry) == media


@pytest.mark.parametrize("change", [{"kind": None}, {"size": [1]}, {"size": 5}, {"grid_thw": None}])
def test_media_without_a_key_or_with_another_shape_are_a_value_error(change: dict[str, Any], image_pack: Pack) -> None:
    columns = image_pack.to_columns()
    entry = {**columns["media"][0], **change}
    entries = [{key: value for key, value in entry.items() if value is not None}]
    with pytest.raises(ValueError, match=r"is damaged|unpack"):
        Pack.from_columns(columns | {"media": entries})


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 7},
        {"start": "4"},
        {"end": 8.0},
        {"bytes": True},
        {"size": [60, [50]]},
        {"row": {"number": "0", "rows": 1, "step": 1.0, "seconds": [0.0], "bytes": [5]}},
        {"row": {"number": 0, "rows": 1, "step": float("nan"), "seconds": [0.0], "bytes": [5]}},
        {"row": {"number": 0, "rows": 1, "step": 1.0, "seconds": ["0"], "bytes": [5]}},
        {"sound": {"samples": None, "chunks": [1]}},
    ],
)
def test_media_with_a_value_of_another_type_are_a_value_error(change: dict[str, Any], image_pack: Pack) -> None:
    columns = image_pack.to_columns()
    with pytest.raises(ValueError, match="another type"):
        Pack.from_columns(columns | {"media": [{**columns["media"][0], **change}]})


def test_lengths_patches_segments_and_media_data(image_pack: Pack) -> None:
    one = image_pack.media[0]
    two = replace(image_pack, media=(one, replace(one, bytes=2)), media_bytes=b"abcdefg")
    assert image_pack.lengths.tolist() == [3, 7]
    assert [image_pack.segment_of(i) for i in (0, 2, 3, 9)] == [0, 0, 1, 1]
    assert (image_pack.patches, two.patches) == (16, 32)
    assert two.media_data() == [b"abcde", b"fg"]


def test_the_tables_name_only_arrow_types() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    for table in (contract.PACK_TABLE, contract.SAMPLE_TABLE, contract.REJECT_TABLE):
        for kind in table.values():
            inner = kind.removeprefix("list<").removesuffix(">")
            assert pyarrow.type_for_alias(inner)


def media(**changes: Any) -> Callable[[Pack], Pack]:
    return lambda pack: replace(pack, media=(replace(pack.media[0], **changes),))


def ids(*values: int) -> Callable[[Pack], Pack]:
    return lambda pack: replace(pack, input_ids=np.array(values, np.int32))


def cuts(*values: int) -> Callable[[Pack], Pack]:
    return lambda pack: replace(pack, cu_seqlens=np.array(values, np.int32))


def targets(*spans: list[int]) -> Callable[[Pack], Pack]:
    return lambda pack: replace(pack, targets=np.array(spans, np.int32))


def weights(*values: float) -> Callable[[Pack], Pack]:
    return lambda pack: replace(pack, target_weights=np.array(values, np.float64))


def sample_weights(*values: float) -> Callable[[Pack], Pack]:
    return lambda pack: replace(pack, sample_weights=np.array(values, np.float64))


def empty(name: str) -> Callable[[Pack], Pack]:
    return lambda pack: replace(pack, **{name: getattr(pack, name)[:0]})


def twice(pack: Pack) -> Pack:
    return replace(pack, media=pack.media * 2, media_bytes=pack.media_bytes * 2)


FAULTS: dict[str, tuple[Callable[[Pack], Pack], str]] = {
    "no tokens": (empty("input_ids"), "input_ids has shape (0,)"),
    "no segments": (cuts(0), "samples has shape (2, 2), expected (0, 2)"),
    "no cuts": (empty("cu_seqlens"), "cu_seqlens has shape (0,)"),
    "no targets": (empty("targets"), "targets has shape (0, 2)"),
    "ids in two dimensions": (lambda p: replace(p, input_ids=p.input_ids[None]), "input_ids has shape (1, 10)"),
    "targets in one dimension": (lambda p: replace(p, targets=p.targets.ravel()), "targets has shape (4,)"),
    "first cut is not 0": (cuts(1, 3, 10), "cu_seqlens [1, 3, 10]... does not cut 10 tokens"),
    "last cut is short of the end": (cuts(0, 3, 9), "does not cut 10 tokens"),
    "an empty segment": (cuts(0, 0, 10), "does not cut 10 tokens"),
    "cuts that go back": (cuts(0, 12, 10), "does not cut 10 tokens"),
    "a sample too few": (lambda p: replace(p, samples=p.samples[:1]), "samples has shape (1, 2), expected (2, 2)"),
    "a span without tokens": (targets([1, 3], [9, 9]), "targets are not ordered"),
    "spans that overlap": (targets([1, 3], [2, 3]), "targets are not ordered"),
    "spans out of order": (targets([8, 10], [1, 3]), "targets are not ordered"),
    "a span before the pack": (targets([-1, 3], [8, 10]), "targets are not ordered"),
    "a span beyond the pack": (targets([1, 3], [8, 11]), "targets are not ordered"),
    "a target without a token before it": (targets([0, 3], [8, 10]), "starts a segment"),
    "a target that starts the second segment": (targets([1, 3], [3, 4]), "starts a segment"),
    "a span across segments": (targets([1, 4], [8, 10]), "crosses its end"),
    "a weight too few": (weights(1), "target_weights has shape (1,), expected (2,)"),
    "a weight of zero": (weights(1, 0), "target_weights are not all from 1e-12 to 1e+12"),
    "a negative weight": (weights(1, -1), "target_weights are not all from 1e-12 to 1e+12"),
    "a weight that is no number": (weights(1, np.nan), "target_weights are not all from 1e-12 to 1e+12"),
    "an infinite weight": (weights(1, np.inf), "target_weights are not all from 1e-12 to 1e+12"),
    "a weight too small to be summed": (weights(1, 1e-13), "target_weights are not all from 1e-12 to 1e+12"),
    "a conversation's weight too few": (sample_weights(1), "sample_weights has shape (1,), expected (2,)"),
    "a conversation's weight of zero": (sample_weights(1, 0), "sample_weights are not all from 1e-12 to 1e+12"),
    "a conversation's weight too large": (sample_weights(1, 1e13), "sample_weights are not all from 1e-12 to 1e+12"),
    "media bytes too few": (lambda p: replace(p, media_bytes=b"abcd"), "media_bytes has 4 bytes, media states 5"),
    "media before the pack": (media(start=-1, end=3), "media 0 at [-1, 3) is out of order"),
    "media beyond the pack": (media(start=8, end=12), "media 0 at [8, 12) is out of order, out of the pack"),
    "media without tokens": (media(end=4), "media 0 at [4, 4) is out of order"),
    "media across segments": (media(start=2, end=6), "media 0 at [2, 6) is out of order, out of the pack or across"),
    "media out of order": (twice, "media 1 at [4, 8) is out of order"),
    "a grid of another size": (media(grid_thw=(1, 4, 2)), "media 0 has 4 tokens, its grid [1, 4, 2] needs another"),
    "a grid that cannot be merged": (media(grid_thw=(1, 1, 16)), "media 0 has grid [1, 1, 16], not in whole squares"),
    "a placeholder without media": (ids(1, 2, IMAGE, 4, IMAGE, IMAGE, IMAGE, IMAGE, 5, 6), "image placeholders"),
    "media without its placeholders": (ids(1, 2, 3, 4, IMAGE, IMAGE, IMAGE, 7, 5, 6), "image placeholders"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_pack_finds(fault: str, image_pack: Pack, limits: PackLimits) -> None:
    break_it, expected = FAULTS[fault]
    assert expected in "; ".join(check_pack(break_it(image_pack), limits))


def test_check_pack_finds_more_tokens_and_patches_than_fit(image_pack: Pack, limits: PackLimits) -> None:
    tight = replace(limits, seq_len=9, max_patches=15)
    assert check_pack(image_pack, tight) == ["10 tokens, at most 9 fit", "16 patches, at most 15 fit"]


def test_check_pack_finds_media_in_a_pack_of_a_text_model(image_pack: Pack, limits: PackLimits) -> None:
    assert check_pack(image_pack, replace(limits, image_token_id=None)) == ["media in a pack of a text model"]


def test_check_pack_names_every_fault(image_pack: Pack, limits: PackLimits) -> None:
    bad = weights(1, 0)(media(grid_thw=(1, 4, 2))(image_pack))
    assert len(check_pack(bad, limits)) == 2


VIDEO = 98


@pytest.fixture
def video_pack() -> Pack:
    """One conversation with a video of two rows of 2 x 2 patches: three frames of 4, 5 and 6 bytes."""
    rows = (Row(0, 2, 1.0, (0.0, 0.5), (4, 5)), Row(1, 2, 1.0, (1.0,), (6,)))
    return Pack(
        input_ids=np.array([1, VIDEO, VIDEO, 2, 3], np.int32),
        cu_seqlens=np.array([0, 5], np.int32),
        targets=np.array([[3, 5]], np.int32),
        target_weights=np.ones(1),
        sample_weights=np.ones(1),
        samples=np.zeros((1, 2), np.int64),
        media=tuple(
            Media("video", i + 1, i + 2, (28, 28), (1, 2, 2), sum(row.bytes), row) for i, row in enumerate(rows)
        ),
        media_bytes=b"x" * 15,
    )


def test_rows_of_a_video_are_entries_of_media_that_come_back_from_their_columns(
    video_pack: Pack, limits: PackLimits
) -> None:
    assert check_pack(video_pack, replace(limits, video_token_id=VIDEO)) == []
    columns = json.loads(json.dumps(video_pack.to_columns()["media"]))
    assert tuple(map(Media.from_json, columns)) == video_pack.media
    assert (video_pack.patches, video_pack.sum_squared_patches) == (8, 32)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"row": None}, "media 0 of kind 'video' lacks a row of frames"),
        ({"kind": "image"}, "media 0 of kind 'image' has a row of frames"),
        ({"row": Row(2, 2, 1.0, (0.0,), (9,))}, "media 0 is row 2 of 2"),
        ({"row": Row(0, 2, 1.0, (0.0,), (4, 5))}, "with 2 frames: no such row"),
        ({"row": Row(0, 2, 1.0, (0.0, 0.5), (4, 4))}, "media 0 has 9 bytes, its frames have 8"),
        ({"end": 3}, "media 1 at [2, 3) is out of order"),
    ],
)
def test_check_pack_finds_rows_that_cannot_be(
    change: dict[str, Any], expected: str, video_pack: Pack, limits: PackLimits
) -> None:
    first, second = video_pack.media
    faults = check_pack(
        replace(video_pack, media=(replace(first, **change), second)), replace(limits, video_token_id=VIDEO)
    )
    assert expected in "; ".join(faults)


def test_a_video_for_a_model_without_a_placeholder_for_videos_is_a_fault(video_pack: Pack, limits: PackLimits) -> None:
    assert "media 0 is of kind 'video', which has no placeholder here" in check_pack(video_pack, limits)
