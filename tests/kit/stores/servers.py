"""Real servers of files on the loopback, each in a process of its own that can be killed and started again.

    python tests/kit/stores/servers.py http FOLDER PORT
    python tests/kit/stores/servers.py sftp FOLDER PORT KEY

The web server writes the name of every file that is asked for to FOLDER/requests. What the first word of FOLDER/faults
says it does to the next request for a range, and takes the word away: `kill` (itself, in the middle of the body),
`break` (the connection, there), `damage` (a byte), or a status code.
"""

import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

HOST = "127.0.0.1"
USER, PASSWORD = "reader", "pass-w0rd"


class Server:
    """A server process, at a port that it keeps when it is started again."""

    def __init__(self, *command: object) -> None:
        with closing(socket.create_server((HOST, 0))) as free:
            self.port = int(free.getsockname()[1])
        self._command = [sys.executable, *(str(self.port) if word == "PORT" else str(word) for word in command)]
        self.start()

    def start(self) -> None:
        """Start it, and return when it listens."""
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdin=quiet, stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + 600
        while True:
            try:
                return socket.create_connection((HOST, self.port)).close()
            except ConnectionRefusedError:
                assert self._process.poll() is None, f"{self._command} has ended"
                assert time.monotonic() < deadline, f"{self._command} does not listen"
                time.sleep(0.02)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> None:
        """Until it has ended by itself."""
        self._process.wait(600)


@contextmanager
def _running(*command: object) -> Iterator[Server]:
    server = Server(*command)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def web_server(folder: Path) -> Iterator[tuple[Server, str]]:
    """A web server of a folder, and its URL."""
    with _running(__file__, "http", folder, "PORT") as server:
        yield server, f"http://{HOST}:{server.port}"


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, str]]:
    """An S3 server with an empty bucket, its address and credentials in the environment; and the bucket's URL."""
    with _running("-m", "moto.server", "-H", HOST, "-p", "PORT") as server:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{server.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
        }.items():
            monkeypatch.setenv(name, value)
        bucket = urllib.request.Request(f"http://{HOST}:{server.port}/bucket", method="PUT")
        urllib.request.urlopen(bucket).close()
        yield server, "s3://bucket"


@contextmanager
def sftp_server(folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, str]]:
    """An sftp server that knows USER by PASSWORD; and its URL with both. `keys`: a folder for its key."""
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(keys / "host")
    with _running(__file__, "sftp", folder, "PORT", keys / "host") as server:
        (keys / "known").write_text(f"[{HOST}]:{server.port} {key.export_public_key().decode()}")
        monkeypatch.setenv("COMPOSER_SFTP_KNOWN_HOSTS_FILE", str(keys / "known"))
        monkeypatch.setenv("HOME", str(keys))  # no keys of the person who runs the test
        yield server, f"sftp://{USER}:{PASSWORD}@{HOST}:{server.port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        with Path(self.directory, "requests").open("a") as log:
            log.write(f"{path.name}\n")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        if asked is None:
            return self._answer(200, data)
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if start >= end:
            return self.send_error(416)
        fault = self._next_fault()
        if fault.isdigit():
            return self.send_error(int(fault))
        self._answer(206, data[start:end], fault, f"bytes {start}-{end - 1}/{len(data)}")

    def _answer(self, status: int, data: bytes, fault: str = "", content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", self.date_time_string())
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if fault == "damage":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.wfile.write(data[: len(data) // 2])
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "break":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        self.wfile.write(data[len(data) // 2 :])

    def _next_fault(self) -> str:
        faults = Path(self.directory, "faults")
        first, *later = faults.read_text().split() if faults.exists() else [""]
        if later:
            faults.write_text("\n".join(later))
        else:
            faults.unlink(missing_ok=True)
        return first


async def _serve_sftp(folder: str, port: int, key: str) -> None:
    import asyncssh

    class Door(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return True

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == (USER, PASSWORD)

    def files(channel: "asyncssh.SSHServerChannel[bytes]") -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=os.fsencode(folder))

    server = await asyncssh.listen(HOST, port, server_host_keys=[key], server_factory=Door, sftp_factory=files)
    await server.wait_closed()


if __name__ == "__main__":
    kind, folder, port, *keys = sys.argv[1:]
    if kind == "http":
        from functools import partial

        handler = partial(_Handler, directory=folder)
        http.server.ThreadingHTTPServer((HOST, int(port)), handler).serve_forever()
    else:
        import asyncio

        asyncio.run(_serve_sftp(folder, int(port), *keys))
