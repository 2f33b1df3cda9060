"""Small runs for the tests of the training loop: a model folder, shards for it, a config, and ranks as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from lmms.configs.contract.families import FAMILIES
from lmms.configs.contract.model_folder import ModelFolder, read_model_folder
from lmms.configs.load import load_config, to_yaml
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import load_checkpoint
from lmms.train.run import train
from lmms.train.watch.metrics import METRICS_NAME, StepLog
from tests.kit.model.models import (
    AUDIO_TOKEN,
    AUDIOS,
    FIRST_SPECIAL,
    IMAGE_TOKEN,
    TINY_VISION,
    VIDEO_TOKEN,
    VISION_FAMILIES,
    tiny_config,
)
from tests.kit.ranks import free_port, on_ranks
from tests.kit.shards import make_pack, write_shards

SMALL_RUN: dict[str, Any] = {
    "model.init": "random",
    "data.global_packs": 4,
    "data.workers": 0,
    "optim.lr": 1e-2,
    # Some gradients are 0 but for rounding (of key biases); AdamW would blow them up without this.
    "optim.eps": 1e-3,
    "max_steps": 3,
    "save_steps": 100,
    # A run that hangs is an error soon, also on a machine with much else to do.
    "stall_s": 300.0,
    "device": "cpu",
}

_TRAIN_UP_TO = """
import sys, time
from pathlib import Path
from lmms.configs.load import load_config, to_yaml
from lmms.configs.settings.train import TrainConfig
from lmms.train.run import train
last = int(sys.argv[2])
# The line of a step is in the log before it is told.
train(load_config(TrainConfig, Path(sys.argv[1])), lambda event: getattr(event, "step", 0) == last and time.sleep(3000))
"""


_SOUNDS = {3: (2000, 8000), 4: (1281,), 8: (16000,)}
"""Pack -> samples of its sounds."""


def write_model_folder(folder: Path, family: str, *, tied: bool = False, word: str = "a") -> ModelFolder:
    """A tiny config with a tokenizer, template and processor settings, but no weights. `word` makes it another."""
    tiny_config(family, tied).save_pretrained(folder)
    ids = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN, "audio": AUDIO_TOKEN}
    added = [{"id": ids[kind], "content": pad} for kind, pad in FAMILIES[family].placeholders.items()]
    model = {"type": "BPE", "vocab": {word: 0}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    processor = asdict(TINY_VISION) if family in VISION_FAMILIES else {}
    if audio := AUDIOS.get(family):
        processor |= {"sampling_rate": audio.sample_rate, "feature_size": audio.mel_bins, "n_fft": audio.fft}
        processor |= {"hop_length": audio.hop, "n_samples": audio.longest}
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return read_model_folder(folder, None, None)


def write_run(folder: Path, family: str, *, packs: int = 11, tied: bool = False) -> dict[str, Any]:
    """A model folder and shards in `folder`; returns the settings of a run on them. In a vision family every
    third pack shows pictures, and one of them and another pack show a video; where the model hears, three have sounds."""
    model = write_model_folder(folder / "model", family, tied=tied)
    rng = np.random.default_rng(7)
    images = [2 * int(family in VISION_FAMILIES and i % 3 == 0) for i in range(packs)]
    frames = [3 * int(family in VISION_FAMILIES and i in (3, 7)) for i in range(packs)]
    sounds = [_SOUNDS.get(i, ()) if family in AUDIOS else () for i in range(packs)]
    made = [
        make_pack(rng, rng.integers(6, 20, 1 + i % 3).tolist(), FIRST_SPECIAL, shown, model, moving, heard)
        for i, (shown, moving, heard) in enumerate(zip(images, frames, sounds, strict=True))
    ]
    write_shards(folder / "shards", made, model, seq_len=512)
    places = {"model.path": "model", "data.shards": "shards", "output": "out"}
    return {**{key: str(folder / name) for key, name in places.items()}, **SMALL_RUN}


def run_config(settings: dict[str, Any], **changes: Any) -> TrainConfig:
    """These settings with some changed, as a config; `data__workers` stands for data.workers."""
    return load_config(TrainConfig, None, values={**settings, **{k.replace("__", "."): v for k, v in changes.items()}})


def read_metrics(output: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what a clock, the memory or the number of processes says."""
    lines = (Path(output) / METRICS_NAME).read_text().splitlines()
    measured = ("seconds", "mfu", "busy_mfu", "data_wait", "memory", "time", "resumed_from", "padding_tokens")
    return [
        {name: value for name, value in json.loads(line).items() if not (name in measured or name.endswith("_per_s"))}
        for line in lines
    ]


def assert_same_steps(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]], rel: float = 1e-5) -> None:
    """The same lines of metrics, to the rounding of sums that are taken in another order."""
    for line, other in zip(found, expected, strict=True):
        assert line.keys() == other.keys()
        for name, value in other.items():
            assert line[name] == _nearly(value, rel), name


def _nearly(value: Any, rel: float) -> Any:
    if isinstance(value, dict):
        return {name: _nearly(inner, rel) for name, inner in value.items()}
    return pytest.approx(value, rel=rel) if isinstance(value, float) else value


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same tensors, to the rounding of sums taken in another order: 1e-5 of the largest value, or of 0.1."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = float((found[name] - tensor).abs().max())
        assert difference <= 1e-5 * max(float(tensor.abs().max()), 0.1), f"{name} differs by {difference}"


def silent(event: StepLog | str) -> None:
    """A report that nobody reads."""


def train_until_killed(config: TrainConfig, file: Path, step: int) -> None:
    """Train in a process of its own, which gets SIGKILL as soon as it has logged this step."""
    file.write_text(to_yaml(config))
    process = subprocess.Popen([sys.executable, "-c", _TRAIN_UP_TO, file, str(step)], stderr=subprocess.PIPE, text=True)
    log = Path(config.output) / METRICS_NAME
    while not (log.exists() and f'"step": {step}' in log.read_text()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()


def train_on_ranks(configs: Sequence[TrainConfig], ranks: int) -> None:
    """Train these runs one after the other, on that many gloo ranks in processes of their own."""
    on_ranks(train_as_rank, ranks, configs, [free_port() for _ in configs])


def train_as_rank(rank: int, ranks: int, configs: Sequence[TrainConfig], ports: Sequence[int]) -> None:
    """Train these runs one after the other as one of on_ranks' ranks, which meet at these ports."""
    for config, port in zip(configs, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        train(config, silent)


def without_waits(events: Sequence[StepLog | str]) -> list[StepLog | str]:
    """What a run said, but for the lines that name what takes long."""
    return [event for event in events if not (isinstance(event, str) and event.endswith(" ..."))]


def read_tensors(checkpoint: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint whose name starts with `prefix`, whole."""
    stored = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(prefix)
    }
    load_checkpoint(checkpoint, tensors, alone=True)
    return tensors
