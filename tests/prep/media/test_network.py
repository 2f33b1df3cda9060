"""Pictures behind http: fetched from the address that was checked, and from no other; a real server on loopback."""

import datetime
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from lmms.prep.media.network import Network, fetch_media, is_public
from lmms.prep.media.read import MediaRef, read_image
from lmms.prep.reject import REASONS, Reject

PICTURE = b"the bytes of a picture" * 10


class _Pictures(BaseHTTPRequestHandler):
    hosts: list[str]

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        name, _, target = self.path.partition("?to=")
        if name == "/redirect":
            self._answer(302, b"", Location=target)
        elif name == "/picture%20a.jpg":
            self._answer(200, PICTURE, **{"Content-Type": "image/jpeg"})
        elif name == "/page":
            self._answer(200, b"<html>", **{"Content-Type": "text/html; charset=utf-8"})
        elif name == "/short":
            self._answer(200, PICTURE[:50], **{"Content-Length": str(len(PICTURE))})
        elif name == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(40):
                self.wfile.write(b"x")
                time.sleep(0.05)
        else:
            self._answer(404, b"")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


@pytest.fixture
def port() -> Iterator[int]:
    with serving(None) as port:
        yield port


@contextmanager
def serving(context: ssl.SSLContext | None) -> Iterator[int]:
    _Pictures.hosts = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def to_loopback(host: str, port: int) -> Sequence[str]:
    """Every public name leads to the test's server; numbers lead to themselves."""
    return [host] if host[0].isdigit() or ":" in host else ["127.0.0.1"]


OPEN = Network(resolve=to_loopback, is_allowed=lambda address: address == "127.0.0.1")


def rejection(address: str, network: Network, max_bytes: int = 1000) -> Reject:
    with pytest.raises(Reject) as caught:
        fetch_media(address, network, max_bytes)
    assert caught.value.reason in REASONS
    return caught.value


def test_a_picture_is_fetched_from_the_address_that_was_checked(port: int) -> None:
    """No resolver knows the name: the connection goes where the check went, under the name of the host."""
    address = f"http://pictures.invalid:{port}/picture%20a.jpg"
    assert fetch_media(address, OPEN, 1000) == PICTURE
    assert fetch_media(f"HTTP://pictures.invalid:{port}/picture a.jpg", OPEN, 1000) == PICTURE
    assert fetch_media(f"http://pictures.invalid:{port}/redirect?to=/picture%20a.jpg", OPEN, 1000) == PICTURE
    assert set(_Pictures.hosts) == {f"pictures.invalid:{port}"}
    assert read_image(MediaRef("url", address), (Path(),), network=OPEN) == PICTURE
    with pytest.raises(Reject, match="or set allow_network") as caught:
        read_image(MediaRef("url", address), (Path(),))
    assert caught.value.reason == "remote_url"


def test_a_name_is_resolved_once_for_each_request(port: int) -> None:
    """A second answer, which would lead elsewhere, is never asked for."""
    asked = []

    def changing(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    network = Network(resolve=changing, is_allowed=OPEN.is_allowed)
    assert fetch_media(f"http://a.invalid:{port}/picture%20a.jpg", network, 1000) == PICTURE
    assert asked == ["a.invalid"]
    asked.clear()
    found = rejection(f"http://a.invalid:{port}/redirect?to=http://b.invalid/", network)
    assert (found.reason, asked) == ("remote_url", ["a.invalid", "b.invalid"])


@pytest.mark.parametrize("target", ["http://127.0.0.3/", "http://10.0.0.1/a", "file:///etc/hostname", "ftp://a/b"])
def test_a_redirect_is_checked_as_the_first_address_is(target: str, port: int) -> None:
    assert rejection(f"http://a.invalid:{port}/redirect?to={target}", OPEN).reason == "remote_url"
    assert len(_Pictures.hosts) == 1


def test_a_host_with_a_private_address_beside_a_public_address_is_refused(port: int) -> None:
    network = Network(resolve=lambda *_: ["127.0.0.1", "192.168.1.1"], is_allowed=OPEN.is_allowed)
    assert "192.168.1.1, which is no public address" in rejection(f"http://a.invalid:{port}/", network).message
    assert _Pictures.hosts == []


def test_users_reach_no_address_of_this_machine(port: int) -> None:
    for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433"):
        assert rejection(f"http://{host}:{port}/picture%20a.jpg", Network()).reason == "remote_url"
    assert _Pictures.hosts == []


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("none", "fetch_failed", "404"),
        ("page", "fetch_failed", "'text/html; charset=utf-8', expected a picture"),
        ("short", "fetch_failed", "170 bytes early"),
        ("redirect?to=/redirect", "fetch_failed", "more than 5 redirects"),
        ("slow", "fetch_failed", "no time is left"),
    ],
)
def test_what_is_no_picture_in_time_is_rejected(name: str, reason: str, words: str, port: int) -> None:
    network = Network(seconds=0.3 if name == "slow" else 30, resolve=to_loopback, is_allowed=OPEN.is_allowed)
    reject = rejection(f"http://a.invalid:{port}/{name}", network)
    assert reject.reason == reason
    assert words in reject.message


def test_a_picture_that_is_too_large_is_not_read_to_its_end(port: int) -> None:
    assert rejection(f"http://a.invalid:{port}/picture%20a.jpg", OPEN, max_bytes=100).reason == "file_too_large"


def certificate(folder: Path, host: str) -> Path:
    """A key and a certificate for a host, signed by itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start.replace(year=2100))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    signed = builder.sign(key, hashes.SHA256())
    file = folder / f"{host}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + signed.public_bytes(Encoding.PEM))
    return file


def test_https_is_held_to_the_name_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = certificate(tmp_path, "pictures.invalid")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with serving(context) as port:
        path = f"{port}/picture%20a.jpg"
        assert "CERTIFICATE_VERIFY_FAILED" in rejection(f"https://pictures.invalid:{path}", OPEN).message
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert fetch_media(f"https://pictures.invalid:{path}", OPEN, 1000) == PICTURE
        assert "Hostname mismatch" in rejection(f"https://other.invalid:{path}", OPEN).message
    assert _Pictures.hosts == [f"pictures.invalid:{port}"]


def test_a_host_that_does_not_answer_is_a_rejection() -> None:
    with socket.socket() as taken:  # bound, never listening
        taken.bind(("127.0.0.1", 0))
        address = f"http://a.invalid:{taken.getsockname()[1]}/a.jpg"
        assert rejection(address, OPEN).reason == "fetch_failed"
        assert rejection(address.replace("http", "https"), OPEN).reason == "fetch_failed"
    for address in ("http://", "http://a.invalid:port/", f"http://{'a' * 70}.invalid/"):
        assert rejection(address, OPEN).reason in ("fetch_failed", "remote_url")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)
