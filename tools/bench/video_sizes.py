"""Bytes in the shard of an hour of video, for each choice of frames: built, and as `lmms prep plan` tells; a table.

    uv run python -m tools.bench.video_sizes MODEL FOLDER [--fps 2] [--quality 95]

FOLDER: of video files, of which each becomes a record of one question. built: the frames in the shards of a build with
this choice, over the seconds of the videos that are in it. plan: the same, as one plan with the first choice gives it.
The last line has the bytes of the files themselves. Figures: docs/media.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.outlook import look_ahead
from lmms.prep.sample.frame_prices import CHOICES
from lmms.train.data.shards import PackReader, read_sidecar
from tools.bench.video import video_files, write_records


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--quality", type=int, default=95)
    asked = parser.parse_args()
    files = video_files(asked.folder)
    with TemporaryDirectory() as scratch:
        source = Path(scratch, "videos.jsonl")
        write_records(source, files)
        config = PrepConfig(
            sources=(str(source),),
            model=asked.model,
            out=str(Path(scratch, "out")),
            media_root=str(asked.folder.resolve()),
            video_fps=asked.fps,
            video_quality=asked.quality,
            seq_len=2**17,
            max_rejects=1.0,
            workers=0,
            store="none",
        )
        told = {(c.video_frames, c.video_encoding): c.frames for c in look_ahead(config, [2**17]).frame_choices}
        print("| frames | MiB for an hour, built | plan |\n|---|---|---|")
        for number, (frames, encoding) in enumerate(CHOICES):
            out = Path(scratch, f"out{number}")
            build_shards(replace(config, out=str(out), video_frames=frames, video_encoding=encoding))
            stored, seconds = frames_of(out)
            hour = 3600 / seconds / 2**20
            quality = f" {asked.quality}" if encoding == "jpeg" else ""
            print(f"| {frames}, {encoding}{quality} | {stored * hour:,.0f} | {told[frames, encoding] * hour:,.0f} |")
    source_bytes = sum((asked.folder / file).stat().st_size for file in files)
    print(f"\n{len(files)} videos, {seconds:.0f} s; the files themselves: {source_bytes * hour:,.0f} MiB for an hour")


def frames_of(folder: Path) -> tuple[int, float]:
    """Bytes of the frames in shards, and the seconds of their videos."""
    dataset = open_dataset(folder)
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    stored, seconds = 0, 0.0
    for pack in (reader.read(sidecar.place(number)) for number in range(len(sidecar))):
        for media in pack.media:
            if media.row:
                stored, seconds = stored + media.bytes, seconds + media.row.step
    reader.close()
    return stored, seconds


if __name__ == "__main__":
    main()
