"""Many clients at once, a third of whom hang up: everybody else is answered, and nothing of them stays."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serve.load import ask, check_that_nothing_stays, metrics, requests, wait_until
from tests.serve.server import PRESETS, Running, serving

LETTERS = "abcdef."  # no space: a prompt of spaces alone is refused


@pytest.fixture(scope="module")
def server(models: dict[str, Any]) -> Iterator[Running]:
    with serving(
        {**models, "guidance": PRESETS, "max_batch_rows": 64, "sampling": {"max_new_tokens": 40}}
    ) as it:
        yield it


@pytest.mark.slow
def test_hundreds_of_clients_of_whom_a_third_hangs_up(server: Running) -> None:
    check_that_nothing_stays(server, LETTERS)
    assert server.app.state.service.models.num_rows_taken == 0


def test_answers_do_not_depend_on_company(server: Running) -> None:
    """float64: what each gets in the crowd is what it gets alone."""
    rng = random.Random(2)
    asked = [{**request, "stream": i % 2 == 0} for i, request in enumerate(requests(rng, LETTERS, 24))]

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
    # 100 responses of 40 tokens in batches of 64 rows: more than a second of work.
    many = {"model": "ivg", "prompt": ["hello."] * 100, "max_tokens": 40}
    start = time.monotonic()
    server.client().completions.create(**many)
    whole = time.monotonic() - start

    async def hang_up() -> int:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def read() -> None:
                found = await client.completions.create(**many, stream=stream)
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
    start = time.monotonic()
    wait_until(lambda: models.num_rows == 0 and models.num_rows_taken == 0, seconds=60)
    assert time.monotonic() - start < whole / 2
    cancelled = 'ivg:request_cancelled_total{model_name="ivg"}'
    assert cancelled in metrics(server)


def test_more_requests_than_may_wait_are_told_to_come_later(models: dict[str, Any]) -> None:
    with serving({**models, "guidance": PRESETS, "serve": {"max_requests": 2}}) as server:

        async def crowd() -> list[Any]:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
                # 50 prompts each, so that all have come before the first is answered.
                asked = [
                    client.completions.create(model="ivg", prompt=[f"{'a' * i}."] * 50, max_tokens=30)
                    for i in range(8)
                ]
                return await asyncio.gather(*asked, return_exceptions=True)

        found = asyncio.run(crowd())
        refused = [error for error in found if isinstance(error, openai.InternalServerError)]
        assert len(refused) == 6
        assert {error.status_code for error in refused} == {503}
        assert "try again later" in str(refused[0])
        assert 'ivg:request_refused_total{status="503"} 6.0' in metrics(server)
