"""The page on this machine alone: GET / gives it, POST /reset and /step ask its simulator.

Connections have threads of their own, and ask the simulator through a queue: what draws may be used by one thread only.
A page of another site can neither read this one nor ask its simulator: it cannot choose its own Origin, nor, where it
makes its name mean this machine (DNS rebinding), the Host.
"""

import errno
import json
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from threading import Thread
from typing import Any

from worldmodel.errors import UserError, reason_of

HOST = "127.0.0.1"
MOST = 2**20  # bytes of a request
PATIENCE = 60.0  # seconds in which the simulator must answer
SAFE = {
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip

Answers = dict[str, Callable[[dict[str, Any]], dict[str, Any]]]  # path -> what answers a POST to it


class Server(ThreadingHTTPServer):
    """Listens at once, and serves in `run`.

    Args:
        port: on 127.0.0.1; 0: any that is free.

    Raises:
        UserError: if the port is taken, or may not be used.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            number = error.errno if isinstance(error, OSError) else None
            why = "is taken" if number == errno.EADDRINUSE else "cannot be used"
            raise UserError(f"port {port} {why}: choose another with --port, or --port 0 for any free one") from None
        self.page, self.policy = b"", ""
        self.asked: Queue[tuple[str, dict[str, Any], Future[dict[str, Any]]]] = Queue()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    @property
    def names(self) -> tuple[str, str]:
        """What a browser may call this server."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"

    def run(self, page: str, policy: str, answers: Answers) -> None:
        """Serve a page until Ctrl-C or SIGTERM; what answers is called in this thread."""
        self.page, self.policy, self.answers = page.encode(), policy, answers
        Thread(target=self.serve_forever, daemon=True).start()
        while True:
            try:
                path, given, future = self.asked.get(
                    timeout=0.5
                )  # a wait without an end would take no signal everywhere
            except Empty:
                continue
            try:
                future.set_result(answers[path](given))
            except Exception as error:  # of a simulator: the page shows it
                future.set_exception(error)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser may leave at any time."""


class _Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server_version, sys_version = "worldmodel", ""

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path.split("?")[0] == "/":
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is nothing here: go to {self.server.url}")

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        if self.path not in self.server.answers:
            self._refuse(HTTPStatus.NOT_FOUND, "no such question")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST or self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.BAD_REQUEST, "a question is a small JSON object")
            return
        try:
            given = json.loads(self.rfile.read(int(length)))
            if not isinstance(given, dict):
                raise ValueError
        except (ValueError, RecursionError):
            self._refuse(HTTPStatus.BAD_REQUEST, "a question is a small JSON object")
            return
        future: Future[dict[str, Any]] = Future()
        self.server.asked.put((self.path, given, future))
        try:
            answer = json.dumps(future.result(PATIENCE), allow_nan=True).encode()
        except TimeoutError:
            self._refuse(HTTPStatus.GATEWAY_TIMEOUT, "the simulator does not answer")
        except Exception as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error) if isinstance(error, UserError) else reason_of(error))
        else:
            self._send(HTTPStatus.OK, answer, "application/json")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: thirty lines a second would hide what matters."""

    def _is_ours(self) -> bool:
        """Whether the page itself asks; another is refused."""
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in self.server.names:
            self._refuse(HTTPStatus.FORBIDDEN, f"go to {self.server.url}")
        elif origin is not None and origin not in [f"http://{name}" for name in self.server.names]:
            self._refuse(HTTPStatus.FORBIDDEN, "another site may not ask")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # what it sent may not have been read
        self._send(status, why.encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = SAFE | {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in (headers | {"Content-Security-Policy": self.server.policy}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
