"""A stand-in for the W&B server: knows runs, their history lines and their artifacts."""

import base64
import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandIn:
    """What arrived. runs: id -> the last variables of UpsertBucket; lines: id -> history lines."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.runs, self.lines, self.offsets, self.asked = {}, {}, {}, []
        self.silent = threading.Event()  # set: requests are read and never answered

    def history(self, run_id):
        """(step, loss/lm) of every line, in the order of the chart."""
        rows = [json.loads(line) for line in self.lines[run_id]]
        return [(row["_step"], row.get("loss/lm")) for row in rows]

    def graphql(self, name, variables):
        self.asked.append((name, variables))
        answer = {
            "RunResumeStatus": self._resume,
            "UpsertBucket": self._upsert,
            "CreateRunFiles": lambda v: {
                "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}
            },
        }.get(name)
        return answer(variables) if answer else {}

    def stream(self, run_id, sent):
        history = sent.get("files", {}).get("wandb-history.jsonl")
        if history:
            self.offsets.setdefault(run_id, []).append(history["offset"])
            lines = self.lines.setdefault(run_id, [])
            del lines[history["offset"] :]
            lines += history["content"]

    def _upsert(self, variables):
        run_id = variables["name"]
        new = run_id not in self.runs
        kept = {key: value for key, value in variables.items() if value is not None}
        self.runs[run_id] = self.runs.get(run_id, {}) | kept
        return {"upsertBucket": {"bucket": self._bucket(run_id), "inserted": new}}

    def _resume(self, variables):
        run_id = variables["name"]
        bucket = self._bucket(run_id) if run_id in self.runs else None
        entity = {"id": "e", "name": "someone"}
        return {"model": {"id": "p", "name": "msa-train", "entity": entity, "bucket": bucket}}

    def _bucket(self, run_id):
        run, lines = self.runs[run_id], self.lines.get(run_id, [])
        return {
            "id": base64.b64encode(run_id.encode()).decode(),
            "name": run_id,
            "displayName": run.get("displayName"),
            "description": None,
            "config": run.get("config", "{}"),
            "sweepName": None,
            "summaryMetrics": lines[-1] if lines else "{}",
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyLineCount": len(lines),
            "historyTail": json.dumps(lines[-1:]),
            "eventsTail": "[]",
            "tags": run.get("tags") or [],
            "notes": run.get("notes"),
            "wandbConfig": '{"t": 1}',  # the sign that the run had begun
            "project": {"id": "p", "name": "msa-train",
                        "entity": {"id": "e", "name": "someone"}},
        }  # fmt: skip


@contextmanager
def stand_in():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.known = StandIn(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.known
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout = 30

    def do_POST(self):
        known = self.server.known
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if known.silent.is_set():
            threading.Event().wait(60)
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": known.graphql(asked.get("operationName"), asked.get("variables"))}
        elif self.path.endswith("/file_stream"):
            known.stream(self.path.split("/")[-2], json.loads(body))
        self._answer(answer)

    def do_GET(self):
        self._answer({})

    def _answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
