"""Forms in a build: found once for a source, the same shards as from OpenAI's form, from tables too."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from lmms.configs.contract.manifest import Manifest
from lmms.configs.errors import ConfigError, SourceError
from lmms.configs.load import load_config
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.prep.build import build_shards
from lmms.prep.first_records import read_records, with_forms
from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.sources import find_sources
from tests.kit.folders import tiny_model_folder

PAIRS = [(f"question {i}", f"answer {i}" * (i % 5 + 1)) for i in range(60)]


def openai(question: Any, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def sharegpt(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def write(path: Path, records: list[dict[str, Any]]) -> str:
    """Records in the container that the name asks for."""
    if path.suffix == ".parquet":
        pl.DataFrame(records).write_parquet(path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(records)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def build(tmp_path: Path, out: str, *sources: SourceConfig | str, **more: Any) -> Manifest:
    values: dict[str, Any] = {"seq_len": 512, "workers": 0, **more}
    model = str(tiny_model_folder(tmp_path))
    return build_shards(PrepConfig(sources=sources, model=model, out=str(tmp_path / out), **values))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.mds"))}


FORMS: dict[str, Any] = {
    "sharegpt": sharegpt,
    "alpaca": lambda question, answer: {"instruction": question, "input": "", "output": answer},
    "swift": lambda question, answer: {"query": question, "response": answer},
    "trl": lambda question, answer: {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    },
}


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_shards_of_openais_form(form: str, ending: str, tmp_path: Path) -> None:
    build(tmp_path, "expected", write(tmp_path / "openai.jsonl", [openai(*pair) for pair in PAIRS]))
    source = write(tmp_path / f"other{ending}", [FORMS[form](*pair) for pair in PAIRS])
    manifest = build(tmp_path, "out", source)
    assert [entry["form"] for entry in manifest.sources] == [form]
    assert manifest.counts["packed"] == len(PAIRS)
    assert manifest.notes == {}
    assert shards(tmp_path / "out") == shards(tmp_path / "expected")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_tags_of_llava_are_the_places_of_the_pictures(ending: str, tmp_path: Path) -> None:
    for i in range(4):
        Image.effect_noise((40 + 30 * i, 64), 50).save(tmp_path / f"{i}.png")
    parts = [({"type": "image", "image": f"{i}.png"}, {"type": "text", "text": f"\nquestion {i}"}) for i in range(4)]
    build(tmp_path, "expected", write(tmp_path / "a.jsonl", [openai(list(both), "yes") for both in parts]))
    records = [{"image": f"{i}.png", **sharegpt(f"<image>\nquestion {i}", "yes")} for i in range(4)]
    manifest = build(tmp_path, "out", write(tmp_path / f"b{ending}", records))
    assert manifest.sources[0]["form"] == "llava"
    assert manifest.counts["media"] == 4
    assert shards(tmp_path / "out") == shards(tmp_path / "expected")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("form", ["openai", "alpaca"])
def test_pictures_in_a_column_that_the_form_does_not_read_are_a_rejection(
    form: str, ending: str, tmp_path: Path
) -> None:
    make = {**FORMS, "openai": openai}[form]
    path = write(tmp_path / f"a{ending}", [{**make("a", "b"), "photo_path": "a.png", "photo_count": 1}])
    ((_, _, reject),) = read_records([path])
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.place) == ("unread_media", "photo_path")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("column", ["Image", "image_list", "screenshot", "jpg", "file_name"])
def test_a_column_of_pictures_is_known_by_its_name_in_tables_too(column: str, ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{ending}", [{**openai("a", "b"), column: "a.png"}])
    ((_, _, reject),) = read_records([path])
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.place) == ("unread_media", column)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("meta", [{"n": 1, "image": "a.png"}, [{"image": {"bytes": b"a", "path": "a"}}]])
def test_media_within_a_column_are_seen_in_tables_too(meta: Any, ending: str, tmp_path: Path) -> None:
    if ending == ".jsonl" and isinstance(meta, list):
        meta = [{"image": {"path": "a.png"}}]
    path = write(tmp_path / f"a{ending}", [{**openai("a", "b"), "meta": meta, "size": {"width": 3}}])
    ((_, _, reject),) = read_records([path])
    assert isinstance(reject, Reject)
    assert reject.reason == "unread_media"


@pytest.mark.parametrize("form", ["openai", "sharegpt", "swift", "trl", "llamafactory", "lmms_engine", "veomni"])
def test_a_table_gives_every_form_the_columns_that_lines_give(form: str, tmp_path: Path) -> None:
    functions = [{"name": "f", "parameters": {"type": "object"}}]
    record = {**openai("a", "b"), "functions": functions, "chat_template_kwargs": {"x": 1}, "system": "s", "weight": 2}
    sources = [
        SourceConfig(path=write(tmp_path / f"a{ending}", [record]), form=form) for ending in (".jsonl", ".parquet")
    ]
    (_, _, line), (_, _, row) = read_records(sources)
    assert isinstance(line, Record)
    assert (line.template_options, line.weight, len(line.tools), len(line.messages)) == ({"x": 1}, 2, 1, 3)
    assert row == line


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_the_weights_of_a_table_of_text_are_numbers(ending: str, tmp_path: Path) -> None:
    lines = ["instruction,output,weight", "a,b,0.5", "a,b,", "a,b,heavy", "a,b,nan"]
    (tmp_path / f"a{ending}").write_text("\n".join(lines).replace(",", "," if ending == ".csv" else "\t") + "\n")
    read = [value for _, _, value in read_records([str(tmp_path / f"a{ending}")])]
    assert [value.weight for value in read if isinstance(value, Record)] == [0.5, 1]
    assert [value.reason for value in read if isinstance(value, Reject)] == ["bad_weight", "bad_weight"]


def test_a_form_is_held_for_all_of_a_source(tmp_path: Path) -> None:
    records = [*[openai(*pair) for pair in PAIRS], sharegpt("a", "b")]
    manifest = build(tmp_path, "out", write(tmp_path / "a.jsonl", records), max_rejects=0.5)
    assert (manifest.counts["packed"], manifest.rejects) == (len(PAIRS), {"missing_messages": 1})


def test_records_in_memory_have_a_form_too(tmp_path: Path) -> None:
    for out, records in {"list": [sharegpt(*pair) for pair in PAIRS], "frame": None}.items():
        given = pl.DataFrame([sharegpt(*pair) for pair in PAIRS]) if records is None else iter(records)
        config = PrepConfig(
            sources=(), model=str(tiny_model_folder(tmp_path)), seq_len=512, out=str(tmp_path / out), workers=0
        )
        manifest = build_shards(config, records=given)
        assert [(source["form"], source["packed"]) for source in manifest.sources] == [("sharegpt", len(PAIRS))]
    assert shards(tmp_path / "list") == shards(tmp_path / "frame")


def test_a_map_of_fields_reads_records_of_any_shape(tmp_path: Path) -> None:
    records = [{"data": {"turns": openai(*pair)["messages"], "n": 1}, "tag": "x"} for pair in PAIRS]
    build(tmp_path, "expected", write(tmp_path / "openai.jsonl", [openai(*pair) for pair in PAIRS]))
    for ending in (".jsonl", ".parquet"):
        path = write(tmp_path / f"other{ending}", records)
        manifest = build(tmp_path, f"out{ending}", SourceConfig(path=path, fields={"messages": "$.data.turns"}))
        assert manifest.notes == {"column tag": len(PAIRS), "column data.n": len(PAIRS)}
        assert shards(tmp_path / f"out{ending}") == shards(tmp_path / "expected")


def test_a_map_of_fields_names_the_columns_of_another_form(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"q": "a", "meta": [{"a": "b"}], "pics": None}])
    fields = {"instruction": "q", "output": "$.meta[0].a", "images": ["$.pics"]}
    ((_, _, record),) = read_records([SourceConfig(path=path, form="alpaca", fields=fields)])
    assert not isinstance(record, Reject)
    assert [message.content for message in record.messages] == ["a", "b"]


def test_a_place_is_that_of_the_record_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"data": {"turns": [{"role": "user"}]}}])
    ((_, _, reject),) = read_records([SourceConfig(path=path, fields={"messages": "$.data.turns"})])
    assert isinstance(reject, Reject)
    assert reject.place == "data.turns[0].content"


@pytest.mark.parametrize("path", ["", "$", "$.a[", "$..a", "a[x]", "[0]", 3, ["$.a", 4], None])
def test_a_path_that_is_none_is_an_error_that_names_its_field(path: Any, tmp_path: Path) -> None:
    source = SourceConfig(path=write(tmp_path / "a.jsonl", [openai("a", "b")]), fields={"messages": path})
    with pytest.raises(ConfigError, match=r"fields\.messages"):
        find_sources([source], None)


@pytest.mark.parametrize(("form", "name", "meant"), [(None, "mesages", "messages"), ("alpaca", "answer", "output")])
def test_a_field_that_no_form_has_is_an_error_that_names_the_columns(
    form: Any, name: str, meant: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [openai("a", "b")])
    with pytest.raises(ConfigError, match=rf"fields\.{name}.*{meant}"):
        find_sources([SourceConfig(path=path, form=form, fields={name: "$.a"})], None)


def test_records_that_fit_no_form_are_one_error_that_names_columns_and_forms(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"picture": "a.jpg", "size": 3}])
    with pytest.raises(SourceError, match=r"a\.jsonl: no form fits .* picture, size; .*sharegpt.*fields"):
        build(tmp_path, "out", path)
    assert not (tmp_path / "out").exists()


def test_lines_that_are_no_records_are_left_to_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{\n\n3\n"a"\n')
    (source,) = with_forms(find_sources([str(tmp_path / "a.jsonl")], None)[0])
    assert source.reading.form == "openai"


def test_a_form_that_is_named_is_taken_whatever_the_records_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [openai("a", "b")])
    ((_, _, reject),) = read_records([SourceConfig(path=path, form="alpaca")])
    assert isinstance(reject, Reject)
    assert reject.reason == "missing_messages"
    assert "found the columns messages" in reject.message


DATASETS = """
datasets:
  - path: {folder}/a.jsonl
    data_folder: "{folder}/images"
    data_type: jsonl
  - path: {folder}/b.parquet
    data_folder: ""
    data_type: parquet
  - path: {folder}/a2.jsonl
