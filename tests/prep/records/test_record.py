"""Records: what is accepted, what is rejected, by which name and at which place."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lmms.configs.settings.sources import DEFAULT_READING
from lmms.prep.media.resize import Ask
from lmms.prep.records.read import read_record
from lmms.prep.records.record import Record, parse_record
from lmms.prep.records.strict_json import parse_line
from lmms.prep.reject import REASONS, Reject

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}


def conversation(*messages: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages) or [USER, ASSISTANT], **columns}


def image_turn(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def video_part(**asks: Any) -> dict[str, Any]:
    return {"type": "video", "video": "a.mp4", **asks}


def audio_part(**asks: Any) -> dict[str, Any]:
    return {"type": "audio", "audio": "a.wav", **asks}


def rejected(value: Any) -> Reject:
    with pytest.raises(Reject) as caught:
        parse_record(value)
    assert caught.value.reason in REASONS
    return caught.value


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [', "invalid_json"),
        (b'{"a": 1} {"a": 2}', "invalid_json"),
        (b'\xef\xbb\xbf{"a": 1}', "invalid_json"),
        (b'{"a": "\xe9"}', "not_utf8"),
        (b'{"a": NaN}', "invalid_number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_number"),
        (b"[" * 100_000, "nested_too_deep"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate_key"),
        (b'{"a": "\\ud83d"}', "lone_surrogate"),
    ],
)
def test_a_broken_line_is_rejected_by_name(line: bytes, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        parse_line(line)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_two_hundred_levels_are_read_whatever_calls_and_one_more_is_rejected(opening: str, closing: str) -> None:
    assert parse_line((opening * 200 + "1" + closing * 200).encode())
    assert parse_line(b'{"a": [' + b"[]," * 500 + b"1]}")
    with pytest.raises(Reject, match="nested deeper than 200"):
        parse_line((opening * 201 + "1" + closing * 201).encode())


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_line(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("value", "reason", "place"),
    [
        ([], "not_object", ""),
        ({"conversations": []}, "missing_messages", ""),
        ({"messages": None}, "messages_not_list", "messages"),
        ({"messages": []}, "empty_messages", "messages"),
        ({"messages": "not json"}, "invalid_json", "messages"),
        ({"text": "plain"}, "missing_messages", ""),
        (conversation(tools=[{}]), "bad_tools", "tools[0]"),
        (conversation(tools=3), "bad_tools", "tools"),
        (conversation(tools=["no json"]), "invalid_json", "tools[0]"),
        (conversation(tools=[{"name": "f"}], functions=[{"name": "f"}]), "bad_tools", "tools"),
        (conversation(chat_template_kwargs=[1]), "bad_template_option", "chat_template_kwargs"),
        (conversation(videos=["a.mp4"]), "count_mismatch", "videos"),
        (conversation(video="a.mp4"), "unread_media", "video"),
        (conversation("hello"), "message_not_object", "messages[0]"),
        (conversation({"content": "a"}), "missing_role", "messages[0]"),
        (conversation({"role": "User", "content": "a"}), "unknown_role", "messages[0]"),
        (conversation({"role": "user"}), "missing_content", "messages[0].content"),
        (conversation({"role": "user", "content": None}), "null_content", "messages[0].content"),
        (conversation({"role": "user", "content": 3}), "bad_content_type", "messages[0].content"),
        (conversation({"role": "user", "content": []}), "empty_content", "messages[0].content"),
        (conversation({**USER, "weight": 0.5}, ASSISTANT), "bad_weight", "messages[0].weight"),
        (conversation(weight=0), "no_target_tokens", "weight"),
        (conversation(USER, {**ASSISTANT, "reasoning_content": 3}), "bad_reasoning", "messages[1]"),
        (conversation(USER, {**ASSISTANT, "tool_calls": [{}]}), "bad_tool_call", "messages[1].tool_calls[0]"),
        (conversation(USER, {**ASSISTANT, "tool_calls": {}, "content": None}), "null_content", "messages[1].content"),
        (conversation(USER, {**ASSISTANT, "tool_calls": {"a": 1}}), "bad_tool_call", "messages[1].tool_calls"),
        (
            conversation(USER, {**ASSISTANT, "function_call": {"name": ""}}),
            "bad_tool_call",
            "messages[1].function_call",
        ),
        (conversation({**USER, "function_call": {"name": "f"}}), "bad_tool_call", "messages[0]"),
        (conversation({**USER, "reasoning": "x"}, ASSISTANT), "bad_reasoning", "messages[0]"),
        (conversation(USER), "no_assistant", "messages"),
        (conversation(image_turn("text")), "part_not_object", "messages[0].content[0]"),
        (conversation(image_turn({"type": "text"})), "part_missing_field", "messages[0].content[0]"),
        (conversation(image_turn({"type": "img", "image": "a"})), "unknown_part_type", "messages[0].content[0]"),
        (conversation(image_turn({"type": "video"})), "count_mismatch", "messages[0].content[0]"),
        (conversation(image_turn({"type": "video", "url": "a"})), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn({"type": "video", "video": []})), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn({"type": "video_url"})), "part_missing_field", "messages[0].content[0]"),
        (conversation(image_turn(video_part(fps=1, nframes=2))), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn(video_part(fps=-1))), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn(video_part(nframes=2.5))), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn(video_part(video_start=3, video_end=3))), "bad_range", "messages[0].content[0]"),
        (conversation(image_turn(video_part(min_frames=8, max_frames=4))), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn(video_part(sample_fps=2))), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn({**video_part(fps=2), "video": ["a.jpg"]})), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn({"type": ["text"]})), "unknown_part_type", "messages[0].content[0]"),
        (conversation({"role": {}, "content": "a"}), "unknown_role", "messages[0]"),
        (conversation(image_turn({"type": "input_audio"})), "bad_part", "messages[0].content[0]"),
        *(
            (conversation(image_turn({"type": "input_audio", "input_audio": value})), reason, "messages[0].content[0]")
            for value, reason in (
                ({"format": "wav"}, "part_missing_field"),
                ({"data": 1}, "bad_part"),
                ({"data": "UklG", "format": 1}, "bad_part"),
                ({"data": "UklG", "rate": 16000}, "bad_part"),
            )
        ),
        (
            conversation(image_turn({"type": "input_audio", "input_audio": {"data": ""}})),
            "bad_data_uri",
            "messages[0].content[0]",
        ),
        (conversation(image_turn(video_part(use_audio_in_video=True))), "audio_unsupported", "messages[0].content[0]"),
        (conversation(image_turn(video_part()), ASSISTANT, use_audio_in_video=True), "audio_unsupported", ""),
        (
            conversation(image_turn(video_part()), ASSISTANT, mm_processor_kwargs={"use_audio_in_video": True}),
            "audio_unsupported",
            "",
        ),
        (conversation(image_turn({"type": "audio"})), "count_mismatch", "messages[0].content[0]"),
        (conversation(image_turn({"type": "audio_url"})), "part_missing_field", "messages[0].content[0]"),
        (conversation(image_turn({"type": "audio", "audio": 1})), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn(audio_part(fps=1))), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn(audio_part(audio_start=-1))), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn(audio_part(audio_end="1"))), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn(audio_part(audio_start=2, audio_end=2))), "bad_range", "messages[0].content[0]"),
        (conversation(image_turn(audio_part()), ASSISTANT, audios=["b.wav"]), "count_mismatch", "audios"),
        (conversation({**ASSISTANT, "audio": {"id": "x"}}), "unread_media", "messages[0].audio"),
        (conversation(image_turn({"type": "image", "src": "a"})), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn({"type": "image", "image": "a", "url": "b"})), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn({"type": "image", "base64": b"a"})), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn({"type": "image", "url": {"url": "a"}})), "bad_part", "messages[0].content[0]"),
        *(
            (conversation(image_turn({"type": "image", "image": "a", **ask})), "bad_part", "messages[0].content[0]")
            for ask in (
                {"max_pixels": 0},
                {"max_pixels": "9"},
                {"min_pixels": 2.5},
                {"resized_height": 28},
                {"min_pixels": 9, "max_pixels": 8},
                {"max_pixels": True},
                {"max_pixels": float("nan")},
            )
        ),
        (conversation(image_turn({"type": "image", "image": 3})), "bad_part", "messages[0].content[0]"),
        (conversation(image_turn({"type": "image_url", "image_url": {"detail": "low"}})), "part_missing_field", None),
        (conversation(image_turn({"type": "image"})), "count_mismatch", "messages[0].content[0]"),
        (conversation(USER, ASSISTANT, images=["a.png"]), "count_mismatch", "images"),
        (conversation(USER, ASSISTANT, images="a.png"), "count_mismatch", "images"),
        (conversation(USER, ASSISTANT, images=3), "bad_part", "images"),
        (conversation(USER, ASSISTANT, images=[{}]), "bad_part", "images[0]"),
        (
            conversation(USER, {"role": "assistant", "content": [{"type": "image", "image": "a"}]}),
            "image_in_assistant",
            "messages[1]",
        ),
    ],
)
def test_a_bad_record_is_rejected_by_name_and_place(value: Any, reason: str, place: str | None) -> None:
    reject = rejected(value)
    assert reject.reason == reason
    assert place is None or reject.place == place
    assert reject.message


def test_the_message_of_a_wrong_key_names_the_key_found_and_the_key_expected() -> None:
    message = rejected(conversation(image_turn({"type": "image", "src": "a.png"}))).message
    assert "'src'" in message
    assert "'image'" in message


def references(record: Record) -> list[tuple[str, str | bytes]]:
    return [(image.ref.kind, image.ref.value) for image in record.images]


def test_every_form_of_an_image_part_is_read() -> None:
    turn = image_turn(
        {"type": "image_url", "image_url": {"url": "a b.png", "detail": "high"}},
        {"type": "image_url", "image_url": "b.png"},
        {"type": "image", "image": "c.png"},
        {"type": "image", "image": {"bytes": b"d", "path": None}},
        {"type": "image", "text": None},
        {"type": "text", "text": "and", "image": None},
        {"type": "image"},
    )
    record = parse_record(conversation(turn, ASSISTANT, images=["e.png", {"bytes": None, "path": "f.png"}]))
    assert references(record) == [
        ("url", "a b.png"), ("url", "b.png"), ("path", "c.png"), ("bytes", b"d"), ("path", "e.png"), ("path", "f.png"),
    ]  # fmt: skip
    assert record.messages[0].text == "and"


def test_parts_that_transformers_writes_are_read() -> None:
    turn = image_turn(
        {"type": "image", "url": "a.png"},
        {"type": "image", "path": "b%20.png"},
        {"type": "image", "base64": "QUJD"},
        {"type": "image", "image_url": {"url": "d.png"}},
        {"type": "image", "image": {"bytes": "QUJD", "path": "e.png"}},
        {"type": "image", "image": None, "url": "f.png", "path": None},
    )
    assert references(parse_record(conversation(turn, ASSISTANT))) == [
        ("url", "a.png"), ("path", "b%20.png"), ("base64", "QUJD"),
        ("url", "d.png"), ("base64", "QUJD"), ("url", "f.png"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"images": "a.png"}, [("path", "a.png")]),
        ({"images": {"bytes": b"a", "path": None}}, [("bytes", b"a")]),
        ({"images": b"a"}, [("bytes", b"a")]),
        ({"images": '["a.png"]'}, [("path", "a.png")]),
        ({"images": "[a].png"}, [("path", "[a].png")]),
        ({"images": [None, "a.png", {"bytes": None, "path": None}]}, [("path", "a.png")]),
        ({"image": "a.png"}, [("path", "a.png")]),
        ({"image": ["a.png"], "images": [None]}, [("path", "a.png")]),
        ({"images": ["a.png"], "image": "a.png"}, [("path", "a.png")]),
    ],
)
def test_a_bare_part_takes_from_every_form_of_the_column(columns: Any, expected: Any) -> None:
    record = parse_record(conversation(image_turn({"type": "image"}), ASSISTANT, **columns))
    assert references(record) == expected


def test_a_part_may_ask_for_a_size() -> None:
    asks = (
        {"max_pixels": 1000},
        {"min_pixels": 3136.0, "max_pixels": None},
        {"resized_height": 28, "resized_width": 56},
    )
    turn = image_turn(
        *({"type": "image", "image": "a.png", **ask} for ask in asks), {"type": "image", "image": "b.png"}
    )
    images = parse_record(conversation(turn, ASSISTANT)).images
    assert [image.ask for image in images] == [Ask(None, 1000), Ask(3136), Ask(size=(28, 56)), None]


NOTHING: list[Any] = [None, [], "", "[]", {}, "{}", [None], [{"bytes": None, "path": None}], "null"]


@pytest.mark.parametrize("column", ["images", "image", "videos", "audios", "tools", "pictures", "video"])
def test_a_column_of_nothing_is_no_column(column: str) -> None:
    for nothing in NOTHING:
        assert parse_record(conversation(**{column: nothing})).images == (), nothing


@pytest.mark.parametrize("value", ["a.jpg", ["a.jpg"], {"path": "a.jpg", "bytes": None}, b"a", [None, "a.jpg"]])
@pytest.mark.parametrize(
    "column",
    ["image", "image_path", "pictures", "img", "video", "audio_url", "Image", "IMAGE_PATH", "imageUrl", "image_list",
     "images_urls", "screenshot", "jpg", "PNG", "mp4", "meta.image"],
)  # fmt: skip
def test_media_that_no_part_takes_are_never_left_out_in_silence(column: str, value: Any) -> None:
    reject = rejected(conversation(**{column: value}))
    assert (reject.reason, reject.place) == ("unread_media", column)
    assert f"`{column}`" in reject.message
    reject = rejected(conversation({**USER, column: value}, ASSISTANT))
    assert (reject.reason, reject.place) == ("unread_media", f"messages[0].{column}")


def test_a_column_that_names_the_pictures_of_the_parts_once_more_is_no_loss() -> None:
    turn = image_turn({"type": "image", "image": "a.png"})
    assert parse_record(conversation(turn, ASSISTANT, image="a.png")).unused == ("column image",)
    assert rejected(conversation(turn, ASSISTANT, image_paths=["a.png", "b.png"])).reason == "unread_media"
    assert rejected(conversation(turn, ASSISTANT, video="a.mp4")).reason == "unread_media"


@pytest.mark.parametrize("value", ["book.txt", "a", "png.", ["a.txt"], None, 3])
def test_only_the_name_of_a_media_file_in_file_name_counts(value: Any) -> None:
    parse_record(conversation(file_name=value))
    for file in ("a.PNG", ["a.jpg"], "a.opus", "a.aac", "a.aiff"):
        assert rejected(conversation(file_name=file)).reason == "unread_media"


def test_numbers_about_pictures_are_no_pictures() -> None:
    assert parse_record(conversation(image=0, images=None, pictures=3, video=False)).images == ()


def test_messages_of_a_table_may_be_a_json_string() -> None:
    assert parse_record({"messages": json.dumps([USER, ASSISTANT])}) == parse_record(conversation())


def test_a_weight_of_0_makes_a_turn_context() -> None:
    record = parse_record(conversation(USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1.0}))
    assert [m.weight for m in record.messages] == [0, 0, 0, 1]


def test_columns_and_keys_that_are_not_used_are_named_once() -> None:
    record = parse_record(conversation({**USER, "ts": 1, "name": None}, ASSISTANT, score=1, empty=None, id="x"))
    assert record.unused == ("column score", "key messages[].ts")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"image": "a.jpg"}, "meta.image"),
        ({"about": [{"n": 1}, {"img_path": "in/a.PNG"}]}, "meta.about[1].img_path"),
        ([{"image": {"bytes": b"a", "path": None}}], "meta[0].image"),
        ({"picture": "data:image/png;base64,AAAA"}, "meta.picture"),
        ({"clip": {"video": "a.mp4"}}, "meta.clip.video"),
        ({"images": ["a.jpg", "b.jpg"]}, "meta.images"),
    ],
)
def test_media_within_a_column_that_nothing_reads_are_a_rejection(value: Any, path: str) -> None:
    reject = rejected(conversation(meta=value))
    assert (reject.reason, reject.place) == ("unread_media", path)
    assert (f"fields: {{images: [$.{path}]}}" in reject.message) == ("video" not in path)
    reject = rejected(conversation({**USER, "meta": value}, ASSISTANT))
    assert (reject.reason, reject.place) == ("unread_media", f"messages[0].{path}")
    with pytest.raises(Reject, match="names media"):
        read_record({"text": "a", "meta": value}, replace(DEFAULT_READING, form="text"))


def test_words_about_pictures_within_a_column_are_no_pictures() -> None:
    said = {"image": {"width": 3, "path": "train"}, "images": 2, "photo": "by Ada", "file_name": "a.txt", "a.jpg": 1}
    parse_record(conversation(meta=said))
    turn = image_turn({"type": "image", "image": "a.png"})
    parse_record(conversation(turn, ASSISTANT, meta={"image": "a.png"}))  # named once more
    parameters = {"type": "object", "properties": {"image": {"type": "string", "default": "a.png"}}}
    parse_record(conversation(tools=[{"name": "f", "parameters": parameters}]))
