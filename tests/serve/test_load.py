"""Many clients at once, a third of whom hang up: everybody else is answered, and nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import psutil
import pytest

from tests.serve.server import PRESETS, Running, serving

NUM_REQUESTS = 200
MAX_GROWTH = 32 * 2**20  # bytes, over a second and a third round: caches of 200 requests would be more


@pytest.fixture(scope="module")
def server(models: dict[str, Any]) -> Iterator[Running]:
    with serving(
        {**models, "guidance": PRESETS, "max_batch_rows": 64, "sampling": {"max_new_tokens": 40}}
    ) as it:
        yield it


def requests(rng: random.Random) -> list[dict[str, Any]]:
    """Every preset, streamed and whole, with settings of their own: some share a batch, some do not."""
    asked = []
    for number in range(NUM_REQUESTS):
        preset = rng.choice(["ivg", "eft", "base"])
        prompt = "".join(rng.choice("abcdef ") for _ in range(rng.randint(1, 20))) + "."
        guidance = {"beta": rng.choice([0.5, 1.0])} if preset != "base" else {}
        asked.append(
            {
                "model": preset,
                "prompt": prompt,
                "max_tokens": rng.randint(20, 40),
                "seed": number,
                "stream": rng.random() < 0.5,
                "temperature": rng.choice([0.7, 1.0]),
                "extra_body": {"guidance": guidance},
            }
        )
    return asked


async def ask(client: openai.AsyncOpenAI, request: dict[str, Any]) -> str:
    found = await client.completions.create(**request)
    if not request["stream"]:
        return str(found.choices[0].text)
    texts = [chunk.choices[0].text async for chunk in found]
    return "".join(texts)


async def round_of_requests(server: Running, seed: int) -> list[str | BaseException]:
    rng = random.Random(seed)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=100
    ) as client:
        running = [asyncio.create_task(ask(client, request)) for request in requests(rng)]
        for task in running[::3]:
            asyncio.get_running_loop().call_later(rng.uniform(0, 1.0), task.cancel)
        return await asyncio.gather(*running, return_exceptions=True)


def wait_until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    assert is_so()


@pytest.mark.slow
def test_hundreds_of_clients_of_whom_a_third_hangs_up(server: Running) -> None:
    models, memory = server.app.state.service.models, []
    for _ in range(3):
        found = asyncio.run(round_of_requests(server, seed=1))
        stayed = [answer for i, answer in enumerate(found) if i % 3]
        left = [answer for i, answer in enumerate(found) if i % 3 == 0]
        assert all(isinstance(answer, str) for answer in stayed), stayed
        assert len(stayed) == 133
        # Some who meant to leave had their answer before.
        assert sum(isinstance(answer, asyncio.CancelledError) for answer in left) > 20
        wait_until(lambda: models.num_rows_taken == 0 and models.num_rows == 0)
        wait_until(lambda: server.app.state.service.num_requests == 0)
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)
    # The first round loads what is loaded once.
    assert memory[2] - memory[0] < MAX_GROWTH, memory


def test_answers_do_not_depend_on_company(server: Running) -> None:
    """float64: what each gets in the crowd is what it gets alone."""
    rng = random.Random(2)
    asked = [{**request, "stream": i % 2 == 0} for i, request in enumerate(requests(rng)[:24])]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, request) for request in asked))

    async def one_by_one() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return [await ask(client, request) for request in asked[:8]]

    assert asyncio.run(all_at_once())[:8] == asyncio.run(one_by_one())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_rows_at_once(server: Running, stream: bool) -> None:
    models = server.app.state.service.models

    async def hang_up() -> int:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            # 40 responses of 40 tokens in batches of 64 rows: more than a second of work.
            many = {"model": "ivg", "prompt": ["hello."] * 100, "max_tokens": 40, "stream": stream}

            async def read() -> None:
                found = await client.completions.create(**many)
                if stream:
                    async for _ in found:
                        pass

            task = asyncio.create_task(read())
            while models.num_rows == 0:
                assert not task.done(), task.result()
                await asyncio.sleep(0.005)
            seen = models.num_rows
            task.cancel()
            await asyncio.wait([task])
            return int(seen)

    assert asyncio.run(hang_up()) > 0
    wait_until(lambda: models.num_rows == 0 and models.num_rows_taken == 0, seconds=2)
    cancelled = 'ivg:request_cancelled_total{model_name="ivg"}'
    assert cancelled in metrics(server)


def metrics(server: Running) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        return str(answer.read().decode())


def test_more_requests_than_may_wait_are_told_to_come_later(models: dict[str, Any]) -> None:
    with serving({**models, "guidance": PRESETS, "serve": {"max_requests": 2}}) as server:

        async def crowd() -> list[Any]:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
                asked = [
                    client.completions.create(model="ivg", prompt=f"{'a' * i}.", max_tokens=30)
                    for i in range(8)
                ]
                return await asyncio.gather(*asked, return_exceptions=True)

        found = asyncio.run(crowd())
        refused = [error for error in found if isinstance(error, openai.InternalServerError)]
        assert len(refused) == 6
        assert {error.status_code for error in refused} == {503}
        assert "try again later" in str(refused[0])
        assert 'ivg:request_refused_total{status="503"} 6.0' in metrics(server)
