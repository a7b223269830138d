"""As much of a W&B server as its client needs for a run; it can refuse, stall or die."""

import gzip
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER = {"id": "VXNlcjox", "entity": "me", "username": "me", "name": "me", "email": "", "admin": False, "flags": "{}"}
USER |= {"teams": {"edges": []}, "apiKeys": {"edges": []}, "deletedAt": None}
PROJECT = {"id": "UHJvamVjdDox", "name": "worldmodel", "entity": {"id": "RW50aXR5OjE=", "name": "me"}}
INFO = {"cliVersionInfo": {"max_cli_version": "9.0"}, "latestLocalVersionInfo": None, "features": []}


class WandbServer(ThreadingHTTPServer):
    """Answers until `fails_at` is requested: viewer, upsertBucket (a run is opened) or file_stream (a run logs).

    From then on, by `how`: requests wait for the server's end (stall), get status 500 (error), or find nobody
    listening (die). `history` holds the rows of the one run that it is sent.
    """

    daemon_threads = True

    def __init__(self, fails_at: str | None, how: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fails_at, self.how = fails_at, how
        self.failing, self.over = threading.Event(), threading.Event()
        self.history: list[dict] = []

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
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        server = self.server
        asked = self.path if self.path != "/graphql" else json.loads(content)["query"]
        if server.fails_at is not None and server.fails_at.lower() in asked.lower():
            server.failing.set()
        if not server.failing.is_set():
            return self._answer(200, self._data(asked, content))
        if server.how == "stall":
            server.over.wait()
        elif server.how == "die":
            server.socket.close()
        else:
            return self._answer(500, {})
        self.close_connection = True

    do_PUT = do_GET = do_POST

    def _data(self, asked: str, content: bytes) -> dict:
        history = self.server.history
        if asked.endswith("file_stream"):
            sent = (
                json.loads(content).get("files", {}).get("wandb-history.jsonl", {"offset": len(history), "content": []})
            )
            history[sent["offset"] : sent["offset"] + len(sent["content"])] = map(json.loads, sent["content"])
            return {}
        if "RunResumeStatus" in asked:
            return {"data": {"model": PROJECT | {"bucket": _bucket(content, history) if history else None}}}
        return _data(asked, content)

    def _answer(self, status: int, data: dict) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _bucket(content: bytes, history: list[dict]) -> dict:
    """The run as the server knows it, of which this history was sent."""
    given = json.loads(content)["variables"]
    lines = {"historyLineCount": len(history), "eventsLineCount": 0, "logLineCount": 0}
    tails = {"historyTail": json.dumps([json.dumps(row) for row in history[-1:]]), "eventsTail": "[]"}
    known = {"summaryMetrics": json.dumps({name: value for row in history for name, value in row.items()})}
    known |= {"config": "{}", "wandbConfig": '{"t": 1}', "description": None, "sweepName": None, "tags": []}
    names = {"id": "UnVuOjE=", "name": given.get("name"), "displayName": given.get("displayName")}
    return names | lines | tails | known


def _data(asked: str, content: bytes) -> dict:
    if "upsertBucket" in asked:
        return {"data": {"upsertBucket": {"bucket": _bucket(content, []) | {"project": PROJECT}, "inserted": True}}}
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
