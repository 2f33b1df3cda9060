"""Sources behind URLs: real servers, the rows of the files, and errors without credentials."""

import json
import time
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import Any

import obstore
import polars as pl
import pytest
from obstore.store import from_url

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.errors import BuildError, ConfigError, SourceError
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.configs.stores import filesystems
from lmms.prep.build import build_shards
from lmms.prep.chunks import chunk_values, read_chunks
from lmms.prep.media.network import Network
from lmms.prep.media.read import MediaRef, read_image
from lmms.prep.progress import Progress
from lmms.prep.reject import Reject
from lmms.prep.rows.find import unread_text
from lmms.prep.sources import find_sources
from lmms.train.data.verify import verify
from tests.kit.folders import tiny_model_folder
from tests.kit.media.pictures import encoded
from tests.kit.stores.azure import azure
from tests.kit.stores.clouds import HUB, OLD, VOLUME, clouds
from tests.kit.stores.servers import s3_server, sftp_server, web_server

RECORDS = [{"messages": f"text {i}"} for i in range(3)]
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


def read(url: str, folder: Path) -> tuple[list[str], list[Any], str]:
    """(names of the sources, their rows, what is not read)."""
    sources, unread = find_sources([url], None, fetched=folder)
    rows = [value for chunk in read_chunks(sources) for _, value in chunk_values(chunk, sources[chunk.source].columns)]
    return [source.name for source in sources], rows, unread_text(unread)


def test_a_file_of_a_web_server_is_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.jsonl").write_bytes(LINES)
    with web_server(tmp_path / "served") as (_, url):
        assert read(f"{url}/a.jsonl", tmp_path / "copies") == ([f"{url}/a.jsonl"], RECORDS, "")
        with pytest.raises(SourceError, match=r"/none\.jsonl is not there"):
            read(f"{url}/none.jsonl", tmp_path / "copies")
        with pytest.raises(SourceError, match="no list of its files; name each file"):
            read(f"{url}/", tmp_path / "copies")


def test_a_folder_and_a_glob_of_a_bucket_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl.DataFrame(RECORDS).write_parquet(tmp_path / "b.parquet")
    with s3_server(monkeypatch) as (_, bucket):
        store = from_url(bucket)
        for name, data in (
            *(("set/a.jsonl", LINES), ("set/b.parquet", (tmp_path / "b.parquet").read_bytes())),
            *(("set/c.png", b""), ("set/._a.jsonl", LINES), ("set/in/d.jsonl", LINES)),
        ):
            obstore.put(store, name, data)
        names, rows, unread = read(f"{bucket}/set/", tmp_path / "folder")
        assert names == [f"{bucket}/set/a.jsonl", f"{bucket}/set/b.parquet"]
        assert rows == 2 * RECORDS
        assert set(unread.split(", ")) == {"1 file .png", "1 hidden file"}
        assert read(f"{bucket}/set/*.parquet", tmp_path / "glob")[1] == RECORDS
        with pytest.raises(SourceError, match="no file of chat records there"):
            read(f"{bucket}/set/*.csv", tmp_path / "none")


def test_a_data_set_of_the_hub_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pl.DataFrame(RECORDS).write_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    with clouds(tmp_path / "hub", monkeypatch):
        names, rows, _ = read(f"{HUB}/data", tmp_path / "copies")
        assert names == [f"{HUB}/data/train-00000-of-00001.parquet"]
        assert rows == RECORDS


def picture_record(name: str) -> dict[str, Any]:
    question = {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "What?"}]}
    return {"messages": [question, {"role": "assistant", "content": f"{name}."}]}


def lines_of(*names: str) -> bytes:
    return b"".join(json.dumps(picture_record(name)).encode() + b"\n" for name in names)


def build(tmp_path: Path, source: str, out: str = "out", **settings: Any) -> Path:
    values = {"seq_len": 512, "workers": 0, "max_rejects": 0.9, "model": str(tiny_model_folder(tmp_path)), **settings}
    build_shards(PrepConfig(sources=(SourceConfig(path=source),), out=str(tmp_path / out), **values))
    return tmp_path / out


def rejects(folder: Path) -> dict[int, tuple[str, str]]:
    """row -> reason and message."""
    table = pl.read_parquet(folder / "rejects.parquet").select("row", "reason", "message")
    return {row: (reason, message) for row, reason, message in table.iter_rows()}


