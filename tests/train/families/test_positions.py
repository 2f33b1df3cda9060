"""Positions of conversations that mix pictures, videos and sounds are those of the model itself."""

from itertools import groupby

import numpy as np
import torch
from transformers import AutoModelForMultimodalLM

from lmms.train.families import family_of
from tests.kit.model.clips import noise_clip
from tests.kit.model.models import Shown, make_pack, picture, talk, tiny_config, tiny_recipe
from tests.kit.model.sounds import TINY_AUDIO, noise_sound

FAMILY = "qwen2_5_omni_thinker"


def media_of(rng: np.random.Generator) -> list[Shown]:
    """One to four media: videos may last longer than they are wide; at some steps the order of products matters."""

    def one() -> Shown:
        seed, kind = int(rng.integers(1000)), rng.integers(3)
        if kind == 0:
            return picture(seed, *(int(side) * 8 for side in rng.integers(1, 7, 2)))
        if kind == 1:
            width, height = (8 * int(side) for side in rng.integers(1, 6, 2))
            return noise_clip(seed, int(rng.integers(1, 12)), width, height, float(rng.choice([0.02, 0.08, 0.7, 1.4])))
        return noise_sound(seed, int(rng.integers(400, 32_000)), TINY_AUDIO)

    return [one() for _ in range(rng.integers(1, 5))]


def test_positions_of_all_media_are_those_of_the_model() -> None:
    with torch.device("meta"):
        hf = AutoModelForMultimodalLM.from_config(tiny_config(FAMILY))
    rng = np.random.default_rng(3)
    talks = [talk(i, 9, media_of(rng)) for i in range(30)]
    expected = []
    for one in talks:
        media = make_pack([one]).media
        # The rows of a video stand together, and each begins with its row 0.
        starts = np.cumsum([m.row is None or m.row.number == 0 for m in media]).tolist()
        videos = [[m for _, m in run] for _, run in groupby(zip(starts, media, strict=True), lambda pair: pair[0])]
        rows = [run for run in videos if run[0].row]
        images = [m.grid_thw for m in media if m.kind == "image"]
        ids = torch.tensor([one.ids])
        positions, _ = hf.model.get_rope_index(
            ids,
            torch.tensor(images) if images else None,
            torch.tensor([(len(run), *run[0].grid_thw[1:]) for run in rows]) if rows else None,
            torch.ones_like(ids),
            audio_seqlens=torch.tensor([TINY_AUDIO.frames(m.sound.samples) for m in media if m.sound]),
            second_per_grids=torch.tensor([run[0].row.step for run in rows if run[0].row]),
        )
        expected.append(positions)
    pack = make_pack(talks)
    found = family_of(FAMILY).positions(pack.cu_seqlens.astype(np.int64), pack.media, tiny_recipe(FAMILY).tower)
    assert torch.equal(torch.from_numpy(found), torch.cat(expected, dim=2))
