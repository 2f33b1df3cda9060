"""Real sounds: a build gives the tokens of the Hugging Face processors, and takes or rejects odd sounds as expected."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor

from lmms.configs.contract.check import check_pack, pack_limits
from lmms.configs.contract.media.sounds import samples_of
from lmms.configs.contract.pack import Pack
from lmms.prep.reject import Reject
from lmms.prep.video.process import stop
from lmms.train.batch.mel import sound_frames
from tests.kit.media.av import edge_cases, made_of, records_of, wrong_outcomes
from tests.kit.media.sounds import pcm, tone

RATE = 16000
MODELS = ("qwen2-audio", "qwen2.5-omni")


@pytest.fixture(scope="module", autouse=True)
def no_decoder_is_left() -> Iterator[None]:
    yield
    stop()


def parts_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    contents = [m["content"] for m in record["messages"] if isinstance(m["content"], list)]
    return [part for content in contents for part in content]


def is_heard(record: dict[str, Any]) -> bool:
    """Whether a record has sounds and text alone."""
    kinds = {part["type"] for part in parts_of(record)}
    return bool(kinds & {"audio", "audio_url", "input_audio"}) and kinds <= {
        "text",
        "audio",
        "audio_url",
        "input_audio",
    }


def official(record: dict[str, Any], sounds: list[Any], processor: Any) -> Any:
    """What the processor makes of a record, the ids of one conversation and the frames of each sound."""
    turns = [{"role": m["role"], "content": [shown(part) for part in listed(m["content"])]} for m in record["messages"]]
    text = processor.apply_chat_template(turns, tokenize=False)
    return processor(text=[text], audio=sounds, sampling_rate=RATE, return_tensors="pt")


def listed(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def shown(part: dict[str, Any]) -> dict[str, Any]:
    return part if part["type"] == "text" else {"type": "audio", "audio_url": "x"}


@pytest.mark.parametrize("model", MODELS)
def test_real_sounds_have_the_ids_and_frames_of_the_processor(
    model: str, shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    av = shared / "data" / "av"
    records = [record for record in records_of(av / "records.jsonl.zst") if is_heard(record)]
    assert len(records) >= 170
    records = records[::12] + [record for record in records if "fsdd" not in json.dumps(record)]
    folder, packs = made_of(records, av, model_folders[model], tmp_path)
    processor = AutoProcessor.from_pretrained(folder.path)
    limits = pack_limits(65536, 2**20, folder.vision, folder.image_token_id, None, folder.audio_token_id, folder.audio)
    for record, pack in zip(records, packs, strict=True):
        assert isinstance(pack, Pack), (pack, record)
        assert check_pack(pack, limits) == []
        sounds = [samples_of(data) for data in pack.media_data()]
        assert [len(sound) for sound in sounds] == [m.sound.samples for m in pack.media if m.sound]
        made = official(record, sounds, processor)
        assert pack.input_ids.tolist() == made["input_ids"][0].tolist()
        for m, data, frames in zip(pack.media, pack.media_data(), made["input_features"], strict=True):
            assert m.sound is not None
            assert folder.audio is not None
            found = sound_frames(data, m.sound, folder.audio)
            np.testing.assert_array_equal(found, frames[:, : found.shape[1]])


@pytest.mark.parametrize("model", MODELS)
def test_every_edge_case_of_sounds_is_taken_or_rejected_as_expected(
    model: str, shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    av = shared / "data" / "av"
    records = edge_cases(av, "a")
    assert len(records) >= 25
    _, made = made_of(records, av, model_folders[model], tmp_path, audio_too_long="cut")
    assert wrong_outcomes(records, made, av, has_each_sound) == {}


def has_each_sound(record: dict[str, Any], sample: Pack, media: dict[str, Any]) -> bool:
    return len(sample.media) == sum(part["type"] != "text" for part in parts_of(record))


def asks(sound: str, **clip: float) -> dict[str, Any]:
    content = [{"type": "audio", "audio": sound, **clip}, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A tone."}]}


def test_lengths_at_which_a_sound_is_cut_rejected_or_too_short(
    shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    lengths = {"tiny": 320, "least": 321, "full": 480_000, "long": 480_001}
    for name, samples in lengths.items():
        (tmp_path / f"{name}.wav").write_bytes(pcm(tone(samples), "PCM_16"))
    records = [*(asks(f"{name}.wav") for name in lengths), asks("long.wav", audio_start=1, audio_end=2)]
    model = model_folders["qwen2-audio"]
    _, made = made_of(records, tmp_path, model, tmp_path)
    assert [each.reason if isinstance(each, Reject) else len(each.media) for each in made] == [
        *("audio_too_short", 1, 1, "audio_too_long", 1)
    ]
    tiny, too_long = made[0], made[3]
    assert isinstance(tiny, Reject)
    assert isinstance(too_long, Reject)
    assert tiny.message.startswith("320 samples at 16,000 a second give the model no token")
    assert too_long.message.startswith("480,001 samples at 16,000 a second (30.0 s), the model hears 480,000 (30 s)")
    _, cut = made_of(records, tmp_path, model, tmp_path, audio_too_long="cut")
    full, long, clip = cut[2:]
    assert isinstance(full, Pack)
    assert isinstance(long, Pack)
    assert isinstance(clip, Pack)
    assert np.array_equal(samples_of(long.media_bytes), samples_of(full.media_bytes))
    assert (len(samples_of(clip.media_bytes)), len(full.input_ids)) == (RATE, len(long.input_ids))


def test_a_model_that_hears_nothing_rejects_a_sound_by_name(
    shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "a.wav").write_bytes(pcm(tone(RATE), "PCM_16"))
    reasons = {}
    for model in ("qwen2.5-vl", "qwen3-text"):
        _, (reject,) = made_of([asks("a.wav")], tmp_path, model_folders[model], tmp_path)
        assert isinstance(reject, Reject)
        reasons[model] = (reject.reason, reject.place)
    place = "messages[0].content[0]"
    assert reasons == {"qwen2.5-vl": ("audio_unsupported", place), "qwen3-text": ("images_unsupported", place)}