def test_pictures_are_read_from_beside_a_source_in_a_bucket_and_never_from_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("in/a.png", "b%20c.png", "in/../b%20c.png", "none.png", "../up.png", "/etc/hostname")
    with s3_server(monkeypatch) as (_, bucket):
        store = from_url(bucket)
        for name, data in (
            *(("set/a.jsonl", lines_of(*names)), ("set/in/a.png", encoded("PNG")), ("set/b%20c.png", encoded("PNG"))),
            ("up.png", encoded("PNG")),
        ):
            obstore.put(store, name, data)
        out = build(tmp_path, f"{bucket}/set/a.jsonl", workers=2)
        assert open_dataset(out).manifest.counts["media"] == 3
        assert {row: reason for row, (reason, _) in rejects(out).items()} == {
            3: "missing_file",
            4: "path_outside_root",
            5: "path_outside_root",
        }
        assert "does not exist in s3://bucket/set, where its source is" in rejects(out)[3][1]
        (tmp_path / "root" / "in").mkdir(parents=True)
        (tmp_path / "root" / "in" / "a.png").write_bytes(encoded("PNG"))
        out = build(tmp_path, f"{bucket}/set/a.jsonl", "local", media_root=str(tmp_path / "root"))
        assert open_dataset(out).manifest.counts["media"] == 1


def test_pictures_beside_a_source_of_a_web_server_need_the_network(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.jsonl").write_bytes(lines_of("a.png"))
    (tmp_path / "served" / "a.png").write_bytes(encoded("PNG"))
    with web_server(tmp_path / "served") as (_, url):
        with pytest.raises(BuildError, match=f"remote_url.*beside {url}; set allow_network"):
            build(tmp_path, f"{url}/a.jsonl")
        out = build(tmp_path, f"{url}/a.jsonl", allow_network=True)
        assert open_dataset(out).manifest.counts["media"] == 1


def test_a_server_that_fails_costs_a_picture_and_not_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmms.prep.rows.remote._PICTURE_RETRY_S", 0.0)
    served = tmp_path / "served"
    served.mkdir()
    (served / "a.jsonl").write_bytes(lines_of("a.png"))
    (served / "a.png").write_bytes(encoded("PNG"))
    with web_server(served) as (_, url):
        ((source,), _) = find_sources([f"{url}/a.jsonl"], None, fetched=tmp_path / "copies")
        picture = MediaRef("path", "a.png")
        (served / "faults").write_text("503")
        with pytest.raises(Reject, match=rf"{url}/a\.png cannot be read: .*503") as caught:
            read_image(picture, source.roots, network=Network(), beside=source.beside)
        assert caught.value.reason == "fetch_failed"
        assert caught.value.message.endswith("tried for 0 s")
        assert read_image(picture, source.roots, network=Network(), beside=source.beside) == encoded("PNG")


def test_what_came_over_the_network_is_pinned_and_a_picture_that_changed_is_named(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "a.jsonl").write_bytes(lines_of("a.png", "b.png", "a.png"))
    for name, seed in (("a", 0), ("b", 1)):
        (served / f"{name}.png").write_bytes(encoded("PNG", compress_level=seed))
    with web_server(served) as (_, url):
        first = build(tmp_path, f"{url}/a.jsonl", "first", allow_network=True, transforms=({"name": "hflip"},))
        table = pl.read_parquet(first / "fetched.parquet")
        assert table.rows() == [
            (f"{url}/{name}", sha256(data).hexdigest(), len(data), 37, 23)
            for name, data in ((n, (served / n).read_bytes()) for n in ("a.png", "b.png"))
        ]
        assert list(verify(first)) == []
        again = build(tmp_path, f"{url}/a.jsonl", "again", allow_network=True, pinned_images=str(first))
        assert rejects(again) == {}
        (served / "b.png").write_bytes(encoded("PNG", compress_level=9))
        (served / "a.jsonl").write_bytes(lines_of("a.png", "b.png", "a.png", "c.png"))
        (served / "c.png").write_bytes(encoded("PNG"))
        build(tmp_path, f"{url}/a.jsonl", "unpinned", allow_network=True)
        out = build(tmp_path, f"{url}/a.jsonl", "pinned", allow_network=True, pinned_images=str(first))
        assert {row: reason for row, (reason, _) in rejects(out).items()} == {1: "changed_image"}
        assert f"{url}/b.png' has changed: its SHA-256 is " in rejects(out)[1][1]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.jsonl").write_bytes(lines_of("a.png"))
    (tmp_path / "here" / "a.png").write_bytes(encoded("PNG"))
    local = build(tmp_path, str(tmp_path / "here" / "a.jsonl"), "from_here")
    assert not (local / "fetched.parquet").exists()
    with pytest.raises(ConfigError, match=r"pinned_images: .*from_here/fetched.parquet is not there"):
        build(tmp_path, str(tmp_path / "here" / "a.jsonl"), "none", pinned_images=str(local))


def test_a_source_that_is_copied_reports_at_once_and_while_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch) as (_, bucket):
        store = from_url(bucket)
        obstore.put(store, "a.jsonl", LINES * 400_000)
        obstore.put(store, "b.jsonl", LINES)
        heard: list[Progress] = []
        find_sources([f"{bucket}/"], None, fetched=tmp_path, report=heard.append)
    total = 400_001 * len(LINES)
    assert [progress.stage for progress in heard] == ["copying"] * len(heard)
    assert {progress.total for progress in heard[1:]} == {total}  # which is known once the store has answered
    done = [progress.done for progress in heard]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] == total
    assert len(set(done)) > 3


