"""Settings of a source in a build: what is taken, how often, with which prompt, weight and areas; and the counts."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from lmms.configs.contract.manifest import Manifest, open_dataset
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import BuildError, ConfigError
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import RecordConfig, SourceConfig
from lmms.prep.build import build_shards
from lmms.prep.first_records import read_records
from lmms.prep.records.read import read_record
from lmms.prep.sources import find_sources
from lmms.train.data.shards import PackReader, read_sidecar
from lmms.train.data.verify import verify
from tests.kit.folders import shard_files, tiny_model_folder


def chat(number: int, *, words: int = 0, **more: Any) -> dict[str, Any]:
    question = f"Is it {number}?" + " word" * words
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}], **more}


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def build(tmp_path: Path, *sources: SourceConfig | str, out: str = "out", **settings: Any) -> Manifest:
    model = str(tiny_model_folder(tmp_path))
    values = {"seq_len": 256, "workers": 0, "out": str(tmp_path / out), **settings}
    return build_shards(PrepConfig(sources=sources, model=model, **values))


def packs(folder: Path) -> Iterator[Pack]:
    dataset = open_dataset(folder)
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    for i in range(len(sidecar)):
        yield reader.read(sidecar.place(i))
    reader.close()


def rows_of(folder: Path) -> Counter[tuple[int, int]]:
    """(source, row) -> samples."""
    return Counter(pl.read_parquet(folder / "samples.parquet").select("source", "row").iter_rows())


def test_all_settings_together_give_the_same_bytes_for_any_workers_and_account_for_every_record(tmp_path: Path) -> None:
    records = [chat(i, words=i % 7, score=i / 1300, doc=i // 5) for i in range(1300)]
    lines = write(tmp_path / "a.jsonl", records)
    pl.DataFrame([{**r, "n": i} for i, r in enumerate(records[:700])]).write_parquet(tmp_path / "b.parquet")
    sources = (
        SourceConfig(path=lines, filter="score > 0.2", repeat=2.5, eval_by="doc"),
        SourceConfig(path=str(tmp_path / "b.parquet"), max_records=600, repeat=0.3, weight=2, filter="n <> 7"),
    )
    one = build(tmp_path, *sources, eval_share=0.1, out="one")
    build(tmp_path, *sources, eval_share=0.1, out="two", workers=2, eval_out=str(tmp_path / "two-eval"))
    assert shard_files(tmp_path / "one") == shard_files(tmp_path / "two")
    assert shard_files(tmp_path / "one-eval") == shard_files(tmp_path / "two-eval")
    for folder in ("one", "one-eval"):
        assert list(verify(tmp_path / folder)) == []
    first, second = one.sources
    assert (first["read"], second["read"]) == (1300, 600)
    assert (first["notes"]["skipped: filter"], second["notes"]["skipped: filter"]) == (261, 1)
    assert 360 < second["notes"]["skipped: repeat"] < 480
    held_out = open_dataset(tmp_path / "one-eval").manifest
    assert one.notes["skipped: evaluation"] == held_out.counts["packed"] == held_out.counts["read"]
    for source in one.sources:
        assert source["read"] == source["packed"] + source["rejected"] + source["skipped"]
        assert source["skipped"] == sum(n for note, n in source["notes"].items() if note.startswith("skipped: "))
    assert first["settings"] == {"filter": "score > 0.2", "repeat": 2.5, "eval_by": "doc"}
    assert "column n" not in one.notes
    assert set(rows_of(tmp_path / "one").values()) == {1, 2, 3}
    assert set(rows_of(tmp_path / "one-eval").values()) == {1}
    assert not set(rows_of(tmp_path / "one")) & set(rows_of(tmp_path / "one-eval"))
    train, held_out_docs = (
        {row // 5 for source, row in rows_of(tmp_path / folder) if source == 0} for folder in ("one", "one-eval")
    )
    assert not train & held_out_docs


def test_equal_records_of_two_sources_are_held_out_together(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [chat(i) for i in range(200)])
    second = write(tmp_path / "b.jsonl", [chat(i, id=f"b{i}", weight=2) for i in reversed(range(200))])
    held_out = tmp_path / "held-out"
    build(tmp_path, first, SourceConfig(path=second, system="Be brief."), eval_share=0.3, eval_out=str(held_out))
    rows = rows_of(held_out)
    assert {row for source, row in rows if source == 0} == {199 - row for source, row in rows if source == 1}
    assert 30 < len(rows) / 2 < 90


def test_a_build_that_cannot_hold_out_a_record_leaves_neither_folder(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [chat(1)])
    with pytest.raises(BuildError, match="none of 1 records is for evaluation, with eval_share 0"):
        build(tmp_path, source, eval_share=0.01)
    with pytest.raises(ConfigError, match="no eval_share"):
        build(tmp_path, source, eval_by="doc")
    (tmp_path / "out-eval").mkdir()
    with pytest.raises(BuildError, match="out-eval exists"):
        build(tmp_path, source, eval_share=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "model", "out-eval", "out.lmms-store"]


def test_copies_of_a_record_are_in_different_packs_where_records_of_one_length_allow_that(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [chat(100 + i, words=20) for i in range(60)])
    manifest = build(tmp_path, SourceConfig(path=source, repeat=3))
    assert (manifest.counts["packed"], manifest.counts["samples"]) == (60, 180)
    once = build(tmp_path, source, out="once")
    assert once.fingerprints["records"] != manifest.fingerprints["records"]
    for pack in packs(tmp_path / "out"):
        rows = pack.samples[:, 1].tolist()
        assert len(rows) > 2
        assert len(set(rows)) == len(rows)


def test_the_first_records_of_an_entry_are_taken_and_nothing_behind_them_is_read(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.jsonl", [chat(i) for i in range(600)])
    text = (tmp_path / "set" / "a.jsonl").read_text().splitlines()
    (tmp_path / "set" / "a.jsonl").write_text("\n\n".join(text) + "\n")
    (tmp_path / "set" / "b.jsonl.gz").write_bytes(b"\x1f\x8b damaged")
    for name in ("c", "d"):
        unasked = [{"messages": chat(i)["messages"][:1]} for i in range(1300)]
        pl.DataFrame([chat(i) for i in range(700)] + unasked).write_parquet(tmp_path / f"{name}.parquet")
    most = {"c": 512, "d": 700}  # 512: a whole chunk
    tables = [SourceConfig(path=str(tmp_path / f"{name}.parquet"), max_records=most[name]) for name in most]
    folder = SourceConfig(path=str(tmp_path / "set"), max_records=590, form="openai")
    manifest = build(tmp_path, folder, *tables)
    assert [(source["packed"], source["rejected"]) for source in manifest.sources] == [
        (590, 0),
        (0, 0),
        (512, 0),
        (700, 0),
    ]
    assert sorted(row for source, row in rows_of(tmp_path / "out") if source == 0) == list(range(0, 2 * 590, 2))
    assert sorted(row for source, row in rows_of(tmp_path / "out") if source == 3) == list(range(700))


def test_the_first_records_of_a_program_are_taken(tmp_path: Path) -> None:
    taken = []

    def records() -> Iterator[dict[str, Any]]:
        for i in range(100_000):
            taken.append(i)
            yield chat(i)

    model = str(tiny_model_folder(tmp_path))
    config = PrepConfig(sources=(), model=model, seq_len=256, out=str(tmp_path / "out"), workers=0, max_records=10)
    assert build_shards(config, records=records()).counts["read"] == 10
    assert len(taken) < 2000


SYSTEM = [{"role": "system", "content": "Old."}]


@pytest.mark.parametrize(
    ("mode", "with_turn", "without"),
    [(None, "Old.", "New."), ("add", "Old.", "New."), ("replace", "New.", "New."), ("keep", "Old.", None)],
)
def test_the_system_prompt_of_a_source(tmp_path: Path, mode: Any, with_turn: str, without: str | None) -> None:
    plain, marked = chat(1), {"messages": SYSTEM + chat(1)["messages"]}
    path = write(tmp_path / "a.jsonl", [plain, marked])
    records = read_records([SourceConfig(path=path, system_mode=mode)], base=RecordConfig(system="New."))
    prompts = [[m.content for m in record.messages if m.role == "system"] for _, _, record in records]  # type: ignore[union-attr]
    assert prompts == [[without] if without else [], [with_turn]]


def test_a_replaced_system_turn_stands_first_and_a_lost_picture_is_said(tmp_path: Path) -> None:
    image = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Old."}]
    raw = {"messages": [*chat(1)["messages"], {"role": "system", "content": image}, *chat(2)["messages"]]}
    path = write(tmp_path / "a.jsonl", [raw])
    ((_, _, record),) = read_records([SourceConfig(path=path, system="New.", system_mode="replace", targets="all")])
    roles = [(m.role, m.weight) for m in record.messages]  # type: ignore[union-attr]
    assert roles == [("system", 1), ("user", 1), ("assistant", 1), ("user", 1), ("assistant", 1)]
    assert record.unused == ("images of a replaced system turn",)  # type: ignore[union-attr]


def test_plain_text_has_no_turn_for_a_system_prompt_and_the_account_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "It rains."}])
    manifest = build(tmp_path, path, system="New.")
    assert manifest.notes == {"setting system, in plain text": 1}


def test_the_weight_of_a_source_multiplies_that_of_its_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(1), chat(2, weight=4), chat(3, weight=1e-12)])
    manifest = build(tmp_path, SourceConfig(path=path, weight=0.5), max_rejects=0.5)
    (pack,) = packs(tmp_path / "out")
    assert dict(zip(pack.samples[:, 1].tolist(), pack.sample_weights.tolist(), strict=True)) == {0: 0.5, 1: 2.0}
    assert manifest.rejects == {"bad_weight": 1}


def test_the_areas_of_a_source_hold_for_its_pictures_alone(tmp_path: Path) -> None:
    Image.new("RGB", (512, 512)).save(tmp_path / "a.png")
    turns = [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "Black."},
    ]
    names = [write(tmp_path / f"{name}.jsonl", [{"messages": turns}]) for name in "abc"]
    small = SourceConfig(path=names[1], max_pixels=128**2)
    large = SourceConfig(path=names[2], min_pixels=600**2, max_pixels=640**2)
    build(tmp_path, names[0], small, large, max_pixels=256**2, seq_len=4096)
    (pack,) = packs(tmp_path / "out")
    grids = {int(pack.samples[pack.segment_of(media.start), 0]): media.grid_thw for media in pack.media}
    assert grids == {0: (1, 32, 32), 1: (1, 16, 16), 2: (1, 76, 76)}
    assert list(verify(tmp_path / "out")) == []


def test_areas_that_no_picture_can_have_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(1)])
    with pytest.raises(ConfigError, match="smallest picture has 90000 pixels, the largest 65536"):
        build(tmp_path, SourceConfig(path=path, min_pixels=300**2), max_pixels=256**2)
    with pytest.raises(ConfigError, match="min_pixels 9 is above max_pixels 8"):
        SourceConfig(path=path, min_pixels=9, max_pixels=8)


@pytest.mark.parametrize("more", [{"weight": 2.0}, {"name": "other"}, {"form": "openai"}, {"filter": "a = 1"}])
def test_a_file_that_two_entries_read_in_different_ways_is_an_error(tmp_path: Path, more: dict[str, Any]) -> None:
    path = write(tmp_path / "set" / "a.jsonl", [chat(1)])
    for first in (path, str(tmp_path / "set"), str(tmp_path / "set" / "*.jsonl")):
        with pytest.raises(ConfigError, match=f"a.jsonl is also read by another source.* differ in {next(iter(more))}"):
            find_sources([first, SourceConfig(path=path, **more)], None)
    sources, _ = find_sources([SourceConfig(path=path, **more)] * 2, None)
    assert len(sources) == 1


def test_every_source_has_a_name_of_its_own(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, [chat(1)]) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(ConfigError, match=r"a.jsonl and .*b.jsonl have the same name x"):
        find_sources([SourceConfig(path=path, name="x") for path in paths], None)
    (tmp_path / "set").mkdir()
    for language in ("de", "en"):
        write(tmp_path / "set" / language / "train.jsonl", [chat(1)])
    for path in (tmp_path / "set", tmp_path / "set" / "*" / "train.jsonl"):
        sources, _ = find_sources([SourceConfig(path=str(path), name="x")], None)
        assert [source.name for source in sources] == ["x/de/train.jsonl", "x/en/train.jsonl"]


def test_a_column_of_a_filter_that_no_record_has_is_an_error(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", [chat(i) for i in range(600)] + [chat(9, rare=1)])
    assert build(tmp_path, SourceConfig(path=lines, filter="rare IS NULL")).counts["packed"] == 600
    with pytest.raises(ConfigError, match=r"no record of .*a.jsonl has the column raer"):
        build(tmp_path, SourceConfig(path=lines, filter="raer IS NULL"), out="two")
    with pytest.raises(BuildError, match="nothing to pack; 601 skipped: filter"):
        build(tmp_path, SourceConfig(path=lines, filter="rare = 2"), out="two")
    assert not (tmp_path / "two").exists()


def test_a_filter_reads_columns_of_tables_and_texts_of_csv(tmp_path: Path) -> None:
    pl.DataFrame({"text": ["a b", "c d"], "score": [0.2, 0.8]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("text,score\na b,0.2\nc d,9\ne f,10\n")
    assert build(tmp_path, SourceConfig(path=str(tmp_path / "a.parquet"), filter="score > 0.5")).counts["packed"] == 1
    with pytest.raises(ConfigError, match=r"score is String: .*TRY_CAST"):
        build(tmp_path, SourceConfig(path=str(tmp_path / "b.csv"), filter="score > 0.5"), out="two")
    source = SourceConfig(path=str(tmp_path / "b.csv"), filter="TRY_CAST(score AS DOUBLE) > 9.5")
    assert build(tmp_path, source, out="two").counts["packed"] == 1


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"system_mode": "replace"}, "system_mode is replace, but there is no system prompt"),
        ({"system_mode": "keep", "system": "New."}, "system_mode is keep, so system would not be used"),
        ({"eval_by": "doc"}, "eval_share is not set"),
        ({"eval_by": "$doc", "eval_share": 0.1}, r"eval_by is '\$doc', expected a path"),
        ({"filter": "score >"}, "unable to parse"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_a_record_is_read(
    tmp_path: Path, settings: dict[str, Any], fault: str
) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(ConfigError, match=fault):
        build(tmp_path, SourceConfig(path=str(tmp_path / "a.jsonl.gz"), form="openai", **settings))


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "set" / "a.jsonl", [chat(i) for i in range(40)])
    (tmp_path / "list.yaml").write_text("- ~/set\n")
    tiny_model_folder(tmp_path)
    for number, source in enumerate(("~/set", "~/set/a.jsonl", "~/set/*.jsonl", "~/list.yaml")):
        config = PrepConfig(
            sources=(source,),
            model="~/model",
            media_root="~/set",
            seq_len=256,
            out=f"~/out{number}",
            eval_out=f"~/eval{number}",
            eval_share=0.5,
            workers=0,
        )
        build_shards(config)
        assert open_dataset(tmp_path / f"out{number}").manifest.sources[0]["name"] == str(tmp_path / "set" / "a.jsonl")
        assert (tmp_path / f"eval{number}" / "manifest.json").is_file()


def test_a_record_that_is_read_alone_has_the_settings_of_no_source() -> None:
    assert read_record(chat(1)).weight == 1.0
