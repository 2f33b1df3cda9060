"""Packs from real servers: exact from every kind of store, and every fault is one error that names shard and URL."""

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import DatasetError
from lmms.configs.stores import remote
from lmms.configs.stores.store import open_store
from lmms.train.data.shards import PackReader, Place, read_sidecar
from lmms.train.data.verify import verify
from tests.kit.stores.clouds import HUB, OLD, VOLUME, clouds
from tests.kit.stores.clouds import requests as requests_of
from tests.kit.stores.served import all_packs, all_same, requests, same, shard_path
from tests.kit.stores.servers import PASSWORD, USER, Server, s3_server, sftp_server


def after(seconds: float, act: Callable[[], object]) -> threading.Thread:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def test_a_web_server(web: tuple[Server, str], root: Path, packs: list[Pack]) -> None:
    _, url = web
    dataset = open_dataset(url)
    assert dataset.where == url
    assert all_same(all_packs(dataset), packs)
    requests(root)
    PackReader([dataset]).read(read_sidecar(dataset).place(5))
    assert requests(root) == ["packs.parquet", "shard.00001.mds"]


def test_an_s3_server(root: Path, packs: list[Pack], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the shards lie other objects, and the URL is a folder of the bucket."""
    import obstore
    from obstore.store import S3Store

    with s3_server(monkeypatch) as (server, url):
        bucket = S3Store("bucket")
        obstore.put(bucket, "runs/a/shards/later/x", b"x")
        obstore.put(bucket, "runs/a/shardsX", b"x")
        for path in (root / "shards").iterdir():
            obstore.put(bucket, f"runs/a/shards/{path.name}", path.read_bytes())
        url += "/runs/a/shards"
        assert all_same(all_packs(open_dataset(url)), packs)

        shard = shard_path(root, 1)
        obstore.put(bucket, f"runs/a/shards/{shard.name}", shard.read_bytes()[:-1])
        with pytest.raises(DatasetError, match=f"^{url}/{shard.name} has .* bytes, expected .*truncated"):
            open_dataset(url)
        obstore.delete(bucket, f"runs/a/shards/{shard.name}")
        with pytest.raises(DatasetError, match=f"^{url}/{shard.name} is missing"):
            open_dataset(url)

        for name in ("bucket/other", "other"):
            with pytest.raises(DatasetError, match=f"^s3://{name}/manifest.json is missing"):
                open_dataset(f"s3://{name}")
        server.kill()
        with pytest.raises(DatasetError, match=f"^{url}/manifest.json cannot be read: .*refused.*tried for 0.5 s") as e:
            open_dataset(url, retry_s=0.5)
        assert PASSWORD not in str(e.value)


def test_a_bucket_that_may_not_be_listed_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore
    from obstore.exceptions import PermissionDeniedError

    def refuse(store: object) -> None:
        raise PermissionDeniedError("403")

    monkeypatch.setattr(obstore, "list_with_delimiter", refuse)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert open_store("s3://bucket/a", 0).sizes() is None


def test_an_sftp_server(root: Path, packs: list[Pack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").mkdir()
    with sftp_server(root, tmp_path / "keys", monkeypatch) as (server, url):
        url += "/shards"
        dataset = open_dataset(url, retry_s=20)
        where = dataset.where
        assert (USER in where, PASSWORD in where) == (False, False)
        assert all_same(all_packs(dataset), packs)

        sidecar, reader = read_sidecar(dataset), PackReader([dataset])
        server.kill()
        restart = after(0.5, server.start)
        assert same(reader.read(sidecar.place(0)), packs[0])
        restart.join()

        whole = shard_path(root, 1).read_bytes()
        shard_path(root, 1).write_bytes(whole[:-9])
        with pytest.raises(DatasetError, match=f"^{where}/shard.00001.mds has .* bytes, expected .*truncated"):
            open_dataset(url)
        with pytest.raises(
            DatasetError, match=rf"^{where}/shard.00001.mds: pack 7 at byte \d+ has \d+ bytes, expected"
        ):
            reader.read(sidecar.place(7))
        shard_path(root, 1).unlink()
        for _ in range(2):
            with pytest.raises(DatasetError, match=f"^{where}/shard.00001.mds is missing"):
                reader.read(sidecar.place(5))

        server.kill()
        with pytest.raises(DatasetError, match=f"^{where}/manifest.json cannot be read: .*tried for 0.5 s") as caught:
            open_dataset(url, retry_s=0.5)
        assert PASSWORD not in str(caught.value)


def test_threads_of_a_process_read_from_an_sftp_server_side_by_side(
    root: Path, packs: list[Pack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    with sftp_server(root, tmp_path / "keys", monkeypatch) as (_, url):
        dataset = open_dataset(url + "/shards", retry_s=20)
        with ThreadPoolExecutor(4) as pool:
            everyone = [pool.submit(all_packs, dataset) for _ in range(4)]
        assert all(all_same(reading.result(), packs) for reading in everyone)


@pytest.mark.parametrize("cloud", [HUB, VOLUME, OLD])
def test_a_service_behind_its_own_library(
    cloud: str, root: Path, packs: list[Pack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hugging Face's hub, a volume of Databricks and its older file system: list, ranges, and what they refuse."""
    with clouds(root, monkeypatch):
        url = f"{cloud}/shards"
        dataset = open_dataset(url)
        assert dataset.where == url
        assert dataset.store.sizes() == {path.name: path.stat().st_size for path in (root / "shards").iterdir()}
        assert all_same(all_packs(dataset), packs)
        size = shard_path(root, 1).stat().st_size
        assert dataset.store.read_range("shard.00001.mds", size - 3, 9) == shard_path(root, 1).read_bytes()[-3:]
        assert dataset.store.read_range("shard.00001.mds", size + 1, 9) == b""
        sidecar, reader = read_sidecar(dataset), PackReader([dataset])
        requests_of(root)
        reader.read(sidecar.place(5))
        assert len(requests_of(root)) == 1  # nothing but the range

        shard_path(root, 1).unlink()
        with pytest.raises(DatasetError, match=f"^{url}/shard.00001.mds is missing"):
            reader.read(sidecar.place(5))
        for name in ("HF_TOKEN", "DATABRICKS_TOKEN"):
            monkeypatch.setenv(name, "an0ther")
        with pytest.raises(
            DatasetError, match=f"^{url}/manifest.json cannot be read: .*401.*check the URL and the cr"
        ) as e:
            open_dataset(url, retry_s=1000)
        assert "an0ther" not in str(e.value)


def test_an_sftp_server_that_refuses_is_not_asked_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    with sftp_server(root, tmp_path / "keys", monkeypatch) as (_, url):
        with pytest.raises(DatasetError, match="cannot be read: Authentication failed"):
            open_dataset(url.replace(PASSWORD, "wrong") + "/shards", retry_s=1000)
        (tmp_path / "keys" / "known").write_text("")
        with pytest.raises(DatasetError, match="not found in known_hosts"):
            open_dataset(url + "/shards", retry_s=1000)


@pytest.mark.parametrize("fault", ["break", "500 503 429", "kill"])
def test_a_server_that_fails_and_comes_back_is_only_waited_for(
    fault: str, web: tuple[Server, str], root: Path, packs: list[Pack]
) -> None:
    server, url = web
    dataset = open_dataset(url, retry_s=600)
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    (root / "faults").write_text(fault)
    back = threading.Thread(target=lambda: (server.wait(), time.sleep(0.5), server.start()))
    if fault == "kill":
        back.start()
    assert same(reader.read(sidecar.place(3)), packs[3])
    assert not (root / "faults").exists()
    if fault == "kill":
        back.join()


def test_a_server_that_stays_away_is_one_error_and_the_reader_goes_on_when_it_is_back(
    web: tuple[Server, str], packs: list[Pack]
) -> None:
    server, url = web
    dataset = open_dataset(url, retry_s=1)
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    server.kill()
    began = time.monotonic()
    expected = rf"^{url}/shard\.00001\.mds cannot be read: .*\(Connection refused\); tried for 1 s .*can be resumed"
    with pytest.raises(DatasetError, match=expected) as caught:
        reader.read(sidecar.place(6))
    assert time.monotonic() - began >= 1
    assert "\n" not in str(caught.value)
    server.start()
    assert same(reader.read(sidecar.place(6)), packs[6])


def test_no_error_holds_credentials(root: Path, web: tuple[Server, str]) -> None:
    server, plain = web
    url = plain.replace("://", "://someone:secret1@") + "?token=secret2"
    dataset = open_dataset(url, retry_s=0.2)
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    place = sidecar.place(0)
    shown = [dataset.where, repr(dataset), repr(dataset.store)]
    for act in (
        lambda: shard_path(root, 0).unlink(),
        lambda: shard_path(root, 0).write_bytes(b"short"),
        lambda: (root / "faults").write_text("403"),
        lambda: (root / "faults").write_text("503 " * 100),
        server.kill,
    ):
        act()
        with pytest.raises(DatasetError) as caught:
            reader.read(place)
        assert str(caught.value).startswith(f"{plain}/shard.00000.mds")
        shown += traceback.format_exception(caught.value)
    assert "secret" not in "\n".join(shown)


def test_a_shard_that_is_missing_there_is_an_error_each_time(web: tuple[Server, str], root: Path) -> None:
    _, url = web
    shard_path(root, 1).unlink()
    dataset = open_dataset(url, retry_s=1000)
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    reader.read(sidecar.place(0))
    for _ in range(2):
        with pytest.raises(DatasetError, match=rf"^{url}/shard\.00001\.mds is missing"):
            reader.read(sidecar.place(7))


@pytest.mark.parametrize("missing", [1, 10**6])
def test_a_shard_that_is_truncated_there_is_named(missing: int, web: tuple[Server, str], root: Path) -> None:
    _, url = web
    path = shard_path(root, 1)
    os.truncate(path, max(path.stat().st_size - missing, 1))
    dataset = open_dataset(url)
    place = read_sidecar(dataset).place(7)
    expected = rf"^{url}/shard\.00001\.mds: pack 7 at byte \d+ has \d+ bytes, expected {place.bytes}: truncated"
    with pytest.raises(DatasetError, match=expected):
        PackReader([dataset]).read(place)


def test_a_byte_that_changes_on_the_way_is_read_again(web: tuple[Server, str], root: Path, packs: list[Pack]) -> None:
    _, url = web
    dataset = open_dataset(url)
    sidecar = read_sidecar(dataset)
    (root / "faults").write_text("damage")
    assert same(PackReader([dataset]).read(sidecar.place(2)), packs[2])
    assert not (root / "faults").exists()


def test_a_byte_that_is_changed_there_is_an_error_each_time(web: tuple[Server, str], root: Path) -> None:
    _, url = web
    dataset = open_dataset(url)
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    place = sidecar.place(6)
    data = bytearray(shard_path(root, 1).read_bytes())
    data[place.offset + 99] ^= 1
    shard_path(root, 1).write_bytes(data)
    reader.read(sidecar.place(5))
    for _ in range(2):
        with pytest.raises(DatasetError, match=rf"^{url}/shard\.00001\.mds: pack 6 at byte \d+ is damaged"):
            reader.read(place)
    assert [fault for fault in verify(url) if "hash" in fault]


def test_a_whole_data_set_verifies_where_it_is(web: tuple[Server, str], root: Path) -> None:
    """Up to the tables of samples, which this one has not."""
    _, url = web
    faults = [fault for fault in verify(url) if "samples.parquet" not in fault and "packed" not in fault]
    assert faults == []
    os.truncate(root / "shards" / "rejects.parquet", 3)
    with pytest.raises(DatasetError, match=f"^{url}/rejects.parquet is damaged"):
        list(verify(url))


def test_a_changed_index_is_refused(web: tuple[Server, str], root: Path) -> None:
    _, url = web
    path = root / "shards" / "index.json"
    path.write_bytes(path.read_bytes().replace(b'"samples": 4', b'"samples": 5'))
    with pytest.raises(DatasetError, match=rf"^{url}/index\.json is damaged: its hash is not the manifest's"):
        open_dataset(url)


def read_elsewhere(reader: PackReader, place: Place) -> bytes:
    return reader.read_bytes(place)


def test_a_reader_connects_again_in_another_process(web: tuple[Server, str], packs: list[Pack]) -> None:
    _, url = web
    dataset = open_dataset(url)
    reader, place = PackReader([dataset]), read_sidecar(dataset).place(4)
    here = reader.read_bytes(place)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_elsewhere, (reader, place)) == here


def test_files_of_many_blocks_are_put_together(
    web: tuple[Server, str], packs: list[Pack], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 1000)
    assert all_same(all_packs(open_dataset(web[1])), packs)
    assert requests(root).count("packs.parquet") > 1
