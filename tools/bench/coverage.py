"""What becomes of every record of a folder of data sets, for several models: a Markdown table by set and model.

    uv run python -m tools.bench.coverage ../shared/data MODELS/qwen3-text MODELS/qwen3-vl

Each data set (a file of records, or a saved data set) is a source of one build a model, with the default settings but
seq_len 65,536 and no limit of rejects. A cell is "packed" where all records are, else what was rejected, by reason.
The figures are in docs/coverage.md.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.rows.find import find_files

_SEQ_LEN = 65_536
_LEFT_OUT = ("edge_cases", "damaged")
"""Sets that other tests hold line by line."""


def sources_of(data: Path) -> list[str]:
    """The data sets under a folder."""
    file_sets, _ = find_files(str(data))
    return [str(files.name) for files in file_sets if not any(name in str(files.name) for name in _LEFT_OUT)]


def counted(source: Mapping[str, Any]) -> str:
    """A cell of the table: what became of the records of a source."""
    if not source["rejected"]:
        return "packed"
    rejected = ", ".join(f"`{reason}` {count:,}" for reason, count in source["rejects"].items())
    return rejected if source["rejected"] == source["read"] else f"{source['packed']:,} packed, {rejected}"


def build(data: Path, model: Path) -> Sequence[Mapping[str, Any]]:
    """The counts of each source in a build for a model."""
    with TemporaryDirectory() as folder:
        config = PrepConfig(
            sources=tuple(sources_of(data)),
            model=str(model),
            seq_len=_SEQ_LEN,
            max_rejects=1.0,
            out=f"{folder}/shards",
        )
        return build_shards(config).sources


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    given = parser.parse_args()
    columns = [build(given.data, model) for model in given.models]
    print(f"| set | form | records | {' | '.join(model.name for model in given.models)} |")
    print(f"|---|---|--:|{'---|' * len(columns)}")
    for row in zip(*columns, strict=True):
        name = Path(row[0]["name"]).relative_to(given.data)
        print(f"| {name} | {row[0]['form']} | {row[0]['read']:,} | {' | '.join(map(counted, row))} |")


if __name__ == "__main__":
    main()
