"""How requests share rows and turns, and what a value function that fails leaves behind."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from ivg.serve.lockstep import RowBudget
from tests.serve.server import serving


def test_who_comes_first_gets_rows_first() -> None:
    """A large request is not overtaken by small ones that would fit."""
    budget, order = RowBudget(4), []

    async def take(name: str, num_rows: int) -> None:
        async with budget.take(num_rows):
            order.append(name)
            await asyncio.sleep(0.01)

    async def main() -> None:
        names = [("a", 3), ("large", 4), ("b", 1), ("c", 1)]
        await asyncio.gather(*(take(*name) for name in names))

    asyncio.run(main())
    assert order == ["a", "large", "b", "c"]
    assert budget.num_taken == 0


def test_rows_come_back_whenever_a_wait_is_cancelled() -> None:
    async def main() -> None:
        budget = RowBudget(2)

        async def hold() -> None:
            async with budget.take(2):
                await asyncio.sleep(10)

        running = [asyncio.create_task(hold()) for _ in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert budget.num_taken == 2
        for task in running:  # the one that holds rows, and those that wait, in one go
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert budget.num_taken == 0
        last = asyncio.create_task(hold())
        waiting = asyncio.create_task(hold())
        await asyncio.sleep(0)
        last.cancel()
        await asyncio.sleep(0)  # `waiting` has just been let in, and is cancelled before it knows
        waiting.cancel()
        await asyncio.gather(last, waiting, return_exceptions=True)
        assert budget.num_taken == 0

    asyncio.run(main())


def test_a_value_function_that_fails_is_a_500_and_the_next_request_is_served(
    tmp_path: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judging_for_serve.py").write_text(
        "def judge(record, responses):\n"
        "    if 'bad' in record['prompt']:\n"
        "        raise KeyError('no such film')\n"
        "    return [float(len(response)) for response in responses]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    search = {"chunk_guidance": "explicit", "num_beams": 2, "num_successors": 2, "chunk_length": 4}
    values = [{"function": "judging_for_serve.judge"}]
    with serving({"base": models["base"], "values": values, "search": search}) as server:
        client = server.client()
        asked: dict[str, Any] = {"model": "ivg", "max_tokens": 8}
        with pytest.raises(openai.InternalServerError, match="it raised KeyError: 'no such film'"):
            client.completions.create(prompt="bad film", **asked)
        with pytest.raises(openai.APIError, match="it raised KeyError"):
            list(client.completions.create(prompt="bad film", stream=True, **asked))
        assert client.completions.create(prompt="good film", **asked).choices
        assert server.app.state.service.models.num_rows_taken == 0
    sys.modules.pop("judging_for_serve")
