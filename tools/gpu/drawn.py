"""Packs for a machine without a GPU: the demo's pictures, packed for its tiny model."""

import shutil
from pathlib import Path

from lmms.cli.demo.draw import draw_pictures
from lmms.configs.prep import PrepConfig
from lmms.prep.build import build_shards

MODEL = Path(__file__).resolve().parents[2] / "cli" / "demo" / "model"
SEQ_LENS = (256, 1024)
PICTURES = 24


def draw_packs(out: Path) -> None:
    """Write the folder of packs that plan.py describes."""
    (out / "demo").mkdir(parents=True)
    shutil.copy(MODEL / "config.json", out / "demo")
    draw_pictures(out, "pictures", PICTURES, seed=0)
    for seq_len in SEQ_LENS:
        shards = out / f"demo-{seq_len}"
        build_shards(
            PrepConfig(
                sources=(str(out / "pictures.jsonl"),), model=str(MODEL), seq_len=seq_len, out=str(shards), workers=1
            )
        )
