"""Stand-ins for two services that nobody can run at home: the part of their HTTP interfaces that reading needs.

    python tests/kit/stores/clouds.py FOLDER PORT

    Hugging Face's hub  the data set org/name is FOLDER
    Databricks          the volume /Volumes/a/b/c and the older file system's /old are FOLDER

Both want TOKEN. The path of every request is written to FOLDER.requests, with its range.
"""

import http.server
import json
import re
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

HOST, TOKEN = "127.0.0.1", "t0ken"
HUB, VOLUME, OLD = "hf://datasets/org/name", "dbfs:/Volumes/a/b/c", "dbfs:/old"
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def clouds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both services on a folder, with their address and the token where their libraries look for them."""
    from huggingface_hub import constants

    from tests.kit.stores.servers import Server

    server = Server(__file__, folder, "PORT")
    address = f"http://{HOST}:{server.port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for name, value in {"HF_TOKEN": TOKEN, "DATABRICKS_HOST": address, "DATABRICKS_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    try:
        yield
    finally:
        server.kill()


def requests(folder: Path) -> list[str]:
    """What the services were asked for since the last call: the path, and the range where there is one."""
    log = folder.with_suffix(".requests")
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, *arguments: Any) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        with self.folder.with_suffix(".requests").open("a") as log:
            log.write(f"{asked.path} {self.headers.get('Range', '')}\n")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, b"{}")
        for pattern, act in _ROUTES:
            if found := re.fullmatch(pattern, asked.path):
                return act(self, *found.groups(), **query)
        return self._answer(404, b"{}")

    def _repository(self, **query: str) -> None:
        self._json({"id": "org/name", "sha": _COMMIT, "siblings": []})

    def _tree(self, folder: str, **query: str) -> None:
        files = [path for path in sorted((self.folder / folder).iterdir()) if path.is_file()]
        self._json(
            [{"type": "file", "path": f"{folder}/{f.name}", "size": f.stat().st_size, "oid": "0"} for f in files]
        )

    def _file(self, name: str, **query: str) -> None:
        path = self.folder / name
        if not path.is_file():
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert found
        start, end = int(found[1]), min(int(found[2]) + 1, len(data))
        if start >= end:
            return self._answer(416, b"{}")
        return self._answer(206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _directory(self, folder: str, page_token: str = "0", **query: str) -> None:
        """One file a page."""
        files, page = sorted((self.folder / folder).iterdir()), int(page_token)
        entry = {"path": str(files[page]), "is_directory": False, "file_size": files[page].stat().st_size}
        self._json({"contents": [entry]} | ({"next_page_token": str(page + 1)} if page + 1 < len(files) else {}))

    def _old_list(self, path: str, **query: str) -> None:
        files = sorted((self.folder / path.removeprefix("/old/")).iterdir())
        self._json({"files": [{"path": str(f), "is_dir": False, "file_size": f.stat().st_size} for f in files]})

    def _old_read(self, path: str, offset: str, length: str, **query: str) -> None:
        assert int(length) <= 2**20
        file = self.folder / path.removeprefix("/old/")
        if not file.is_file():
            return self._answer(404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')
        data = file.read_bytes()[int(offset) : int(offset) + int(length)]
        return self._json({"bytes_read": len(data), "data": b64encode(data).decode()})

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "X-Repo-Commit": _COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


_ROUTES = (
    (r"/api/datasets/org/name(?:/revision/main)?", _Handler._repository),
    (r"/api/datasets/org/name/tree/main/(.+)", _Handler._tree),
    (r"/datasets/org/name/resolve/main/(.+)", _Handler._file),
    (r"/api/2.0/fs/directories/Volumes/a/b/c/(.+)", _Handler._directory),
    (r"/api/2.0/fs/files/Volumes/a/b/c/(.+)", _Handler._file),
    (r"/api/2.0/dbfs/list", _Handler._old_list),
    (r"/api/2.0/dbfs/read", _Handler._old_read),
)


if __name__ == "__main__":
    handler = partial(_Handler, Path(sys.argv[1]))
    http.server.ThreadingHTTPServer((HOST, int(sys.argv[2])), handler).serve_forever()
