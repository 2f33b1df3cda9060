"""Shards written to a bucket: a real S3 server, the bytes of a local build, and nothing complete that is not."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import ObjectStore, from_url

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.errors import BuildError, ConfigError, DatasetError
from lmms.configs.files import part_folder
from lmms.configs.load import to_yaml
from lmms.configs.settings.prep import PrepConfig
from lmms.prep import output
from lmms.prep.build import build_shards
from lmms.prep.build_report import REPORT_NAME
from lmms.train.data.verify import verify
from tests.kit.folders import shard_files, tiny_model_folder
from tests.kit.records import write_records
from tests.kit.stores.faulty import Faults, faulty
from tests.kit.stores.servers import s3_server

URL = "s3://bucket/sets/out"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """An S3 server with an empty bucket, behind a server that does these faults."""
    with s3_server(monkeypatch) as (server, _), faulty(server.port) as (port, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield faults


def settings(folder: Path, out: str = URL, **more: Any) -> PrepConfig:
    source = folder / "data"
    if not source.exists():
        write_records(source, 1300)
    work = {"work": str(folder / "work")} if out.startswith("s3") else {}
    values = {"seq_len": 512, "max_rejects": 0.5, "workers": 0, "shard_bytes": 2**20, **work, **more}
    return PrepConfig(sources=(str(source),), model=str(tiny_model_folder(folder)), out=out, **values)


def objects(url: str = URL) -> dict[str, bytes]:
    """The same as shard_files, of a URL."""
    store: ObjectStore = from_url(url)
    names = [entry["path"] for entry in obstore.list_with_delimiter(store)["objects"] if entry["path"] != REPORT_NAME]
    return {name: bytes(obstore.get(store, name).bytes()) for name in names}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucket_gets_the_bytes_of_a_local_build_and_this_machine_keeps_nothing(
    tmp_path: Path, faults: Faults, workers: int
) -> None:
    build_shards(settings(tmp_path, str(tmp_path / "local")))
    manifest = build_shards(settings(tmp_path, workers=workers))
    assert objects() == shard_files(tmp_path / "local")
    assert len([name for name in objects() if name.endswith(".mds")]) > 1
    assert open_dataset(URL).manifest.counts == manifest.counts
    assert list(verify(URL)) == []
    assert list((tmp_path / "work").iterdir()) == []
    puts = [path.rpartition("/")[2] for method, path in faults.requests if method == "PUT"]
    assert puts[-1] == "manifest.json"
    with pytest.raises(BuildError, match=r"s3://bucket/sets/out exists; remove it"):
        build_shards(settings(tmp_path))


def test_records_for_evaluation_get_a_place_beside_it(tmp_path: Path, faults: Faults) -> None:
    build_shards(settings(tmp_path, str(tmp_path / "local"), eval_share=0.1))
    build_shards(settings(tmp_path, eval_share=0.1))
    assert objects() == shard_files(tmp_path / "local")
    assert objects(URL + "-eval") == shard_files(tmp_path / "local-eval")


@pytest.mark.parametrize("fault", [500, 503, "break", "lost", "slow"])
def test_a_request_that_fails_is_asked_again(tmp_path: Path, faults: Faults, fault: object) -> None:
    build_shards(settings(tmp_path, str(tmp_path / "local")))
    names = ("building.json", "shard.00000.mds", "packs.parquet", "manifest.json")
    faults.to_come = [("PUT", name, fault) for name in names] + [("GET", "list-type", fault)]
    build_shards(settings(tmp_path))
    assert faults.to_come == []
    assert objects() == shard_files(tmp_path / "local")


def test_a_large_file_goes_in_parts_of_which_some_fail(tmp_path: Path, faults: Faults) -> None:
    content = bytes(range(256)) * 2**16 * 2
    (tmp_path / "table").write_bytes(content)
    with output.new_output(URL, tmp_path / "x") as out:
        assert out.remote
        faults.to_come = [("PUT", "partNumber=2", 503), ("PUT", "partNumber=3", "break")]
        out.write("shard.00000.mds", content)
        out.remote.write("packs.parquet", tmp_path / "table")
        assert objects()["shard.00000.mds"] == objects()["packs.parquet"] == content
        (out.folder / "index.json").write_text('{"version": 2, "shards": []}')
        (out.folder / "manifest.json").write_text("{}")
    assert faults.to_come == []


def test_a_server_that_stays_away_ends_the_build_and_the_same_command_goes_on(
    tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_RETRY_S", 0.2)
    faults.to_come = [("PUT", "packs.parquet", 500)] * 50
    with pytest.raises(DatasetError, match=r"sets/out/packs\.parquet cannot be written: .*500.*; tried for 0\.2 s$"):
        build_shards(settings(tmp_path))
    assert objects() == {}
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".lmms-store"]
    faults.to_come = []
    build_shards(settings(tmp_path))
    assert list(verify(URL)) == []


def test_what_a_killed_build_left_is_replaced(tmp_path: Path, faults: Faults) -> None:
    store: ObjectStore = from_url(URL)
    for name in ("building.json", "shard.00000.mds", "shard.00077.mds", "index.json", "packs.parquet"):
        obstore.put(store, name, b"left")
    with pytest.raises(DatasetError, match=r"manifest\.json is missing"):
        open_dataset(URL)
    build_shards(settings(tmp_path, str(tmp_path / "local")))
    build_shards(settings(tmp_path))
    assert objects() == shard_files(tmp_path / "local")


def test_files_of_somebody_else_are_left_alone(tmp_path: Path, faults: Faults) -> None:
    store: ObjectStore = from_url(URL)
    obstore.put(store, "notes.txt", b"mine")
    with pytest.raises(BuildError, match=r"holds 1 file that no build wrote, such as notes\.txt; expected a URL"):
        build_shards(settings(tmp_path))
    assert objects() == {"notes.txt": b"mine"}


def begin(folder: Path, *, ends: bool) -> None:
    """Another build begins at the URL, and is complete if it `ends`."""
    config = replace(settings(folder), work=str(folder / "elsewhere"))
    if ends:
        build_shards(config)
    else:
        output._begun(URL)


@pytest.mark.parametrize(("name", "ends"), [("shard.00000", False), ("shard.00000", True), ("samples.parquet", False)])
def test_the_second_of_two_builds_takes_over_and_the_first_stops(
    tmp_path: Path, faults: Faults, name: str, ends: bool
) -> None:
    """The second begins while a file of the first is on its way."""
    first = settings(tmp_path)
    before: list[int] = []

    def other_build() -> None:
        begin(tmp_path, ends=ends)
        before.append(len(faults.requests))

    faults.to_come = [("PUT", name, other_build)]
    said = "another build has ended" if ends else "another build, process .* has begun"
    with pytest.raises(BuildError, match=rf"{said} at s3://bucket/sets/out"):
        build_shards(first)
    assert [path for method, path in faults.requests[before[0] :] if method == "PUT"] == []
    if ends:
        assert list(verify(URL)) == []
    else:
        assert "manifest.json" not in objects()


def test_two_builds_at_one_url_from_one_machine_are_told_apart_before_anything_is_written(
    tmp_path: Path, faults: Faults
) -> None:
    config = settings(tmp_path)
    with part_folder(config.folder, BuildError), pytest.raises(BuildError, match="another process is writing"):
        build_shards(config)
    assert objects() == {}


def test_a_build_that_is_stopped_takes_back_what_it_wrote(tmp_path: Path, faults: Faults) -> None:
    def write(out: output.Output) -> None:
        out.write("shard.00000.mds", b"some")
        assert set(objects()) == {"building.json", "shard.00000.mds"}
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt), output.new_output(URL, settings(tmp_path).folder) as out:
        write(out)
    assert objects() == {}


def test_a_file_that_somebody_changes_is_found_before_the_manifest_is_written(tmp_path: Path, faults: Faults) -> None:
    def change() -> None:
        obstore.put(from_url(URL), "shard.00000.mds", b"changed")

    faults.to_come = [("PUT", "samples.parquet", change)]
    with pytest.raises(BuildError, match=r"shard\.00000\.mds has 7 bytes, \d+ were written: somebody else"):
        build_shards(settings(tmp_path))
    assert objects() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": "https://host/out"}, r"out https://host/out: expected a folder, or a URL that can be written: s3://"),
        ({"out": "s3://bucket/a", "eval_out": "hf://datasets/a/b"}, r"eval_out hf://datasets/a/b: expected a folder"),
        ({"out": "shards", "work": "there"}, r"work is there, but out is a folder, shards"),
    ],
)
def test_settings_that_name_no_place_to_write_are_an_error(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_out(**change)


def with_out(out: str, **more: Any) -> PrepConfig:
    return PrepConfig(sources=("x",), model="m", seq_len=8, out=out, **more)


def test_files_of_a_build_lie_apart_for_each_url() -> None:
    folders = {with_out(out).folder for out in ("s3://a/out", "s3://b/out", "gs://a/out")}
    assert len(folders) == 3
    assert {folder.name[:4] for folder in folders} == {"out-"}
    assert with_out("s3://a/out/").folder == with_out("s3://a/out").folder
    assert with_out("s3://a/out", work="/scratch").folder.parent == Path("/scratch")
    assert with_out("s3://a/out/").eval_place == "s3://a/out-eval"


def test_the_file_of_a_build_into_a_bucket_also_serves_a_plan(tmp_path: Path) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(to_yaml(settings(tmp_path)))
    command = [sys.executable, "-m", "lmms.cli", "prep", "plan", "--config", str(config), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["read"] == 1301
