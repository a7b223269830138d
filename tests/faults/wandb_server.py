"""As much of a W&B server as its client needs for a run; it can refuse, stall or die."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER = {"id": "VXNlcjox", "entity": "me", "username": "me", "name": "me", "email": "", "admin": False, "flags": "{}"}
USER |= {"teams": {"edges": []}, "apiKeys": {"edges": []}, "deletedAt": None}
INFO = {"cliVersionInfo": {"max_cli_version": "9.0"}, "latestLocalVersionInfo": None, "features": []}


class WandbServer(ThreadingHTTPServer):
    """Answers until `fails_at` is requested: viewer, upsertBucket (a run is opened) or file_stream (a run logs).

    From then on, by `how`: requests wait for the server's end (stall), get status 500 (error), or find nobody
    listening (die).
    """

    daemon_threads = True

    def __init__(self, fails_at: str | None, how: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fails_at, self.how = fails_at, how
        self.failing, self.over = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        asked = self.path if self.path != "/graphql" else json.loads(content)["query"]
        if server.fails_at is not None and server.fails_at.lower() in asked.lower():
            server.failing.set()
        if not server.failing.is_set():
            return self._answer(200, _data(asked, content))
        if server.how == "stall":
            server.over.wait()
        elif server.how == "die":
            server.socket.close()
        else:
            return self._answer(500, {})
        self.close_connection = True

    do_PUT = do_GET = do_POST

    def _answer(self, status: int, data: dict) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _data(asked: str, content: bytes) -> dict:
    if "upsertBucket" in asked:
        given = json.loads(content)["variables"]
        project = {"id": "UHJvamVjdDox", "name": given.get("project"), "entity": {"id": "RW50aXR5OjE=", "name": "me"}}
        bucket = {"id": "UnVuOjE=", "name": given.get("name"), "displayName": given.get("displayName")}
        bucket |= {"description": None, "config": None, "sweepName": None, "historyLineCount": 0, "project": project}
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
    if "createRunFiles" in asked:
        return {"data": {"createRunFiles": {"runID": "UnVuOjE=", "uploadHeaders": [], "files": []}}}
    if asked.startswith("/files"):
        return {}
    return {"data": {"viewer": USER, "serverInfo": INFO, "model": None, "project": None}}


@contextmanager
def wandb_server(fails_at: str | None = None, how: str = "stall"):
    """A running server; one that dies before the first request was never there."""
    server = WandbServer(fails_at, how)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        time.sleep(0.1)
        try:
            server.shutdown()
        finally:
            server.server_close()
