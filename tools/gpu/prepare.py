"""tools/gpu/prepare: real pictures and records, packed for the full-size models, small enough to be carried."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from lmms.configs.prep import PrepConfig
from lmms.prep.build import build_shards
from tools.gpu.main import PACKS
from tools.gpu.stages import ROOT

SETS: Mapping[str, int] = {
    "image/chart_opencqa/records.jsonl.zst": 1,
    "image/receipts_sroie/records.jsonl.zst": 1,
    "image/raccoon_boxes/records.jsonl.zst": 1,
    "image/doc_photo_mix/records.jsonl.zst": 1,
    "text/alpaca_eval.jsonl.zst": 3,
}
"""In ../shared/data: charts, long receipts, photos, pages and screenshots, text -> shares of records."""
RECORDS: Mapping[int, int] = {4096: 8, 16384: 16}
"""Tokens of a pack -> records of a share: some seven short packs, four long ones, 60 % of them pictures."""
MAX_PIXELS = 1280 * 28 * 28
"""Largest area of a picture, as in these models' own recipes: a whole photo would not fit into 4k tokens."""
MAX_BYTES = 40 * 10**6


@dataclass(frozen=True, slots=True)
class FullSize:
    """A model to pack for."""

    name: str
    folder: str
    """In ../shared/models: tokenizer, template, processor."""
    config: str


MODELS = (
    FullSize("qwen2.5-vl-3b", "qwen2.5-vl", "Qwen2.5-VL-3B-Instruct.json"),
    FullSize("qwen3-vl-2b", "qwen3-vl", "Qwen3-VL-2B-Instruct.json"),
)


def main() -> int:
    """The command. 0 when the packs are there and small enough to carry, else 1."""
    parser = argparse.ArgumentParser(prog="tools/gpu/prepare", description="Make the packs of tools/gpu/run.")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="real records and model folders")
    parser.add_argument("--out", type=Path, default=PACKS, help="folder to make")
    arguments = parser.parse_args()
    screen = Console()
    if arguments.out.exists():
        screen.print(f"{arguments.out} is in the way: delete it, or set --out", style="red")
        return 1
    prepare(arguments.shared.resolve(), arguments.out, RECORDS, MAX_PIXELS, screen)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    screen.print(f"{size / 1e6:.1f} MB in {arguments.out}: carry it to the GPU machine and start tools/gpu/run there")
    if size > MAX_BYTES:
        screen.print(f"above {MAX_BYTES / 1e6:.0f} MB: take fewer RECORDS", style="red")
    return int(size > MAX_BYTES)


def prepare(shared: Path, out: Path, records: Mapping[int, int], max_pixels: int, screen: Console) -> None:
    """Write the folder that plan.py describes: for each model, shards of each length in `records`."""
    with tempfile.TemporaryDirectory(prefix="lmms-gpu-") as name:
        scratch = Path(name)
        materialize = [sys.executable, str(shared / "models" / "materialize.py"), name]
        subprocess.run([*materialize, *(m.folder for m in MODELS)], check=True, stdout=subprocess.DEVNULL)
        for seq_len, number in records.items():
            subsets = [_subset(shared / "data" / source, number * share, scratch) for source, share in SETS.items()]
            for model in MODELS:
                config = shared / "models" / model.folder / "configs" / model.config
                shutil.copy(config, scratch / model.folder / "config.json")
                (out / model.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(config, out / model.name / "config.json")
                settings = PrepConfig(
                    sources=tuple(str(subset) for subset in subsets),
                    model=str(scratch / model.folder),
                    seq_len=seq_len,
                    out=str(out / f"{model.name}-{seq_len}"),
                    max_pixels=max_pixels,
                    workers=1,
                )
                counts = build_shards(settings).counts
                screen.print(f"{model.name}-{seq_len}: {counts}", highlight=False, soft_wrap=True)


def _subset(source: Path, number: int, scratch: Path) -> Path:
    """A record file of this many records spread over a set, beside the set's pictures."""
    folder = scratch / "sets" / source.parent.name
    folder.mkdir(parents=True, exist_ok=True)
    if (source.parent / "images").is_dir() and not (folder / "images").exists():
        shutil.copytree(source.parent / "images", folder / "images")
    with pa.input_stream(source, compression="zstd") as stream:
        lines = stream.read().split(b"\n")[:-1]
    spread = lines[:: max(len(lines) // number, 1)][:number]
    subset = folder / "records.jsonl"
    subset.write_bytes(b"".join(line + b"\n" for line in spread))
    return subset
