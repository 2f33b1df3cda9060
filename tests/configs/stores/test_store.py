"""Where files are: folders and URLs, what is refused before anything is asked, and what is never shown."""

import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmms.configs.errors import ConfigError, DatasetError
from lmms.configs.stores import remote, store
from lmms.configs.stores.remote import RemoteStore, patiently, safe_text
from lmms.configs.stores.store import LocalStore, open_store, read_blocks, setting_text, shown, shown_setting
from lmms.configs.yaml12 import parse_yaml


def test_a_folder_is_read_by_name_and_range(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"")
    found = open_store(tmp_path, 1)
    assert found.where == str(tmp_path)
    assert found.sizes() == {"a": 10, "b": 0}
    assert (found.read("a"), found.read("b")) == (b"0123456789", b"")
    assert (found.read_range("a", 3, 4), found.read_range("a", 8, 4), found.read_range("a", 20, 4)) == (
        b"3456",
        b"89",
        b"",
    )


def test_a_folder_may_be_named_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~", 1) == LocalStore(tmp_path)


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for read in (
        lambda name: open_store(tmp_path, 1).read(name),
        lambda name: LocalStore(tmp_path).read_range(name, 0, 1),
    ):
        with pytest.raises(DatasetError, match=f"^{tmp_path}/none is missing: .*build or copy the shards again"):
            read("none")
        with pytest.raises(DatasetError, match=f"^{tmp_path}/folder cannot be read .Is a directory"):
            read("folder")


def test_blocks_are_the_file_and_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK", 4)
    (tmp_path / "a").write_bytes(b"0123456789")
    assert list(read_blocks(LocalStore(tmp_path), "a", 10)) == [b"0123", b"4567", b"89"]
    assert b"".join(read_blocks(LocalStore(tmp_path), "a", 14)) == b"0123456789"


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("az://container/a", "az://container/a"),
        ("https://user:secret@host:8443/a/?sig=secret#secret", "https://host:8443/a"),
        ("HTTP://Host/a", "http://Host/a"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("sftp://secret@host:22/a", "sftp://host:22/a"),
        ("hf://datasets/org/name/a", "hf://datasets/org/name/a"),
    ],
)
def test_a_url_becomes_a_store_that_shows_no_credentials(url: str, where: str) -> None:
    found = open_store(url, 7)
    assert isinstance(found, RemoteStore)
    assert found.where == where
    assert found.url.startswith(where[:4])
    assert "secret" not in repr(found)
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("url", "where"),
    [("oci://bucket@namespace/a", "oci://bucket@namespace/a"), ("dbfs:/Volumes/a/b", "dbfs:/Volumes/a/b")],
)
def test_what_is_no_credential_is_shown(url: str, where: str) -> None:
    assert shown(url) == where


@pytest.mark.parametrize(
    ("url", "nearest"),
    [("s4://bucket/a", "known: az, dbfs, gs"), ("ftp://u:secret@h/a", "mean 'sftp'"), ("S3s://b", "mean 's3'")],
)
def test_an_unknown_kind_of_url_is_refused(url: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest) as caught:
        open_store(url, 1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("s3://bucket", "obstore", "obstore"),
        ("hf://datasets/a/b", "huggingface_hub", "huggingface-hub"),
        ("sftp://host/a", "paramiko", "lmms[sftp]"),
        ("oci://bucket@namespace/a", "ocifs", "lmms[oci]"),
        ("dbfs:/Volumes/a/b/c", "databricks", "lmms[dbfs]"),
    ],
)
def test_a_module_that_is_not_installed_is_named(
    url: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(
        ConfigError, match=f"needs the module {module}; install it: pip install {re.escape(repr(package))}$"
    ):
        open_store(url, 1)


def test_opening_a_store_loads_nothing_heavy() -> None:
    code = """
import sys
from lmms.configs.stores.store import open_store
open_store("s3://bucket/a", 1), open_store("hf://datasets/a/b", 1), open_store("sftp://host/a", 1)
sys.exit(bool({"obstore", "fsspec", "paramiko", "torch", "transformers", "huggingface_hub"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class Attempts:
    """Fails with each of these in turn, then answers; remembers when it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.times = list(errors), list[float]()

    def __call__(self) -> str:
        self.times.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_what_may_pass_is_tried_again_with_growing_pauses() -> None:
    attempts = Attempts(ConnectionResetError(), TimeoutError(), OSError("x"), EOFError())
    assert patiently(attempts, "place", 60) == "answer"
    pauses = [after - before for before, after in zip(attempts.times, attempts.times[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4), strict=True))


def test_what_stays_is_one_error_after_the_time_that_was_given() -> None:
    attempts = Attempts(*[ConnectionRefusedError(111, "Connection refused")] * 1000)
    began = time.monotonic()
    with pytest.raises(DatasetError, match=r"^place cannot be read: .*Connection refused; tried for 0\.5 s .*resumed"):
        patiently(attempts, "place", 0.5)
    assert 0.5 <= time.monotonic() - began < 10
    assert attempts.times[-1] - began >= 0.45  # the last attempt is at the end of the time


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("x"), "place is missing"),
        (PermissionError("not yours"), "place cannot be read: not yours; check"),
        (
            Exception("GET in 3ms - Server returned non-2xx status code: 400 Bad Request"),
            "status code: 400 Bad Request",
        ),
    ],
)
def test_what_does_not_pass_is_not_tried_again(error: Exception, message: str) -> None:
    attempts = Attempts(error, error)
    with pytest.raises(DatasetError, match=message):
        patiently(attempts, "place", 60)
    assert len(attempts.times) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    attempts = Attempts(Exception(f"Server returned non-2xx status code: {status}"))
    assert patiently(attempts, "place", 60) == "answer"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-5, "1e-05"),
        ("auto", "auto"),
        ("https://name:word@host/a", "https://host/a"),
        ({"default": "full", "vision": None}, "{default: full, vision: null}"),
        (("a", 1), "[a, 1]"),
    ],
)
def test_a_setting_in_a_sentence_is_as_in_a_run_file(value: object, text: str) -> None:
    assert setting_text(value) == text
    assert parse_yaml(text, "here") == shown_setting(value)


def test_an_error_is_shown_without_addresses_and_answers_of_servers() -> None:
    text = (
        "Generic S3 error: Error performing GET https://u:secret@host/a?sig=secret in 3ms - Server returned non-2xx"
        " status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>secret</AWSAccessKeyId>"
        '</Error>\n\nDebug source:\nuri: https://u:secret@host, message: "Connection refused"'
    )
    found = safe_text(Exception(text))
    assert found == "Server returned non-2xx status code: 403 Forbidden (SignatureDoesNotMatch) (Connection refused)"
    assert safe_text(OSError("no https://u:secret@host/a?sig=secret here")) == "no ... here"
    assert safe_text(EOFError()) == "EOFError"


def test_pauses_leave_the_random_numbers_of_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    monkeypatch.setattr(remote, "_PAUSES_S", (0.001, 0.001))
    state = random.getstate()
    patiently(Attempts(OSError("x")), "place", 1)
    assert random.getstate() == state