"""


def test_the_data_set_file_of_lmms_engine_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.effect_noise((40, 64), 50).save(tmp_path / "images" / "0.png")
    part = {"type": "image_url", "image_url": {"url": "0.png"}}
    write(tmp_path / "a.jsonl", [openai([part], "yes")])
    write(tmp_path / "b.parquet", [openai(*pair) for pair in PAIRS])
    write(tmp_path / "a2.jsonl", [openai([{**part, "image_url": {"url": "images/0.png"}}], "yes")])
    (tmp_path / "data.yaml").write_text(DATASETS.format(folder=tmp_path))
    manifest = build(tmp_path, "out", "data.yaml")
    assert [Path(entry["name"]).name for entry in manifest.sources] == ["a.jsonl", "b.parquet", "a2.jsonl"]
    assert (manifest.counts["packed"], manifest.counts["media"]) == (len(PAIRS) + 2, 2)


def test_the_same_list_may_stand_in_the_run_file(tmp_path: Path) -> None:
    run = {
        "model": "m",
        "seq_len": 512,
        "out": "out",
        "sources": yaml.safe_load(DATASETS.format(folder="data"))["datasets"],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    config = load_config(PrepConfig, tmp_path / "run.yaml")
    assert [source.own_root for source in config.source_configs] == ["data/images", ".", None]


def test_a_file_of_sources_is_a_list_of_paths_and_mappings(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{i}.jsonl", [openai("a", "b")]) for i in range(3)]
    body = [names[0], {"path": names[1], "form": "alpaca", "name": "mine"}, {"path": names[2], "targets": "last"}]
    (tmp_path / "list.yml").write_text(yaml.safe_dump(body))
    sources, _ = find_sources([SourceConfig(path=str(tmp_path / "list.yml"), form="openai", targets="all")], None)
    assert [(source.name, source.reading.form, source.reading.targets) for source in sources] == [
        (names[0], "openai", "all"), ("mine", "alpaca", "all"), (names[2], "openai", "last"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a list of paths"),
        ("[]", "expected a list of paths"),
        ("datasets: {a: 1}", "expected a list of paths"),
        ("[{form: alpaca}]", r"required but not set: sources\[0\]\.path"),
        ("datasets: [{path: a.jsonl, data_tpye: json}]", r"did you mean 'datasets\[0\].data_type'"),
        ("[{path: a.jsonl, form: alpacca}]", r"list\.yaml: sources\[0\]\.form is 'alpacca'"),
        ("[{path: a.jsonl, media_root: a, data_folder: b}]", "one setting"),
        ("[{path: a.jsonl, data_folder: 3}]", "expected a folder"),
        ("[other.yaml]", "another list of sources"),
        ("[a", "list.yaml, line"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_list_of_sources_is_an_error_that_names_it(
    text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_sources([str(tmp_path / "list.yaml")], None)


def test_a_file_of_another_kind_than_its_entry_says_is_an_error(tmp_path: Path) -> None:
    source = SourceConfig(path=write(tmp_path / "a.parquet", [openai("a", "b")]), data_type="jsonl")
    with pytest.raises(SourceError, match=r"a\.parquet: data_type says jsonl, but the file is read as parquet"):
        find_sources([source], None)
