"""A stand-in for Azure's blob service, as its emulator answers: the list of a folder, and ranges of a blob."""

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

_ACCOUNT = "/devstoreaccount1/"
_DATE = "Mon, 30 Nov 2026 00:00:00 GMT"


@contextmanager
def azure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The service on a folder, in which each folder is a container, with its address in the environment."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
        monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
        yield
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        path = self.folder / unquote(asked.path).removeprefix(_ACCOUNT)
        if not self.headers.get("Authorization", "").startswith("SharedKey devstoreaccount1:"):
            return self._answer(403, b"")
        if query.get("comp") == "list":
            return self._list(path, query.get("prefix", ""))
        if not path.is_file():
            return self._answer(404, b"")
        data = path.read_bytes()
        asked_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", self.headers.get("x-ms-range", "")))
        assert asked_range
        start, end = int(asked_range[1]), min(int(asked_range[2]) + 1, len(data))
        if start >= end:
            return self._answer(416, b"")
        return self._answer(206, data[start:end], f"bytes {start}-{end - 1}/{len(data)}")

    def _list(self, container: Path, prefix: str) -> None:
        blobs = [
            f"<Blob><Name>{prefix}{file.name}</Name><Properties><Last-Modified>{_DATE}</Last-Modified>"
            f"<Content-Length>{file.stat().st_size}</Content-Length><Content-Type>a/b</Content-Type><Etag>0</Etag>"
            "</Properties></Blob>"
            for file in sorted((container / prefix).iterdir())
            if file.is_file()
        ]
        page = f"<EnumerationResults><Blobs>{''.join(blobs)}</Blobs><NextMarker/></EnumerationResults>"
        self._answer(200, page.encode())

    def _answer(self, status: int, data: bytes, content_range: str = "") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(data)), "Last-Modified": _DATE, "ETag": "0"}
        for name, value in (headers | ({"Content-Range": content_range} if content_range else {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""
