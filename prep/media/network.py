"""A picture behind http or https, for builds that allow it: never from an address that is not public.

A name is resolved once, every address that it has is checked, and the connection goes to one of these addresses, so an
answer of DNS that changes in between has no effect. Each redirect is checked in the same way. Proxies are not used.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from lmms.configs.errors import refuse_file_limit
from lmms.prep.media.encoded import MediaKind, shown
from lmms.prep.reject import Reject

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_HOPS = 5
_TYPES = ("application/octet-stream", "binary/octet-stream")
_NOUNS = {"image": "a picture", "video": "a video"}
_IN_URL = "/%:@!$&'()*+,;=~"
"""What needs no escape in a path."""
_IPV4_INSIDE = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, not of this machine, this network or a reserved range."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        if ip.is_site_local or ip.sixtofour or ip.teredo or ip in _IPV4_INSIDE:  # they lead to an IPv4 address
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def addresses_of(host: str, port: int) -> list[str]:
    """All IP addresses of a host, by the system's resolver."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


@dataclass(frozen=True, slots=True)
class Network:
    """How pictures are fetched. Tests give another resolver and another check of addresses; users cannot."""

    seconds: float = 30.0
    """For one picture, redirects included."""
    resolve: Callable[[str, int], Sequence[str]] = addresses_of
    is_allowed: Callable[[str], bool] = is_public


def is_web(value: str) -> bool:
    """Whether a value is an address of http or https."""
    return value[:8].lower().startswith(("http://", "https://"))


def fetch_media(address: str, network: Network, max_bytes: int, kind: MediaKind = "image") -> bytes:
    """The bytes behind an address of http or https. Raises Reject."""
    deadline = time.monotonic() + network.seconds
    target = address
    try:
        for _ in range(_MOST_HOPS + 1):
            answer = _get(target, address, network, deadline)
            with answer:
                if answer.status not in _REDIRECTS:
                    return _body(answer, address, max_bytes, deadline, kind)
                target = urljoin(target, answer.headers.get("Location", ""))
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, OSError):
            refuse_file_limit(error)
        text = (
            "no time is left for this picture"
            if isinstance(error, TimeoutError)
            else f"{type(error).__name__}: {error}"
        )
        raise _failed(address, text) from error
    raise _failed(address, f"more than {_MOST_HOPS} redirects")


def _get(target: str, address: str, network: Network, deadline: float) -> http.client.HTTPResponse:
    url = urlsplit(target)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise Reject("remote_url", f"{shown(address)} leads to {shown(target)}; expected http or https")
    host, port = url.hostname.encode("idna").decode(), url.port or (443 if url.scheme == "https" else 80)
    ips = network.resolve(host, port)
    private = [ip for ip in ips if not network.is_allowed(ip)]
    if private or not ips:
        where = f"{private[0]}, which is no public address" if private else "no address"
        raise Reject("remote_url", f"{shown(address)} leads to {shown(host)} at {where}; download it and give its path")
    return _ask(url, host, port, socket.create_connection((ips[0], port), timeout=_left(deadline)), deadline)


def _ask(url: SplitResult, host: str, port: int, sock: socket.socket, deadline: float) -> http.client.HTTPResponse:
    """The answer to a request on a socket that is connected; its certificate, if any, is held to the host's name."""
    path = quote(url.path or "/", safe=_IN_URL) + (f"?{quote(url.query, safe=_IN_URL + '?')}" if url.query else "")
    headers = {"Accept": "image/*, video/*", "Accept-Encoding": "identity", "Connection": "close"}
    connection = (http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection)(host, port)
    connection.sock = sock
    # A server that sends a letter at a time would be waited for letter by letter.
    end = threading.Timer(_left(deadline), sock.shutdown, (socket.SHUT_RDWR,))
    end.start()
    try:
        if url.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection.request("GET", path, headers=headers)
        return connection.getresponse()
    except BaseException:
        connection.close()
        raise
    finally:
        end.cancel()


def _body(
    answer: http.client.HTTPResponse, address: str, max_bytes: int, deadline: float, media_kind: MediaKind
) -> bytes:
    if answer.status != 200:
        raise _failed(address, f"status {answer.status} {answer.reason}")
    kind = answer.headers.get("Content-Type", f"{media_kind}/").lower()
    if not kind.startswith((f"{media_kind}/", *_TYPES)):
        raise _failed(address, f"the answer is {shown(kind)}, expected {_NOUNS[media_kind]}")
    parts, size = [], 0
    while block := answer.read1(2**20):
        _left(deadline)
        parts.append(block)
        size += len(block)
        if size > max_bytes:
            raise Reject(
                "file_too_large", f"{shown(address)} has more than {max_bytes} bytes; at most so many are read"
            )
    if answer.length:  # bytes that were announced and did not come
        raise _failed(address, f"the answer ends {answer.length} bytes early")
    return b"".join(parts)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _failed(address: str, why: str) -> Reject:
    return Reject("fetch_failed", f"{shown(address)} cannot be fetched: {why}")
