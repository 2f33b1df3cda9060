"""Sounds of a batch: mel frames are those of transformers' extractor, and every feature finds its row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from lmms.configs.contract.media.sounds import samples_of
from lmms.configs.contract.model_folder import read_model_folder
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.mel import mel_frames
from lmms.train.batch.sounds import Sounds
from lmms.train.parallel.share import Share, share_media, sound_sizes
from tests.kit.model.models import AUDIO_TOKEN, AUDIOS, SOUND_FAMILIES, make_pack, places, talk, tiny_recipe
from tests.kit.model.sounds import TINY_AUDIO, noise_sound

LENGTHS = (1, 41, 160, 161, 200, 399, 15_999, 16_001, 160_000)
"""Samples: around a hop, half a frame and a frame of the extractors, and whole seconds."""


def sounds_of(batch: Batch) -> Sounds:
    assert batch.sounds is not None
    return batch.sounds


@pytest.mark.parametrize("name", ["qwen2-audio", "qwen2.5-omni"])
def test_frames_are_those_of_the_real_extractor(model_folders: dict[str, Path], name: str) -> None:
    audio = read_model_folder(model_folders[name]).audio
    assert audio is not None
    extractor = WhisperFeatureExtractor.from_pretrained(model_folders[name])
    lengths = LENGTHS if not audio.is_filled else (*LENGTHS, *(audio.longest - n for n in (0, 1, 160, 361)))
    rng = np.random.default_rng(0)
    for samples in lengths:
        sound = rng.uniform(-0.1, 0.1, samples).astype(np.float32)
        sound[-1] = 0.9  # the loudest frame may be one behind the sound
        made = extractor([sound], sampling_rate=audio.sample_rate, return_attention_mask=True, padding="max_length")
        frames = mel_frames(sound, audio)
        assert int(made["attention_mask"].sum()) == audio.frames(samples)
        behind = min(2, audio.longest // audio.hop - audio.frames(samples)) if audio.is_filled else 0
        assert frames.shape == (audio.mel_bins, audio.frames(samples) + behind)
        expected = made["input_features"][0][:, : frames.shape[1]]
        # A matrix product of few columns may be summed in another order; one of more columns is not.
        np.testing.assert_allclose(frames, expected, rtol=0, atol=3e-7 if samples <= 400 else 0)


@pytest.mark.parametrize("fault", ["bytes", "length"])
def test_a_sound_that_fails_stops_the_run_or_its_conversation_is_masked(fault: str) -> None:
    pack = make_pack([talk(0, 9), talk(1, 7, [noise_sound(1, 4000, TINY_AUDIO)], row=4)])
    (media,) = pack.media
    bad = replace(pack, media_bytes=b"x" * media.bytes)
    reason = "the stored sound cannot be read"
    if fault == "length":
        other = noise_sound(2, 3999, TINY_AUDIO)
        bad = replace(pack, media=(replace(media, bytes=len(other.data)),), media_bytes=other.data)
        reason = "the sound has 3,999 samples, the shard states 4,000"
    with pytest.raises(TrainError, match=rf"pack 3, segment 1: second\.jsonl row 4: {reason}.*on_bad_media: mask"):
        make_batch([bad], tiny_recipe("qwen2_5_omni_thinker"), places(3))
    masked = make_batch([bad], tiny_recipe("qwen2_5_omni_thinker", "mask"), places(3))
    whole = make_batch([pack], tiny_recipe("qwen2_5_omni_thinker"), places(3))
    assert len(masked.masked) == 1
    counts = masked.target_rows < len(talk(0, 9).ids)
    assert torch.equal(masked.weights, whole.weights * counts)
    assert sounds_of(masked).frames.shape == sounds_of(whole).frames.shape


def packs(family: str) -> list[Pack]:
    sounds = [noise_sound(i, samples, AUDIOS[family]) for i, samples in enumerate((480, 16_000, 801, 5000))]
    return [make_pack([talk(0, 9), talk(1, 7, sounds[:3])]), make_pack([talk(2, 12, sounds[3:])])]


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("family", SOUND_FAMILIES)
def test_features_of_all_ranks_find_their_rows(family: str, ranks: int) -> None:
    made, recipe = packs(family), tiny_recipe(family)
    whole = make_batch(made, recipe, places(3, 4))
    media = [
        replace(m, start=m.start + start, end=m.end + start)
        for pack, start in zip(made, (0, len(made[0].input_ids)), strict=True)
        for m in pack.media
    ]
    parts = [make_batch(made, replace(recipe, share=Share(i, ranks)), places(3, 4)) for i in range(ranks)]
    length = parts[0].input_ids.shape[1]
    outgoing = []
    for part, entries in zip(parts, share_media(sound_sizes(media), ranks), strict=True):
        exchange, tower = sounds_of(part).exchange, sounds_of(part).tower
        assert exchange is not None
        rows = [row for i in entries for row in range(media[i].start, media[i].end)]
        assert sum(exchange.sent) == len(rows)
        # A rank without a sound hears silence of one token.
        assert isinstance(tower["pool_indices"], torch.Tensor)
        assert len(tower["pool_indices"]) == max(len(rows), 1)
        outgoing.append(torch.tensor(rows, dtype=torch.int64).split(list(exchange.sent)))
    for i, part in enumerate(parts):
        heard = sounds_of(part)
        assert torch.equal(heard.rows + i * length, torch.cat([sent[i] for sent in outgoing]))
        assert torch.equal(heard.rows.sort().values, (part.input_ids[0] == AUDIO_TOKEN).nonzero().flatten())
    assert torch.equal(sounds_of(whole).rows, (whole.input_ids[0] == AUDIO_TOKEN).nonzero().flatten())


def test_the_largest_sound_goes_to_the_rank_with_the_least() -> None:
    media = packs("qwen2_5_omni_thinker")[0].media
    # Of 2, 50 and 3 positions.
    assert share_media(sound_sizes(media), 2) == [[1], [0, 2]]


def test_stored_samples_are_those_that_frames_are_made_of() -> None:
    sound = noise_sound(5, 16_000, TINY_AUDIO)
    batch = make_batch([make_pack([talk(1, 7, [sound])])], tiny_recipe("qwen2_5_omni_thinker"), places(0))
    chunks = sounds_of(batch).frames
    assert chunks.shape == (13, TINY_AUDIO.mel_bins, 8)
    frames = torch.from_numpy(mel_frames(samples_of(sound.data), TINY_AUDIO))
    assert torch.equal(chunks.transpose(0, 1).flatten(1)[:, :100], frames)
