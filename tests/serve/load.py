"""Clients by the hundred, a third of whom hang up; what must hold afterwards, whatever the engine."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import openai
import psutil

from tests.serve.server import Running

NUM_REQUESTS = 200
MIN_ROUNDS, MAX_ROUNDS = 3, 16
FLAT = 2 * 2**20  # bytes over two rounds, 400 requests: 5 kB each


def requests(rng: random.Random, letters: str, num_requests: int = NUM_REQUESTS) -> list[dict[str, Any]]:
    """Every preset, streamed and whole, with settings of their own: some share a batch, some do not."""
    asked = []
    for number in range(num_requests):
        preset = rng.choice(["ivg", "eft", "base"])
        asked.append(
            {
                "model": preset,
                "prompt": "".join(rng.choice(letters) for _ in range(rng.randint(2, 21))),
                "max_tokens": rng.randint(20, 40),
                "seed": number,
                "stream": rng.random() < 0.5,
                "temperature": rng.choice([0.7, 1.0]),
                "extra_body": {"guidance": {"beta": rng.choice([0.5, 1.0])} if preset != "base" else {}},
            }
        )
    return asked


async def ask(client: openai.AsyncOpenAI, request: dict[str, Any]) -> str:
    found = await client.completions.create(**request)
    if not request["stream"]:
        return str(found.choices[0].text)
    return "".join([chunk.choices[0].text async for chunk in found])


def wait_until(is_so: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    assert is_so()


def metrics(server: Running) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        return str(answer.read().decode())


def check_that_nothing_stays(server: Running, letters: str) -> None:
    """Rounds of requests: whoever stays is answered; then no row is left, and memory comes to rest.

    It grows at first, by what is loaded once and as vLLM's requests reach blocks of its key-value pool that
    none had touched. A leak grows in every round, so the rounds go on until two of them add next to nothing.
    """
    service, memory = server.app.state.service, []
    while len(memory) < MIN_ROUNDS or memory[-1] - memory[-3] >= FLAT:
        assert len(memory) < MAX_ROUNDS, f"memory grew in every round: {memory}"
        found = asyncio.run(_round_of_requests(server, letters))
        stayed = [answer for i, answer in enumerate(found) if i % 3]
        left = [answer for i, answer in enumerate(found) if i % 3 == 0]
        assert all(isinstance(answer, str) for answer in stayed), stayed
        assert len(stayed) == NUM_REQUESTS - len(left) == 133
        # Some who meant to leave had their answer before.
        assert sum(isinstance(answer, asyncio.CancelledError) for answer in left) > 20
        wait_until(lambda: service.models.num_rows == 0 and service.num_requests == 0)
        gc.collect()
        memory.append(_resident_bytes())
    print(f"resident memory after each round: {[size // 2**20 for size in memory]} MiB")


async def _round_of_requests(server: Running, letters: str) -> list[str | BaseException]:
    rng = random.Random(1)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600
    ) as client:
        running = [asyncio.create_task(ask(client, request)) for request in requests(rng, letters)]
        for task in running[::3]:
            asyncio.get_running_loop().call_later(rng.uniform(0, 1.0), task.cancel)
        return await asyncio.gather(*running, return_exceptions=True)


def _resident_bytes() -> int:
    """Of this process and of those that it started: vLLM's models live in one of their own."""
    here = psutil.Process()
    return sum(process.memory_info().rss for process in (here, *here.children(recursive=True)))
