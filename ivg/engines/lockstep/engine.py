"""Lockstep as an engine: loaded Hugging Face models decode tasks on the same rows.

It is exact, runs whatever transformers runs, and is the reference for other engines.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.engine import PrefixScorer
from ivg.decoding.sequences import Finished, Task
from ivg.decoding.streaming import AgreedText, NewText
from ivg.engines.chunk_guidance import add_scorers, build_function_scorers
from ivg.engines.lockstep.build import bind_text_guides, build_batch
from ivg.engines.lockstep.loop import Loop
from ivg.engines.stop_checker import build_stop_checker
from ivg.errors import UserError
from ivg.models.loading import Models
from ivg.models.plan import GuidePlan, plan_functions, plan_guides, reading_models

logger = logging.getLogger(__name__)


class LockstepEngine:
    """Decodes tasks with loaded models (see `ivg.decoding.engine.Engine`).

    Args:
        models: base and guides.
        search: guidance and beam search.
        sampling: lengths, temperature, seed.
        max_batch_rows: rows (prompts x W x K) decoded side by side.
        max_batch_tokens: rows times the columns that they may come to fill, at most; None: unbounded.
        plans: who guides and how, where `plan_guides` has said so already.
        keep_trace: record log-ratios and boundaries.
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
        max_batch_rows: int = 64,
        max_batch_tokens: int | None = None,
        plans: Sequence[GuidePlan] | None = None,
        keep_trace: bool = False,
        on_text: Callable[[NewText], None] | None = None,
    ) -> None:
        self.plans = plan_guides(models.infos, search) if plans is None else plans
        self.infos = reading_models(models.infos.base, self.plans)
        self.lockstep = build_batch(models, self.plans, sampling)
        self.stop_checker = build_stop_checker(models.infos.base, sampling)
        self._text_guides = bind_text_guides(models, self.plans, self.stop_checker)
        self._rows_per_prompt = search.rows_per_prompt
        functions = plan_functions(models.infos, search)
        scorers: list[PrefixScorer] = build_function_scorers(functions, self.stop_checker)
        if self._text_guides is not None:
            scorers.insert(0, self._text_guides)
        self.loop = Loop(
            self.lockstep,
            search,
            sampling,
            self.stop_checker,
            max_rows=max_batch_rows,
            max_tokens=max_batch_tokens,
            scorer=add_scorers(scorers),
            is_valued_outside=None if self._text_guides is None else self._text_guides.must_read,
            keep_trace=keep_trace,
            watcher=None if on_text is None else AgreedText(self.stop_checker, sampling.stop, on_text),
        )

    def run(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        """Decode tasks; yields each as it finishes.

        Where device memory runs out, what is not finished is decoded again with half the rows, and so is
        everything after it.

        Raises:
            NumericalError: a model returned NaN or infinite numbers.
            UserError: the memory does not hold the rows of one prompt.
        """
        unfinished = {task.index: task for task in tasks}
        while unfinished:
            is_out_of_memory = False
            try:
                for finished in self.loop.run(list(unfinished.values())):
                    del unfinished[finished.task.index]
                    yield finished
            except torch.OutOfMemoryError:
                is_out_of_memory = True
            if is_out_of_memory:  # not inside `except`, where the traceback still holds the tensors
                self._halve_rows()

    @property
    def tokens_fed(self) -> dict[str, int]:
        """Tokens fed to each model so far: of every row, prompts included; guides that read text left out."""
        fed: Counter[str] = Counter()
        for runner in self.lockstep.runners:
            fed[runner.name] += runner.tokens_fed
        return dict(fed)

    @property
    def flops(self) -> float:
        """Arithmetic so far: 2 x weights of matrix products x tokens fed, of the models in the batch."""
        return sum(2.0 * runner.num_matrix_weights * runner.tokens_fed for runner in self.lockstep.runners)

    def close(self) -> None:
        """Give all rows and caches back."""
        self.loop.clear()
        if self._text_guides is not None:
            self._text_guides.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _halve_rows(self) -> None:
        self.close()
        rows = self.loop.max_rows
        if rows // 2 < self._rows_per_prompt:
            raise UserError(
                f"out of memory with {rows} rows, and one prompt needs {self._rows_per_prompt}; "
                "lower num_beams or num_successors, use smaller dtypes or quantization"
            )
        logger.warning("out of memory with %d rows: going on with max_batch_rows %d", rows, rows // 2)
        self.loop.max_rows = rows // 2
