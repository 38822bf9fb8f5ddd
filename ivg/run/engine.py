"""A run: prompts become tasks, tasks become finished responses, in blocks that the input alone decides."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence

import torch

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.sequences import Finished, Task
from ivg.decoding.stopping import StopChecker
from ivg.decoding.streaming import AgreedText, NewText
from ivg.engines.lockstep.batch import Lockstep
from ivg.engines.lockstep.build import bind_guides, bind_text_guides
from ivg.engines.lockstep.loop import Decoder
from ivg.engines.lockstep.model_runner import runner_of
from ivg.errors import UserError
from ivg.models.loading import Models
from ivg.models.plan import GuidePlan, plan_guides, reading_models
from ivg.models.vocab import stop_token_ids

logger = logging.getLogger(__name__)


class Engine:
    """Decodes tasks with loaded models.

    Args:
        models: base and guides.
        search: guidance and beam search.
        sampling: lengths, temperature, seed.
        keep_trace: record log-ratios and boundaries.
        plans: who guides and how, where `plan_guides` has said so already.
        static_steps: take the steps inside a chunk in fixed buffers, on a GPU as one captured graph.
        on_text: gets each response's text as it becomes certain (`ivg.decoding.streaming`).

    Raises:
        UserError: guidance that the models cannot give.
    """

    def __init__(
        self,
        models: Models,
        search: SearchConfig,
        sampling: SamplingConfig,
        *,
        plans: Sequence[GuidePlan] | None = None,
        keep_trace: bool = False,
        static_steps: bool = False,
        on_text: Callable[[NewText], None] | None = None,
    ) -> None:
        self.models = models
        self.plans = plan_guides(models.infos, search) if plans is None else plans
        self.infos = reading_models(models.infos.base, self.plans)
        self.lockstep = Lockstep(
            runner_of(models.base), bind_guides(models, self.plans), sampling, static_steps=static_steps
        )
        base = models.infos.base
        stop_ids = stop_token_ids(base.tokenizer, sampling.stop)
        self.stop_checker = StopChecker(base.eos_ids, sampling.stop, self.decode_text, stop_ids=stop_ids)
        self._rows_per_prompt = search.rows_per_prompt
        self._affordable_rows = sys.maxsize  # until memory has run out
        self._text_guides = bind_text_guides(models, self.plans, self.stop_checker)
        self._decoder = Decoder(
            self.lockstep,
            search,
            sampling,
            self.stop_checker,
            text_scorer=self._text_guides,
            keep_trace=keep_trace,
            watcher=None if on_text is None else AgreedText(self.stop_checker, sampling.stop, on_text),
        )

    def decode_text(self, ids: Sequence[int]) -> str:
        """Turn response ids into text, without special tokens."""
        return str(self.models.infos.base.tokenizer.decode(list(ids), skip_special_tokens=True))

    def run(
        self,
        tasks: Sequence[Task],
        *,
        max_batch_rows: int,
        block_size: int,
        max_batch_tokens: int | None = None,
    ) -> Iterator[Finished]:
        """Decode tasks in their order; what comes out depends on the tasks and settings alone.

        Tasks run in blocks of `block_size`, with continuous batching inside a block only. A block that runs
        out of device memory is decoded again with half the rows, and so is everything after it.

        Yields:
            Finished tasks, in the tasks' order.
        """
        max_batch_rows = min(max_batch_rows, self._affordable_rows)
        for start in range(0, len(tasks), block_size):
            block = tasks[start : start + block_size]
            done: dict[int, Finished] = {}
            next_out = 0
            while next_out < len(block):
                is_out_of_memory = False
                try:
                    remaining = [task for task in block if task.index not in done]
                    for finished in self._decoder.run(remaining, max_batch_rows, max_batch_tokens):
                        done[finished.task.index] = finished
                        while next_out < len(block) and block[next_out].index in done:
                            yield done[block[next_out].index]
                            next_out += 1
                except torch.OutOfMemoryError:
                    is_out_of_memory = True
                if is_out_of_memory:  # not inside `except`, where the traceback still holds the tensors
                    max_batch_rows = self._halved(max_batch_rows)

    def _halved(self, max_batch_rows: int) -> int:
        self.lockstep.release()
        if self._text_guides is not None:
            self._text_guides.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        fewer = max_batch_rows // 2
        if fewer < self._rows_per_prompt:
            raise UserError(
                f"out of memory with {max_batch_rows} rows, and one prompt needs {self._rows_per_prompt}; "
                "lower num_beams or num_successors, use smaller dtypes or quantization"
            )
        logger.warning("out of memory with %d rows: going on with max_batch_rows %d", max_batch_rows, fewer)
        self._affordable_rows = fewer
        return fewer
