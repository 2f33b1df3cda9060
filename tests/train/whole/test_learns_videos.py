"""A small model learns what only the order of a video's frames tells, and goes on after SIGKILL as if nothing was."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.video.process import stop
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.run import train
from lmms.train.watch.metrics import StepLog
from tests.kit.folders import VIDEO_TEMPLATE, tiny_model_folder
from tests.kit.media.videos import of_frames
from tests.kit.runs import read_metrics, read_tensors, run_config, silent, train_until_killed

COLOURS = {"red": (210, 50, 40), "blue": (40, 60, 210)}
SIDE, STEPS = 32, 80
UNSEEN = math.log(2) / 3
"""The loss of a model that knows all but the colour: of three targets one is a word of two that are equally often."""


@pytest.fixture(scope="module", autouse=True)
def no_decoder_is_left() -> Iterator[None]:
    yield
    stop()


def write_shards(folder: Path, name: str, number: int, seed: int) -> Path:
    """Shards of videos that turn from red to blue, or from blue to red, and are asked for their last colour."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(number):
        order = list(COLOURS) if i % 2 else list(COLOURS)[::-1]
        colours = np.array([COLOURS[colour] for colour in (order[0], order[0], order[1], order[1])])
        noise = rng.integers(-40, 40, (4, SIDE, SIDE, 3))
        frames = (colours[:, None, None] + noise).clip(0, 255).astype(np.uint8)
        (folder / f"{name}-{i}.mp4").write_bytes(of_frames(list(frames), rate=4))
        question = [{"type": "video", "video": f"{name}-{i}.mp4", "nframes": 4}, {"type": "text", "text": "Last?"}]
        records.append([{"role": "user", "content": question}, {"role": "assistant", "content": order[1]}])
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in records))
    (folder / "template.jinja").write_text(VIDEO_TEMPLATE)
    config = PrepConfig(
        sources=(str(folder / f"{name}.jsonl"),),
        model=str(tiny_model_folder(folder)),
        out=str(folder / name),
        media_root=str(folder),
        chat_template=str(folder / "template.jinja"),
        video_min_pixels=SIDE * SIDE,
        video_max_pixels=SIDE * SIDE,
        seq_len=512,
        workers=0,
    )
    assert build_shards(config).counts["videos"] == number
    return folder / name


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        "model.path": str(tiny_model_folder(folder)),
        "model.init": "random",
        "memory.recompute": "none",
        "data.shards": str(write_shards(folder, "shown", 64, 0)),
        "data.global_packs": 1,
        "data.workers": 0,
        "eval.shards": str(write_shards(folder, "held-out", 16, 1)),
        "eval.every_steps": STEPS // 2,
        "optim.lr": 3e-3,
        "optim.warmup_steps": 5,
        "max_steps": STEPS,
        "save_steps": STEPS // 2,
        "stall_s": 300.0,
        "device": "cpu",
    }


def test_the_order_of_frames_is_learned_and_a_killed_run_ends_with_the_same_bits(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = run_config(settings, output=str(tmp_path / "whole"))
    train(whole, silent)
    lines = read_metrics(whole.output)
    assert lines[-1]["eval_loss"] < 0.2 * UNSEEN < UNSEEN < lines[0]["loss"]
    assert all(line["grad_norm_vision"] > 0 and line["visual_tokens"] > 0 for line in lines)
    killed = run_config(settings, output=str(tmp_path / "killed"), save_async=False)
    train_until_killed(killed, tmp_path / "run.yaml", STEPS // 2 + 5)
    events: list[StepLog | str] = []
    train(killed, events.append)
    assert [event.step for event in events if isinstance(event, StepLog)] == list(range(STEPS // 2 + 1, STEPS + 1))
    assert read_metrics(killed.output) == lines
    ends = [read_tensors(Path(config.output) / checkpoint_name(STEPS)) for config in (whole, killed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
