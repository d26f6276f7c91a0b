"""A local server for the part of wandb's protocol that a search uses; it can answer slowly or not at all."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """What it was sent: `history` rows per run, `runs` as upserted, `files` by path, `artifacts` with their entries.

    With `mute` set (asking for /mute does it) it takes requests and never answers; `delay` seconds pass before each
    answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, bytes] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.mute, self.delay = threading.Event(), 0.0
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """GraphQL: what wandb asked, and the least that it goes on with."""
        match operation:
            case "Viewer":
                return {"viewer": {"id": "u", "entity": "us", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            case "RunResumeStatus":
                name = variables["name"]
                if name not in self.runs:
                    return {"model": None}
                rows = self.history.get(name, [])
                bucket = {
                    "id": name, "name": name, "displayName": name, "logLineCount": 0, "eventsLineCount": 0,
                    "historyLineCount": len(rows), "historyTail": json.dumps([json.dumps(r) for r in rows[-1:]]),
                    "eventsTail": "[]", "config": "{}", "summaryMetrics": "{}", "tags": [], "notes": None,
                    "wandbConfig": json.dumps({"t": 1}),
                }  # fmt: skip
                return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "us"}, "bucket": bucket}}
            case "UpsertBucket":
                name = variables.get("name") or variables["id"]
                given = {key: value for key, value in variables.items() if value is not None}
                new = name not in self.runs
                run = self.runs.setdefault(name, {})
                run |= given
                project = {"id": "p", "name": "basis_search", "entity": {"id": "e", "name": "us"}}
                bucket = {
                    "id": name, "name": name, "displayName": run.get("displayName"), "description": None,
                    "config": run.get("config"), "sweepName": None, "project": project, "historyLineCount": 0,
                }  # fmt: skip
                return {"upsertBucket": {"bucket": bucket, "inserted": new}}
            case "CreateRunFiles":
                run = variables["run"]
                files = [{"name": n, "uploadUrl": f"{self.url}/storage/{run}/{n}"} for n in variables["files"]]
                return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                inputs = variables.get("input") or variables
                identity = f"a{len(self.artifacts)}"
                self.artifacts[identity] = dict(inputs)
                return {"createArtifact": {"artifact": {"id": identity, "state": "PENDING", "artifactSequence": {
                    "id": "s", "latestArtifact": None}}}}  # fmt: skip
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                inputs = variables.get("input") or variables
                url = f"{self.url}/storage/manifest/{inputs.get('artifactID')}"
                manifest = {"id": "m", "file": {"id": "f", "name": inputs.get("name"), "displayName": "m",
                            "uploadUrl": url, "uploadHeaders": []}}  # fmt: skip
                key = operation[0].lower() + operation[1:]
                return {key: {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                made = [
                    {"node": {"id": "f", "name": spec["name"], "displayName": spec["name"], "storagePath": None,
                     "uploadUrl": f"{self.url}/storage/artifact/{spec['artifactID']}/{spec['name']}",
                     "uploadHeaders": [], "uploadMultipartUrls": None,
                     "artifact": {"id": spec["artifactID"]}}}
                    for spec in variables["input"]["artifactFiles"]
                ]  # fmt: skip
                return {"createArtifactFiles": {"files": {"edges": made}}}
            case "CommitArtifact":
                self.artifacts[variables["artifactID"]]["state"] = "COMMITTED"
                return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "0"}}}
            case _:  # what type does the artifact of that name have? none is there
                return {"project": {"artifact": None, "artifactType": None}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on stderr."""

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # wandb goes away in the middle of things
            super().handle_one_request()

    def _handle(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        request = json.loads(data) if self.path == "/graphql" else {}
        operation = request.get("operationName") or ""
        self.server.asked.append(f"{self.path} {operation}".strip())
        if self.server.mute.is_set():
            self.server.over.wait(120)
            self.close_connection = True
            return
        time.sleep(self.server.delay)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            answer = {"data": self.server.answer(operation, request.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self._file_stream(self.path.split("/")[-2], json.loads(data))
        elif self.path.startswith("/storage/"):
            self.server.files[self.path.removeprefix("/storage/")] = data
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/mute":
            self.server.mute.set()

    def _file_stream(self, run: str, sent: dict[str, Any]) -> None:
        rows = self.server.history.setdefault(run, [])
        chunk = (sent.get("files") or {}).get("wandb-history.jsonl")
        if chunk:
            del rows[chunk["offset"] :]
            rows += [json.loads(line) for line in chunk["content"]]
        if sent.get("complete"):
            self.server.runs.setdefault(run, {})["exit"] = sent.get("exitcode")

    do_GET = do_POST = do_PUT = _handle


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that is up inside the `with`."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
