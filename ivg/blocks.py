"""A checked run and its blocks: decode one, turn responses into rows, write those that are missing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ivg.api import Response, response
from ivg.config import DecodeConfig
from ivg.engine import Engine
from ivg.errors import is_main_process
from ivg.hypotheses import Task
from ivg.loading import load_inspected
from ivg.plan import GuidePlan, ModelInfos
from ivg.records import RowFile
from ivg.sources import SourceRow
from ivg.streaming import NewText
from ivg.trace import trace_row

OutputRow = dict[str, Any]
_OURS = ("response", "value", "num_tokens", "finish_reason", "sample", "token_ids", "beams", "error")


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A run whose settings, prompts and guidance were checked; weights and files were not touched yet.

    Attributes:
        config: what was asked for.
        infos: the models, not loaded.
        plans: who guides, and how.
        rows: the input.
        tasks: per input row, its tasks (none for a bad row).
        bad: per bad row's index, the reason.
    """

    config: DecodeConfig
    infos: ModelInfos
    plans: list[GuidePlan]
    rows: list[SourceRow]
    tasks: list[list[Task]]
    bad: dict[int, str]

    @property
    def blocks(self) -> list[range]:
        """Input rows of each block; a function of input and settings alone."""
        size = self.config.block_size
        return [range(s, min(s + size, len(self.rows))) for s in range(0, len(self.rows), size)]


def output_rows(job: Job, index: int) -> int:
    """Return how many output rows an input row makes: one per sample, one for a bad row."""
    return len(job.tasks[index]) or 1


def trace_paths(job: Job) -> list[Path]:
    """Return the trace file's path, or nothing."""
    return [Path(job.config.trace)] if job.config.trace is not None else []


def fill(files: Sequence[RowFile], start: int, decoder: BlockDecoder, block: range) -> None:
    """Decode a block unless its rows are all there, and append those that are missing.

    Args:
        files: the output, and the trace if there is one; both get one row per output row.
        start: rows before the block in each file.
        decoder: decodes the block whole, so that an interrupted one comes out the same.
        block: input rows.
    """
    end = start + sum(output_rows(decoder.job, i) for i in block)
    if all(file.num_rows >= end for file in files):
        decoder.skip(block)
        return
    for place, rows in enumerate(decoder.decode(block), start):
        for file, row in zip(files, rows, strict=False):
            if file.num_rows == place:
                file.append(row)


class BlockDecoder:
    """Decodes blocks with models that are loaded at the first one, and shows progress on stderr."""

    def __init__(
        self, job: Job, on_text: Callable[[NewText], None] | None = None, *, num_rows: int | None = None
    ) -> None:
        self.job = job
        self._on_text = on_text
        self._engine: Engine | None = None
        self._num_tokens = 0
        self._seconds = 0.0
        self._progress = Progress(
            TextColumn("decoding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts  {task.fields[speed]:.0f} tokens/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not is_main_process(),
        )
        self._bar = self._progress.add_task("", total=num_rows or len(job.rows), speed=0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._engine is not None:  # stopping what was never started prints an empty line
            self._progress.stop()

    def skip(self, block: range) -> None:
        """Count a block that is complete already."""
        self._progress.advance(self._bar, len(block))

    def decode(self, block: range) -> Iterator[tuple[OutputRow, OutputRow]]:
        """Yield (output row, trace row) in the input's order."""
        config, engine = self.job.config, self._loaded()
        tasks = [task for i in block for task in self.job.tasks[i]]
        finished = engine.run(
            tasks,
            max_batch_rows=config.max_batch_rows,
            max_batch_tokens=config.max_batch_tokens,
            block_size=max(1, len(tasks)),
        )
        for i in block:
            if i in self.job.bad:
                error = {"error": self.job.bad[i]}
                yield {**self.job.rows[i].row, "response": None, **error}, error
            for _ in self.job.tasks[i]:
                start = time.perf_counter()
                done = next(finished)
                found = response(done, self.job.rows[i].row, engine.endings, config.search)
                self._count(found, time.perf_counter() - start)
                yield (
                    self._row(found, done.task.sample),
                    trace_row(done, config.search.num_successors, engine.decode_text),
                )
            self._progress.advance(self._bar)

    def summary(self) -> dict[str, float]:
        """Return what this process decoded: tokens returned and seconds."""
        return {"num_tokens": self._num_tokens, "seconds": round(self._seconds, 3)}

    def _loaded(self) -> Engine:
        if self._engine is None:
            config = self.job.config
            self._engine = Engine(
                load_inspected(self.job.infos),
                config.search,
                config.sampling,
                plans=self.job.plans,
                keep_trace=config.trace is not None,
                on_text=self._on_text,
                static_steps=config.static_steps,
            )
            self._progress.start()  # not before: what loading has to say stands alone
        return self._engine

    def _count(self, found: Response, seconds: float) -> None:
        self._num_tokens += found.num_tokens
        self._seconds += seconds
        self._progress.update(self._bar, speed=self._num_tokens / max(self._seconds, 1e-9))

    def _row(self, found: Response, sample: int) -> OutputRow:
        config = self.job.config
        row = {
            **{name: value for name, value in found.prompt.items() if name not in _OURS},
            "response": found.text,
            "value": found.value,
            "num_tokens": found.num_tokens,
            "finish_reason": found.finish_reason,
        }
        if config.sampling.num_samples > 1:
            row["sample"] = sample
        if config.return_token_ids:
            row["token_ids"] = list(found.token_ids)
        if config.return_beams:
            row["beams"] = [dataclasses.asdict(beam) for beam in found.beams]
        return row
