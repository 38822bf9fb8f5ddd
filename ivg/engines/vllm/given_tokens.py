"""Log-probabilities of given tokens under token guidance, by vLLM's log-probs of prompts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator, Iterator, Sequence

from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from ivg.decoding.engine import NumericalError
from ivg.decoding.sequences import TokenLogProb
from ivg.engines.vllm.engine import request
from ivg.engines.vllm.row_settings import RowSettings


class GivenTokens:
    """Scores sequences as requests of their own: vLLM reads each once, and draws a token that is dropped.

    Args:
        engine: vLLM with the guided model.
        names: of the requests.
    """

    def __init__(self, engine: AsyncLLM, names: Iterator[str]) -> None:
        self._engine = engine
        self._names = names
        self._door = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._inside: list[RowSettings] = []

    async def score(
        self, rows: RowSettings, ids: Sequence[int], num_tokens: int, num_top: int
    ) -> list[TokenLogProb]:
        """Return the guided distribution's log-probs of a sequence's last tokens.

        Args:
            rows: weights of the guides in token guidance.
            ids: at least one token, and those to be scored.
            num_tokens: how many of the last ones.
            num_top: most probable tokens to be told with each.

        Raises:
            NumericalError: a model returned NaN or infinite numbers.
        """
        rows = dataclasses.replace(rows, chunk_weights=None, is_for_prompts=True)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            prompt_logprobs=max(1, num_top),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=rows.to_extra_args(),
        )
        async with self._beside_equals(rows):
            output = await request(self._engine, ids, params, next(self._names))
        reported = output.prompt_logprobs
        assert reported is not None
        found = []
        for token, entries in zip(ids[-num_tokens:], reported[-num_tokens:], strict=True):
            assert entries is not None
            best = sorted(entries.items(), key=lambda entry: -entry[1].logprob)[:num_top]
            found.append(TokenLogProb(token, entries[token].logprob, tuple((i, e.logprob) for i, e in best)))
        if any(math.isnan(entry.log_prob) for entry in found):
            raise NumericalError("the guided model returned NaN on given tokens")
        return found

    @contextlib.asynccontextmanager
    async def _beside_equals(self, rows: RowSettings) -> AsyncIterator[None]:
        """Wait until only requests of equal weights are scored; who comes first is let in first."""
        async with self._door, self._changed:
            await self._changed.wait_for(lambda: all(other == rows for other in self._inside))
            self._inside.append(rows)
        try:
            yield
        finally:
            self._inside.remove(rows)
            async with self._changed:
                self._changed.notify_all()
