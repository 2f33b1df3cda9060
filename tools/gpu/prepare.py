"""tools/gpu/prepare: real pictures and records, packed for the full-size models, small enough to be carried."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from tools.gpu.main import PACKS
from tools.gpu.stages import ROOT

SETS = ("chart_opencqa", "receipts_sroie", "raccoon_boxes", "doc_photo_mix")
"""Charts, long receipts, photos, and pages and screenshots with several turns."""
RECORDS: Mapping[int, int] = {4096: 8, 16384: 14}
"""Tokens of a pack -> records taken of each set: about nine short packs, about four long ones."""
MAX_PIXELS = 1280 * 28 * 28
"""Largest area of a picture, as the recipes of these models have it; whole photos would not fit into 4k tokens."""
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
    """The command."""
    parser = argparse.ArgumentParser(prog="tools/gpu/prepare", description="Make the packs of tools/gpu/run.")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="real records and model folders")
    parser.add_argument("--out", type=Path, default=PACKS, help="folder to write anew")
    arguments = parser.parse_args()
    screen = Console()
    shutil.rmtree(arguments.out, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="lmms-gpu-") as scratch:
        prepare(arguments.shared.resolve(), arguments.out, Path(scratch), RECORDS, screen)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    screen.print(f"{size / 1e6:.1f} MB in {arguments.out}; carry it to the GPU machine and start tools/gpu/run there")
    if size > MAX_BYTES:
        screen.print(f"that is above {MAX_BYTES / 1e6:.0f} MB: take fewer RECORDS", style="red")
    return int(size > MAX_BYTES)


def prepare(shared: Path, out: Path, scratch: Path, records: Mapping[int, int], screen: Console) -> None:
    """Write the folder that plan.py describes, with a shard folder for each model and each length of `records`."""
    from lmms.configs.prep import PrepConfig
    from lmms.prep.build import build_shards

    for model in MODELS:
        materialize = shared / "models" / "materialize.py"
        subprocess.run([sys.executable, materialize, scratch / "models", model.folder], check=True, stdout=-3)
        folder = scratch / "models" / model.folder
        shutil.copy(shared / "models" / model.folder / "configs" / model.config, folder / "config.json")
        (out / model.name).mkdir(parents=True)
        shutil.copy(folder / "config.json", out / model.name)
        for seq_len, number in records.items():
            sources = [_subset(shared / "data" / "image" / name, number, scratch / str(seq_len)) for name in SETS]
            config = PrepConfig(
                sources=tuple(str(source) for source in sources),
                model=str(folder),
                seq_len=seq_len,
                out=str(out / f"{model.name}-{seq_len}"),
                max_pixels=MAX_PIXELS,
                max_rejects=0.1,
            )
            counts = build_shards(config).counts
            screen.print(f"{Path(config.out).name}: {counts}", highlight=False, soft_wrap=True)


def _subset(source: Path, number: int, scratch: Path) -> Path:
    """A record file of some records spread over a set, beside a copy of the set's pictures."""
    folder = scratch / source.name
    if not folder.exists():
        shutil.copytree(source / "images", folder / "images")
        with pa.input_stream(source / "records.jsonl.zst", compression="zstd") as stream:
            lines = stream.read().decode().splitlines(keepends=True)
        chosen = islice(lines, 0, None, max(len(lines) // number, 1))
        (folder / "records.jsonl").write_text("".join(islice(chosen, number)), encoding="utf-8")
    return folder / "records.jsonl"
