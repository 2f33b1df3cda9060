"""The records of the real videos and sounds, by what they show: packed, or rejected for which reason; a Markdown table.

    uv run python -m tools.bench.av_records ../shared/data/av MODEL...

MODEL: a model folder, a column of the table. Table: docs/media.md.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from backports import zstd

from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards

_NAMES = {"video_url": "video", "audio_url": "audio", "input_audio": "audio"}
"""Parts that show the same in another form."""


def main() -> None:
    """Build and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    asked = parser.parse_args()
    tables = [outcomes(asked.folder, model) for model in asked.models]
    print(f"| record with | records | {' | '.join(Path(model).name for model in asked.models)} |")
    print("|---|---|" + "---|" * len(tables))
    for media in sorted(tables[0]):
        cells = [
            ", ".join(f"{number} {outcome}" for outcome, number in sorted(table[media].items())) for table in tables
        ]
        print(f"| {media} | {tables[0][media].total()} | {' | '.join(cells)} |")


def outcomes(folder: Path, model: str) -> dict[str, Counter[str]]:
    """Media of a record -> what became of such records: packed, or a reason -> records."""
    file = folder / "records.jsonl.zst"
    with zstd.open(file) as lines:
        media = [_media(json.loads(line)) for line in lines]
    with TemporaryDirectory() as scratch:
        config = PrepConfig(
            sources=(str(file),),
            model=model,
            seq_len=2**16,
            out=str(Path(scratch, "out")),
            media_root=str(folder),
            plan="tight",
            max_rejects=1.0,
            workers=0,
        )
        build_shards(config)
        rejects = pl.read_parquet(Path(scratch, "out", "rejects.parquet"))
    reasons = dict(zip(rejects["row"], rejects["reason"], strict=True))
    table: dict[str, Counter[str]] = {}
    for row, name in enumerate(media):
        table.setdefault(name, Counter())[reasons.get(row, "packed")] += 1
    return table


def _media(record: dict[str, Any]) -> str:
    contents = [message["content"] for message in record["messages"] if isinstance(message["content"], list)]
    kinds = {part["type"] for content in contents for part in content} - {"text"}
    return ", ".join(sorted({_NAMES.get(kind, kind) for kind in kinds}))


if __name__ == "__main__":
    main()
