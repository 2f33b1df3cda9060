"""Waiting for data while a model trains on videos: lmms beside the Hugging Face processor in torch's DataLoader.

    uv run python -m tools.bench.video_wait MODEL FOLDER [--rates 2000,5000] [--backend decord] [--epochs 6]

FOLDER: of video files, of which each becomes a record of one question. The step of both is the same: it sleeps for as
long as a model of so many tokens a second takes, since an accelerator leaves the CPU alone. Each has one loader
process, which works ahead. lmms: packs of 16,384 tokens from shards made before. processor: frames are sampled and
decoded by transformers with its video backend, resized and cut into patches by the model's video processor. The first
two steps are left out. Each share is the least of some rounds, in turn. Figures: docs/media.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from tools.bench.video import write_readable

_LMMS = """
import itertools, json, sys, time
import torch
from lmms.configs import DataConfig
from lmms.train import PackDataset
if __name__ == "__main__":
    torch.set_num_threads(1)
    model, shards, rate, steps = sys.argv[1:]
    data = iter(PackDataset(DataConfig(shards=shards, global_packs=1, workers=1), model))
    waited = slept = 0.0
    for number in range(int(steps)):
        start = time.perf_counter()
        step = next(data)
        waited += (time.perf_counter() - start) * (number > 1)
        slept += step.tokens / float(rate) * (number > 1)
        time.sleep(step.tokens / float(rate))
    data.close()
    print(waited / (waited + slept))
"""
_PROCESSOR = """
import json, random, sys, time
from functools import partial
from pathlib import Path
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import AutoVideoProcessor
from transformers.video_utils import load_video
class Videos(Dataset):
    def __init__(self, model, files, backend):
        self.processor, self.files, self.backend = AutoVideoProcessor.from_pretrained(model), files, backend
    def __len__(self):
        return len(self.files)
    def __getitem__(self, number):
        sample = partial(self.processor.sample_frames, fps=2.0)
        frames, metadata = load_video(self.files[number], backend=self.backend, sample_indices_fn=sample)
        return self.processor([frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
if __name__ == "__main__":
    torch.set_num_threads(1)
    model, source, root, backend, rate, epochs = sys.argv[1:]
    records = map(json.loads, open(source))
    files = [str(Path(root, record["messages"][0]["content"][0]["video"])) for record in records] * int(epochs)
    random.Random(0).shuffle(files)
    videos = Videos(model, files, backend)
    merge = videos.processor.merge_size ** 2
    loader = iter(DataLoader(videos, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    waited = slept = 0.0
    start = time.perf_counter()
    for number, batch in enumerate(loader):
        waited += (time.perf_counter() - start) * (number > 1)
        tokens = int(batch["video_grid_thw"].prod(1).sum()) // merge
        slept += tokens / float(rate) * (number > 1)
        time.sleep(tokens / float(rate))
        start = time.perf_counter()
    print(waited / (waited + slept))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="decord", choices=["torchcodec", "decord", "pyav", "opencv"])
    parser.add_argument("--rates", default="2000,5000,10000", help="Tokens a second of the model that trains.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=2)
    asked = parser.parse_args()
    root = str(asked.folder.resolve())
    with TemporaryDirectory() as scratch:
        source, shards = Path(scratch, "videos.jsonl"), Path(scratch, "shards")
        files, _ = write_readable(asked.model, asked.folder, asked.backend, source)
        config = PrepConfig(
            sources=(str(source),), model=asked.model, seq_len=2**14, out=str(shards), media_root=root, workers=0
        )
        packs = build_shards(config).counts["packs"]
        print("| tokens a second | lmms waits | processor waits |\n|---|---|---|")
        for rate in asked.rates.split(","):
            ours, theirs = [], []
            for _ in range(asked.repeat):
                ours.append(_share(_LMMS, asked.model, str(shards), rate, str(packs * asked.epochs)))
                theirs.append(
                    _share(_PROCESSOR, asked.model, str(source), root, asked.backend, rate, str(asked.epochs))
                )
            print(f"| {int(rate):,} | {min(ours):.2%} | {min(theirs):.1%} |")
    print(f"\n{len(files)} videos in {packs} packs, {asked.epochs} times")


def _share(code: str, *arguments: str) -> float:
    """The share of the time that a program waits for data."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(run.stdout)


if __name__ == "__main__":
    main()