def test_a_file_of_an_sftp_server_is_read_without_its_password_in_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("served", "keys"):
        (tmp_path / name).mkdir()
    (tmp_path / "served" / "a.jsonl").write_bytes(lines_of("a.png"))
    (tmp_path / "served" / "a.png").write_bytes(encoded("PNG"))
    with sftp_server(tmp_path / "served", tmp_path / "keys", monkeypatch) as (server, url):
        out = build(tmp_path, f"{url}/a.jsonl")
        manifest = open_dataset(out).manifest
        assert manifest.counts["media"] == 1
        assert manifest.sources[0]["name"] == f"sftp://127.0.0.1:{server.port}/a.jsonl"
        assert read(f"{url}/*.jsonl", tmp_path / "glob")[1] == [picture_record("a.png")]


@pytest.mark.parametrize("place", [VOLUME, OLD])
def test_a_folder_of_databricks_is_read(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files" / "set").mkdir(parents=True)
    (tmp_path / "files" / "set" / "a.jsonl").write_bytes(LINES)
    with clouds(tmp_path / "files", monkeypatch):
        assert read(f"{place}/set", tmp_path / "copies") == ([f"{place}/set/a.jsonl"], RECORDS, "")
        assert read(f"{place}/set/a.jsonl", tmp_path / "file")[1] == RECORDS


def test_a_bucket_of_google_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's XML interface answers as S3 does, so the S3 server stands in for it."""
    with s3_server(monkeypatch) as (server, _):
        address = f"http://127.0.0.1:{server.port}"
        public = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}
        file = urllib.request.Request(f"{address}/bucket/set/a.jsonl", data=LINES, headers=public, method="PUT")
        urllib.request.urlopen(file).close()
        account = {"gcs_base_url": address, "disable_oauth": True}
        account |= {"client_email": "", "private_key": "", "private_key_id": ""}
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
        assert read("gs://bucket/set/", tmp_path / "copies") == (["gs://bucket/set/a.jsonl"], RECORDS, "")
        with pytest.raises(SourceError, match=r"gs://bucket/set/b\.jsonl is not there"):
            read("gs://bucket/set/b.jsonl", tmp_path / "none")


def test_a_bucket_of_oracle_is_read_through_its_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system of Oracle's library needs an account; fsspec's own of a folder stands in for it."""
    from fsspec.implementations.local import LocalFileSystem

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_bytes(LINES)
    monkeypatch.setattr("lmms.configs.stores.store.find_spec", lambda module: module)
    opened = []

    def open_folder(url: str) -> tuple[Any, str]:
        opened.append(url)
        return LocalFileSystem(), str(tmp_path / url.rpartition("/")[2])

    monkeypatch.setitem(filesystems._OPENERS, "oci", open_folder)
    names, rows, _ = read("oci://bucket@space/set", tmp_path / "copies")
    assert (names, rows) == (["oci://bucket@space/set/a.jsonl"], RECORDS)
    assert set(opened) == {"oci://bucket@space/set"}


def test_a_container_of_azure_is_read_with_the_pictures_beside_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "served" / "box" / "set"
    (folder / "in").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(lines_of("in/a.png", "none.png"))
    (folder / "in" / "a.png").write_bytes(encoded("PNG"))
    with azure(tmp_path / "served", monkeypatch):
        assert read("az://box/set/", tmp_path / "copies")[0] == ["az://box/set/a.jsonl"]
        out = build(tmp_path, "az://box/set/a.jsonl")
        assert open_dataset(out).manifest.counts["media"] == 1
        assert {row: reason for row, (reason, _) in rejects(out).items()} == {1: "missing_file"}
        with pytest.raises(SourceError, match=r"az://box/set/b\.jsonl is not there"):
            read("az://box/set/b.jsonl", tmp_path / "none")


def test_a_server_that_never_answers_is_named_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmms.prep.rows.remote._FIRST_RETRY_S", 0.2)
    with web_server(tmp_path) as (_, url):
        pass  # nobody listens at its port any more
    reports: list[Progress] = []
    begun = time.monotonic()
    with pytest.raises(SourceError, match=r"127\.0\.0\.1"):
        find_sources([f"{url}/a.jsonl"], None, fetched=tmp_path / "copies", report=reports.append)
    assert time.monotonic() - begun < 60
    assert reports[0].stage == "copying"
