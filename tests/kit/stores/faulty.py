"""A server on the loopback that hands requests on to another server; to some of them it does what a fault says."""

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

HOST = "127.0.0.1"


class Faults:
    """Faults of the requests to come: `(method, part of the path, what happens)`, each for one request.

    A number is answered as a status; `break` ends the connection in the middle of the body that is sent, `lost` hands
    the request on and ends the connection without an answer, `slow` waits for a second. A function is called.
    """

    def __init__(self) -> None:
        self.to_come: list[tuple[str, str, object]] = []
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def next(self, method: str, path: str) -> object:
        """What happens to this request; None: nothing."""
        with self._lock:
            self.requests.append((method, path))
            for fault in self.to_come:
                if fault[0] == method and fault[1] in path:
                    self.to_come.remove(fault)
                    return fault[2]
        return None


@contextmanager
def faulty(port: int) -> Iterator[tuple[int, Faults]]:
    """The port of a server before that at `port`, and its faults."""
    faults = Faults()
    with http.server.ThreadingHTTPServer((HOST, 0), partial(_Handler, port, faults)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port, faults
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, port: int, faults: Faults, *arguments: object) -> None:
        self._port, self._faults = port, faults
        super().__init__(*arguments)  # type: ignore[arg-type]

    def handle_one_request(self) -> None:
        """Read a request of any method and hand it on."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        fault = self._faults.next(self.command, self.path)
        if callable(fault):
            fault()
        length = int(self.headers.get("Content-Length", 0))
        if fault == "break":
            self.rfile.read(length // 2)
            return self._cut()
        body = self.rfile.read(length)
        if isinstance(fault, int):
            return self.send_error(fault)
        if fault == "slow":
            time.sleep(1)
        behind = http.client.HTTPConnection(HOST, self._port)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        data = answer.read()
        behind.close()
        if fault == "lost":
            return self._cut()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""
