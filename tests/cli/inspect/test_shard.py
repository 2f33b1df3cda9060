"""lmms inspect: what it prints is what the shards hold; what is damaged is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from lmms.cli.main import app
from lmms.configs.contract.manifest import open_dataset, read_manifest, write_manifest
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.stores.store import LocalStore
from lmms.prep.build import build_shards
from lmms.train.data.shards import PackReader, read_sidecar
from tests.kit.folders import small_shards, tiny_model_folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_shards(tmp_path_factory.mktemp("inspect"))


def lmms(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_json_is_one_line_a_pack_with_positions_within_the_pack(shards: Path) -> None:
    result = lmms("inspect", "shard", shards, "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.output.splitlines()]
    dataset = open_dataset(shards)
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    assert [line["pack"] for line in lines] == list(range(dataset.manifest.counts["packs"]))
    seen = set()
    for line in lines:
        assert set(line) == {"pack", "input_ids", "segments"}
        pack = reader.read(sidecar.place(line["pack"]))
        assert line["input_ids"] == pack.input_ids.tolist()
        assert [s["start"] for s in line["segments"]] + [len(pack.input_ids)] == pack.cu_seqlens.tolist()
        for segment in line["segments"]:
            assert set(segment) == {"start", "end", "source", "row", "weight", "targets", "media"}
            seen.add((Path(segment["source"]).name, segment["row"]))
            assert all(segment["start"] < start < end <= segment["end"] for start, end, _ in segment["targets"])
            for media in segment["media"]:
                assert list(media) == ["kind", "start", "end", "size", "grid_thw", "bytes"]
                assert (media["kind"], media["size"], media["grid_thw"]) == ("image", [32, 32], [1, 4, 4])
                assert media["end"] - media["start"] == 4
    assert len(seen) == 100


def test_an_image_has_its_width_first_in_pixels_and_in_patches(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path)
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    content = [{"type": "image", "image": "wide.png"}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    (tmp_path / "one.jsonl").write_text(json.dumps({"messages": turns}))
    build_shards(
        PrepConfig(
            sources=(str(tmp_path / "one.jsonl"),), model=str(model), seq_len=256, out=str(tmp_path / "out"), workers=0
        )
    )
    output = lmms("inspect", "shard", tmp_path / "out").output
    assert "[image 64 x 32, 8 x 4 patches, 8 tokens" in output
    assert "1 of 256 tokens in 1 shard " in output


def test_one_pack_can_be_asked_for(shards: Path) -> None:
    (line,) = lmms("inspect", "shard", shards, "--json", "--pack", "2").output.splitlines()
    assert json.loads(line)["pack"] == 2


def test_totals_and_a_pack_are_shown_as_the_model_sees_them(shards: Path) -> None:
    result = lmms("inspect", "shard", shards)
    counts = open_dataset(shards).manifest.counts
    assert f"{counts['packed']:,} packed" in result.output
    assert "tokens a conversation" in result.output
    assert "<|im_start|>user" in result.output
    assert "[image 32 x 32, 4 x 4 patches, 4 tokens" in result.output
    assert "<|image_pad|>" not in result.output


def test_targets_are_coloured_and_nothing_else(shards: Path) -> None:
    from rich.text import Text
    from tokenizers import Tokenizer

    from lmms.cli.inspect.shard import segment_text
    from lmms.train.data.view import pack_segments

    dataset = open_dataset(shards)
    pack = PackReader([dataset]).read(read_sidecar(dataset).place(0))
    tokenizer = Tokenizer.from_file(str(Path(dataset.manifest.model) / "tokenizer.json"))
    for segment in pack_segments(pack, dataset.manifest):
        text: Text = segment_text(pack, segment, tokenizer)
        green = "".join(text.plain[s.start : s.end] for s in text.spans if s.style == "bold green")
        parts = [pack.input_ids[start:end].tolist() for start, end, _ in segment["targets"]]
        assert green == "".join(tokenizer.decode(ids, skip_special_tokens=False) for ids in parts)
        assert green.endswith("<|im_end|>")


def test_weights_are_shown_where_they_are_not_1(shards: Path, tmp_path: Path) -> None:
    assert "weight" not in lmms("inspect", "shard", shards).output
    messages = [
        {"role": role, "content": text, **more}
        for role, text, more in [
            ("user", "a", {}), ("assistant", "bee", {"weight": 0.1}), ("user", "c", {}), ("assistant", "dee", {}),
        ]
    ]  # fmt: skip
    (tmp_path / "text.jsonl").write_text(json.dumps({"messages": messages, "weight": 2.5}) + "\n")
    sources = (str(tmp_path / "text.jsonl"),)
    model = str(tiny_model_folder(tmp_path))
    build_shards(PrepConfig(sources=sources, model=model, seq_len=128, out=str(tmp_path / "out"), workers=0))
    output = lmms("inspect", "shard", tmp_path / "out").output
    assert "row 0, weight 2.5" in output
    assert "[weight 0.1]" in output
    assert output.count("[weight") == 1
    (segment,) = json.loads(lmms("inspect", "shard", tmp_path / "out", "--json").output)["segments"]
    assert (segment["weight"], [weight for *_, weight in segment["targets"]]) == (2.5, [0.1, 1.0])
    (first, second) = (end - start for start, end, _ in segment["targets"])
    assert f"targets of mean weight {2.5 * (0.1 * first + second) / (first + second):.4g}" in output


def test_a_tokenizer_that_is_not_the_shards_is_refused(shards: Path, tmp_path: Path) -> None:
    other = shutil.copytree(open_dataset(shards).manifest.model, tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("<|quad_end|>", "<|quad_fin|>"))
    result = lmms("inspect", "shard", shards, "--model", other)
    assert "not the one of these shards" in str(result.exception)


def test_a_whole_folder_verifies(shards: Path) -> None:
    result = lmms("inspect", "verify", shards)
    assert result.exit_code == 0
    assert "is whole; next: `lmms train` with data.shards=" in result.output


def flip_in_shard(folder: Path) -> None:
    path = folder / "shard.00000.mds"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_table(name: str, column: str) -> Callable[[Path], None]:
    """Raise one number of a table by one, and make every hash fit again: only a look into the packs can tell."""

    def change(folder: Path) -> None:
        table = pq.read_table(folder / name)
        values = table[column].to_pylist()
        values[0] += 1
        array = pa.array(values, table.schema.field(column).type)
        pq.write_table(table.set_column(table.schema.get_field_index(column), column, array), folder / name)
        manifest = read_manifest(LocalStore(folder))
        from dataclasses import replace

        from lmms.configs.contract.manifest import file_entry

        files: dict[str, Any] = {**manifest.files, name: file_entry(folder / name)}
        write_manifest(replace(manifest, files=files), folder)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_in_shard, "its hash is not the index's"),
        (flip_in_shard, "its hash is not the sidecar's"),
        (change_table("packs.parquet", "sum_squared_lengths"), "packs.parquet says"),
        (change_table("packs.parquet", "tokens"), "tokens in the tables"),
        (change_table("samples.parquet", "row"), "does not list the conversations"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "rejects.parquet").unlink(), "rejects.parquet is missing"),
        (lambda folder: (folder / "shard.00000.mds").write_bytes(b""), "has 0 bytes, expected"),
    ],
)
def test_damage_is_named(damage: Callable[[Path], None], message: str, shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    damage(folder)
    result = lmms("inspect", "verify", folder)
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_control_characters_of_a_record_do_not_reach_the_terminal(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a\x1b[31mb"}, {"role": "assistant", "content": "c\x07"}]
    (tmp_path / "text.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    model = str(tiny_model_folder(tmp_path))
    sources = (str(tmp_path / "text.jsonl"),)
    build_shards(PrepConfig(sources=sources, model=model, seq_len=128, out=str(tmp_path / "out"), workers=0))
    output = lmms("inspect", "shard", tmp_path / "out").output
    assert "a␛[31mb" in output
    assert not {"\x1b", "\x07"} & set(output)
