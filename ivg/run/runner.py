"""A whole `ivg-decode` run: check everything, load, decode block by block, write rows, resume."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ivg.decoding.streaming import NewText
from ivg.errors import UserError, is_main_process
from ivg.models.loading import load_inspected
from ivg.run.api import Response, response
from ivg.run.engine import Engine
from ivg.run.input_files import OUTPUT_FIELDS
from ivg.run.job import Job, output_rows, settings, trace_paths
from ivg.run.output_files import (
    RowFile,
    close_run,
    join_parts,
    manifest_is_complete,
    open_run,
    part_folder,
)
from ivg.run.trace import trace_row

Result = dict[str, Any]


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

    def decode(self, block: range) -> Iterator[tuple[Result, Result]]:
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
                found = response(done, self.job.rows[i].row, engine.stop_checker, config.search)
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

    def _row(self, found: Response, sample: int) -> Result:
        config = self.job.config
        row = {
            **{name: value for name, value in found.prompt.items() if name not in OUTPUT_FIELDS},
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


OnText = Callable[[NewText], None] | None


def run(job: Job, *, overwrite: bool = False, on_text: OnText = None) -> None:
    """Decode what is missing from the output.

    Several processes (under `accelerate launch` or `torchrun`) share the blocks; the bytes are the same.

    Raises:
        UserError: an existing output was made with other settings, or cannot be written.
        NumericalError: a model returned NaN or infinite numbers.
    """
    if job.config.output == "-":
        _run_to_standard_output(job)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _run_share(job, Path(str(job.config.output)), overwrite=overwrite, on_text=on_text)
    else:
        _run_alone(job, Path(str(job.config.output)), overwrite=overwrite, on_text=on_text)


def _run_to_standard_output(job: Job) -> None:
    with BlockDecoder(job) as decoder:
        for block in job.blocks:
            for row, _ in decoder.decode(block):
                sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
                sys.stdout.flush()


def _run_alone(job: Job, output: Path, *, overwrite: bool, on_text: OnText) -> None:
    traces = trace_paths(job)
    open_run(output, settings(job, several_processes=False), overwrite=overwrite, beside=traces)
    start = 0
    with BlockDecoder(job, on_text) as decoder, ExitStack() as stack:
        files = [stack.enter_context(RowFile(path)) for path in (output, *traces)]
        total = sum(output_rows(job, i) for i in range(len(job.rows)))
        for file in files:
            if file.num_rows > total:
                raise UserError(
                    f"output {file.path}: holds {file.num_rows} rows, but this run makes {total}; "
                    "something else wrote there; give another output, or overwrite"
                )
        for block in job.blocks:
            fill(files, start, decoder, block)
            start += sum(output_rows(job, i) for i in block)
    close_run(output, decoder.summary())


def _run_share(job: Job, output: Path, *, overwrite: bool, on_text: OnText) -> None:
    # accelerate takes seconds to import, and only several processes need it.
    from ivg.run.processes import join_processes, leave_processes

    state = join_processes()
    if state.is_main_process:
        open_run(output, settings(job, several_processes=True), overwrite=overwrite, beside=trace_paths(job))
    state.wait_for_everyone()
    targets = [output, *trace_paths(job)]
    names = [f"{number:06d}.jsonl" for number in range(len(job.blocks))]
    if not part_folder(output).exists() and manifest_is_complete(output):
        leave_processes()
        return
    mine = range(state.process_index, len(job.blocks), state.num_processes)
    with BlockDecoder(job, on_text, num_rows=sum(len(job.blocks[number]) for number in mine)) as decoder:
        for number in mine:
            with ExitStack() as stack:
                paths = [part_folder(target) / names[number] for target in targets]
                files = [stack.enter_context(RowFile(path)) for path in paths]
                fill(files, 0, decoder, job.blocks[number])
    state.wait_for_everyone()
    if state.is_main_process:
        for target in targets:
            join_parts(target, [part_folder(target) / name for name in names])
        close_run(output, decoder.summary())
    leave_processes()
