"""A run: prompts become tasks, tasks become finished responses, in blocks that the input alone decides."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator, Sequence

import torch

from ivg.binding import bind_guides, bind_text_guides
from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding import Decoder
from ivg.errors import UserError
from ivg.hypotheses import Endings, Finished, Task
from ivg.inspection import ModelInfo
from ivg.loading import Models
from ivg.lockstep.rows import Lockstep
from ivg.plan import GuidePlan, PairInfo, plan_guides
from ivg.prompts import Row, encode_prompt, prompt_ids
from ivg.streaming import AgreedText, NewText
from ivg.text_guides import text_infos
from ivg.vocab import stop_token_ids

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class BadRow:
    """An input row that cannot be decoded, and why."""

    index: int
    reason: str


def lane_infos(base: ModelInfo, plans: Sequence[GuidePlan]) -> list[ModelInfo]:
    """Return the models that read each prompt: the engine's lanes in order, then those that read text."""
    infos = [base]
    for plan in plans:
        if plan.fit.route == "text":
            continue
        if isinstance(plan.info, PairInfo):
            # Over shared strings the branches of a shared pair may differ in length: a lane for each.
            is_one_lane = plan.info.is_shared and plan.fit.route == "ids"
            infos += [plan.info.tuned] if is_one_lane else [plan.info.tuned, plan.info.untuned]
        else:
            infos.append(plan.info.model)
    return infos + text_infos(plans)


def make_tasks(
    rows: Sequence[Row], infos: Sequence[ModelInfo], sampling: SamplingConfig, *, on_overflow: str = "error"
) -> tuple[list[Task], list[BadRow]]:
    """Encode every prompt for every model, before any weights are loaded.

    Args:
        rows: checked prompt rows.
        infos: what `lane_infos` returned.
        sampling: lengths and number of samples.
        on_overflow: `error`, or `stop` to end a response where a context ends.

    Returns:
        Tasks (`num_samples` for each prompt), and the rows that fit no context or template.
    """
    tasks: list[Task] = []
    bad: list[BadRow] = []
    for index, (row, name) in enumerate(zip(rows, prompt_ids(rows), strict=True)):
        try:
            lane_ids = tuple(tuple(encode_prompt(info.tokenizer, row, info.template)) for info in infos)
            room = _room(infos, lane_ids, sampling.max_new_tokens, on_overflow)
        except UserError as error:
            bad.append(BadRow(index, str(error)))
            continue
        for sample in range(sampling.num_samples):
            tasks.append(
                Task(
                    index=index * sampling.num_samples + sample,
                    prompt_id=name,
                    lane_ids=lane_ids,
                    max_tokens=min(room, sampling.max_new_tokens),
                    sample=sample,
                    limited_by="length" if room >= sampling.max_new_tokens else "context",
                    row=row,
                )
            )
    return tasks, bad


def _room(
    infos: Sequence[ModelInfo], lane_ids: Sequence[Sequence[int]], max_new_tokens: int, on_overflow: str
) -> int:
    """Return the response tokens that fit every context, or refuse the prompt."""
    room = max_new_tokens
    for info, ids in zip(infos, lane_ids, strict=True):
        if not ids:
            raise UserError(f"{info.name}: the prompt has no tokens in its template {info.template!r}")
        if info.max_length is None:
            continue
        left = info.max_length - len(ids)
        if left < 1 or (left < max_new_tokens and on_overflow == "error"):
            raise UserError(
                f"{info.name}: prompt of {len(ids)} tokens + max_new_tokens {max_new_tokens} exceeds its "
                f"context of {info.max_length}; shorten it, lower max_new_tokens, or set on_overflow: stop"
            )
        room = min(room, left)
    return room


class Engine:
    """Decodes tasks with loaded models.

    Args:
        models: base and guides.
        search: guidance and beam search.
        sampling: lengths, temperature, seed.
        keep_trace: record log-ratios and boundaries.
        plans: who guides and how, where `plan_guides` has said so already.
        static_steps: take the steps inside a chunk in fixed buffers, on a GPU as one captured graph.
        on_text: gets each response's text as it becomes certain (`ivg.streaming`).

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
        self.infos = lane_infos(models.infos.base, self.plans)
        self.lockstep = Lockstep(
            models.base.lane(), bind_guides(models, self.plans), sampling, static_steps=static_steps
        )
        base = models.infos.base
        stop_ids = stop_token_ids(base.tokenizer, sampling.stop)
        self.endings = Endings(base.eos_ids, sampling.stop, self.decode_text, stop_ids=stop_ids)
        self._rows_per_prompt = search.rows_per_prompt
        self._affordable_rows = sys.maxsize  # until memory has run out
        self._text_guides = bind_text_guides(models, self.plans, first=len(self.lockstep.lanes))
        self._decoder = Decoder(
            self.lockstep,
            search,
            sampling,
            self.endings,
            text_scorer=self._text_guides,
            keep_trace=keep_trace,
            watcher=None if on_text is None else AgreedText(self.endings, sampling.stop, on_text),
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
