"""Tiny models and a server over them, in a thread of this process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import uvicorn
from fastapi import FastAPI

from ivg.serve.settings import settings_from_dict
from ivg.serve.starting import plan, start
from tests import tiny

IVG = {
    "token_guidance": "implicit",
    "chunk_guidance": "explicit",
    "num_beams": 2,
    "num_successors": 2,
    "chunk_length": 4,
}
PRESETS = [
    {"name": "ivg", **IVG},
    {"name": "eft", "token_guidance": "implicit", "beta": 1.5},
    {"name": "base"},
]


def save_models(root: Path) -> dict[str, Any]:
    """Save base, pair and value, all with one chat template; return them as a configuration's keys."""
    chat = tiny.tokenizer(chat=True)
    num_ids = len(tiny.LETTERS) + 2
    return {
        "base": tiny.save(root / "base", tiny.causal(0), chat),
        "pairs": [
            {
                "tuned": tiny.save(root / "tuned", tiny.causal(1), chat),
                "untuned": tiny.save(root / "untuned", tiny.causal(2), chat),
            }
        ],
        "values": [tiny.save(root / "value", tiny.value(3, num_labels=num_ids), chat)],
    }


class Running(NamedTuple):
    """A server that answers."""

    url: str
    app: FastAPI

    def client(self, key: str = "none", **kwargs: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **kwargs)


@contextlib.contextmanager
def serving(config: dict[str, Any]) -> Iterator[Running]:
    """Run a server until the block ends; it must then stop by itself within seconds."""
    settings = settings_from_dict(config)
    app = start(settings, plan(settings))
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", app)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()
