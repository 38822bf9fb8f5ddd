"""An OpenAI-compatible judge on loopback that replays recorded completions, and can fail on purpose."""

import contextlib
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

INSTRUCTION = re.compile(r'"instruction": """(.*?)""",\n}', re.DOTALL)


class ReplayJudge:
    """Serves `/v1/chat/completions` from recordings; use as a context manager.

    Args:
        recordings: instruction -> the recorded completion (a choice of the OpenAI API).
        failures: share of requests answered by 429 or 500 in turn.
        drops: share of requests whose connection is closed without an answer.
    """

    def __init__(self, recordings, *, failures=0.0, drops=0.0, seed=0):
        self.recordings = recordings
        self.failures, self.drops = failures, drops
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.answered = Counter()  # by request content
        self.refused = Counter()  # by status
        self.requests = []  # what was asked, as it came
        self.keys_seen = set()
        self.refuse_all = None  # (status, body): answer everything with this
        self.refusals = {}  # instruction -> (status, body)
        self.bodies = []  # bytes to answer with and status 200, each once, before anything else
        self.truncate = False  # promise more bytes of those than are sent
        self.pause = 0.0  # seconds between two bytes of an answer, head included
        self.on_answer = lambda count: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fate(self):
        """Decide what becomes of a request: a status, or None for a dropped connection."""
        with self.lock:
            draw = self.random.random()
            if draw < self.drops:
                return None
            if draw < self.drops + self.failures:
                status = 429 if self.random.random() < 0.5 else 500
                self.refused[status] += 1
                return status
            return 200

    def instruction(self, request):
        return INSTRUCTION.search(request["messages"][-1]["content"]).group(1).strip()

    def completion(self, request):
        choice = dict(self.recordings[self.instruction(request)])
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {
            "id": "x", "object": "chat.completion", "created": 0, "model": request["model"],
            "choices": [choice], "usage": usage,
        }  # fmt: skip

    def _handler(judge):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                judge.keys_seen.add(self.headers["Authorization"])
                judge.requests.append(json.loads(body))
                if judge.refuse_all is not None:
                    return self.send(*judge.refuse_all)
                if judge.bodies:
                    return self.send_bytes(200, judge.bodies.pop(0))
                fate = judge.fate()
                if fate is None:
                    self.close_connection = True
                    return None
                if fate != 200:
                    return self.send(fate, {"error": {"message": "not now"}})
                instruction = judge.instruction(json.loads(body))
                if instruction in judge.refusals:
                    return self.send(*judge.refusals[instruction])
                self.send(200, judge.completion(json.loads(body)))
                with judge.lock:
                    judge.answered[hashlib.sha256(body).hexdigest()] += 1
                    count = judge.answered.total()
                return judge.on_answer(count)

            def send(self, status, data):
                self.send_bytes(status, json.dumps(data).encode())

            def send_bytes(self, status, content):
                if judge.pause:
                    return self.drip(content)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content) + 9 * judge.truncate))
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = judge.truncate
                return None

            def drip(self, content):
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    for byte in head + content:
                        self.wfile.write(bytes([byte]))
                        time.sleep(judge.pause)

        return Handler
