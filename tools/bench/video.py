"""CPU time of videos: prep once, an epoch of training, and the Hugging Face processor every epoch; a Markdown table.

    uv run python -m tools.bench.video MODEL FOLDER [--backend decord] [--repeat 3] [--fps 2]

FOLDER: of video files, of which each becomes a record of one question. prep: from records to checked shards, frames as
JPEG, all processes together, without the time of a build of one still picture. epoch: the patches of all stored frames,
as a loader makes them. processor: the frames sampled and decoded by transformers with its video backend, resized and
cut into patches by the model's video processor, as a collator does in every epoch. All with one thread. Each figure is
the least of some rounds, in turn. The last line has the bytes of an hour of video in the shard. Figures: docs/media.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lmms.configs.contract.manifest import open_dataset
from lmms.train.batch.frames import row_patches
from lmms.train.data.shards import PackReader, read_sidecar

_PREP = """
import sys
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.video.process import stop
if __name__ == "__main__":
    model, source, out, root, fps = sys.argv[1:]
    settings = {"media_root": root, "video_fps": float(fps), "seq_len": 2**17, "workers": 0, "store": "none"}
    build_shards(PrepConfig(sources=(source,), model=model, out=out, max_rejects=1.0, **settings))
    stop()  # waits for the process that decodes: what that took is counted
"""
_PROCESSOR = """
import json, sys, time, torch
from functools import partial
from pathlib import Path
from transformers import AutoVideoProcessor
torch.set_num_threads(1)
model, source, backend, root, fps = sys.argv[1:]
processor = AutoVideoProcessor.from_pretrained(model)
sample = partial(processor.sample_frames, fps=float(fps))
from transformers.video_utils import load_video
start, failed = time.process_time(), []
for line in open(source):
    file = json.loads(line)["messages"][0]["content"][0]["video"]
    try:
        frames, metadata = load_video(str(Path(root, file)), backend=backend, sample_indices_fn=sample)
    except Exception:
        failed.append(file)
        continue
    processor([frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
print(json.dumps({"seconds": time.process_time() - start, "failed": failed}))
"""
_ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="decord", choices=["torchcodec", "decord", "pyav", "opencv"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--fps", default="2")
    asked = parser.parse_args()
    root = str(asked.folder.resolve())
    with TemporaryDirectory() as scratch:
        source, still = Path(scratch, "videos.jsonl"), Path(scratch, "still.jsonl")
        files, failed = write_readable(asked.model, asked.folder, asked.backend, source)
        still.write_text(json.dumps(_record(None)) + "\n")
        rounds = []
        for number in range(asked.repeat):
            out = Path(scratch, f"out{number}")
            alone = _cpu(_PREP, asked.model, str(still), f"{out}-still", root, asked.fps)
            prep = _cpu(_PREP, asked.model, str(source), str(out), root, asked.fps) - alone
            processor, _ = _processor(asked.model, source, root, asked.backend, asked.fps)
            rounds.append((prep, *_epoch(out), processor))
    prep, epoch, processor = (min(each[i] for each in rounds) for i in (0, 1, 4))
    _, _, stored, seconds, _ = rounds[0]
    print("| | CPU seconds | of the processor |\n|---|---|---|")
    for name, value in (("prep, once", prep), ("an epoch of lmms", epoch), (f"processor, {asked.backend}", processor)):
        print(f"| {name} | {value:.1f} | {value / processor:.2f} |")
    hour = stored / seconds * 3600 / 2**20
    print(f"\n{len(files)} videos, {seconds:.0f} s; {hour:,.0f} MiB in the shard an hour of video")
    print(f"left out, since transformers cannot read them: {', '.join(failed) or 'none'}")


def video_files(folder: Path) -> list[str]:
    """Names of the video files of a folder."""
    return sorted(file.name for file in folder.iterdir() if file.suffix in _ENDINGS)


def write_records(source: Path, files: Sequence[str]) -> None:
    """Write a record of one question for each video."""
    source.write_text("".join(f"{json.dumps(_record(file))}\n" for file in files))


def write_readable(model: str, folder: Path, backend: str, source: Path) -> tuple[list[str], list[str]]:
    """Write a record for each video that transformers can read; returns these videos, and the others."""
    files = video_files(folder)
    write_records(source, files)
    _, failed = _processor(model, source, str(folder.resolve()), backend, "2")
    files = [file for file in files if file not in failed]
    write_records(source, files)
    return files, failed


def _processor(model: str, source: Path, root: str, backend: str, fps: str) -> tuple[float, list[str]]:
    """CPU seconds of transformers, and the files that its video backend cannot read."""
    made = json.loads(_run(_PROCESSOR, model, str(source), backend, root, fps))
    return made["seconds"], made["failed"]


def _record(file: str | None) -> dict[str, object]:
    video = [{"type": "video", "video": file}] if file else []
    question = [*video, {"type": "text", "text": "What happens?"}]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Much."}]}


def _run(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def _cpu(code: str, *arguments: str) -> float:
    """CPU seconds of a program and all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(code, *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _epoch(folder: Path) -> tuple[float, int, float]:
    """CPU seconds of the patches of all frames, bytes of the frames, seconds of video."""
    dataset = open_dataset(folder)
    vision, sidecar, reader = dataset.manifest.vision, read_sidecar(dataset), PackReader([dataset])
    assert vision is not None
    start, stored, seconds = time.process_time(), 0, 0.0
    for pack in (reader.read(sidecar.place(number)) for number in range(len(sidecar))):
        for media, data in zip(pack.media, pack.media_data(), strict=True):
            if media.row:
                row_patches(data, media, media.row, vision)
                stored, seconds = stored + media.bytes, seconds + media.row.step
    reader.close()
    return time.process_time() - start, stored, seconds


if __name__ == "__main__":
    main()
