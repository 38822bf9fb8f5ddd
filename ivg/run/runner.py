"""A whole `ivg-decode` run: load, decode block by block, write results, resume."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ivg.decoding.engine import in_order
from ivg.errors import is_main_process
from ivg.run.api import Response, response, result_fields
from ivg.run.console import is_quiet
from ivg.run.engines import OnText, RunEngine
from ivg.run.environment import describe_environment
from ivg.run.job import Job, own_fields, settings
from ivg.run.lock import hold_lock, lock_path
from ivg.run.output_files import Outputs, join_parts, part_path
from ivg.run.resume import Digest, Line, LineFile, fill, scan_lines
from ivg.run.trace import trace_line


def run(job: Job, *, overwrite: bool = False, on_text: OnText = None) -> dict[str, Any]:
    """Decode what is missing from the output.

    Several processes (under `accelerate launch` or `torchrun`) share the blocks; the bytes are the same.

    Returns:
        The output's name, how many results stand in it, how many records were bad, and the tokens and seconds
        that this process decoded.

    Raises:
        UserError: an existing output was made with other settings, or cannot be written.
        NumericalError: a model returned NaN or infinite numbers.
        EngineError: the engine could not start, or died.
    """
    output = str(job.config.output)
    if output == "-":
        decoded = _run_to_standard_output(job)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        decoded = _run_share(job, Path(output), overwrite=overwrite, on_text=on_text)
    else:
        decoded = _run_alone(job, Path(output), overwrite=overwrite, on_text=on_text)
    num_results = job.num_results(range(len(job.records)))
    return {"output": output, "num_results": num_results, "num_bad_records": len(job.bad), **decoded}


def _run_to_standard_output(job: Job) -> dict[str, float]:
    with BlockDecoder(job) as decoder:
        for block in range(len(job.blocks)):
            for result, *_ in decoder.lines(block):
                sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
                sys.stdout.flush()
        return decoder.summary()


def _run_alone(job: Job, output: Path, *, overwrite: bool, on_text: OnText) -> dict[str, float]:
    outputs = Outputs(output, job.trace_paths, settings(job, several_processes=False))
    with ExitStack() as stack:
        _hold_locks(outputs, stack)
        outputs.check(overwrite=overwrite)
        decoder = stack.enter_context(BlockDecoder(job, on_text))
        if overwrite and outputs.have_begun():
            decoder.begin(0)
        outputs.start(describe_environment(job.config.engine), overwrite=overwrite)
        decoder.go_on_from(outputs.summary())
        every = range(len(job.records))
        files = [
            stack.enter_context(LineFile(path, expected, outputs.digest(path)))
            for path, expected in zip(outputs.files, job.expected_lines(every), strict=True)
        ]
        start = 0
        for number, records in enumerate(job.blocks):
            places = range(start, start + job.num_results(records))
            if fill(files, decoder, number, places):
                outputs.record(_digests(outputs, files), decoder.summary())
            start = places.stop
        for file in files:
            file.check_untouched()
        outputs.close(_digests(outputs, files), decoder.summary())
        return decoder.summary()


def _hold_locks(outputs: Outputs, stack: ExitStack) -> None:
    """Keep other runs off every file of this one, the trace included, until the stack is left."""
    for path in outputs.files:
        stack.enter_context(hold_lock(lock_path(path), f"output {path}"))


def _digests(outputs: Outputs, files: Sequence[LineFile]) -> dict[Path, Digest]:
    return {path: file.digest for path, file in zip(outputs.files, files, strict=True)}


def _run_share(job: Job, output: Path, *, overwrite: bool, on_text: OnText) -> dict[str, float]:
    # accelerate takes seconds to import, and only several processes need it.
    from ivg.run.processes import join_processes, leave_processes, wait_for_others

    state = join_processes()
    outputs = Outputs(output, job.trace_paths, settings(job, several_processes=True))
    with ExitStack() as stack:
        if state.is_main_process:
            _hold_locks(outputs, stack)
            outputs.check(overwrite=overwrite)
        wait_for_others()
        mine = range(state.process_index, len(job.blocks), state.num_processes)
        share = sum(len(job.blocks[number]) for number in mine)
        decoder = stack.enter_context(BlockDecoder(job, on_text, num_records=share))
        if overwrite and outputs.have_begun() and mine:
            decoder.begin(mine[0])
        wait_for_others()
        if state.is_main_process:
            outputs.start(describe_environment(job.config.engine), overwrite=overwrite)
            if outputs.is_complete():
                _reopen_if_damaged(job, outputs)
        wait_for_others()
        if not outputs.is_complete():
            for number in mine:
                _fill_parts(job, outputs, decoder, number)
            wait_for_others()
            if state.is_main_process:
                every = range(len(job.blocks))
                digests = {
                    path: join_parts(path, [part_path(path, i) for i in every]) for path in outputs.files
                }
                outputs.close(digests, decoder.summary())
        leave_processes()
        return decoder.summary()


def _fill_parts(job: Job, outputs: Outputs, decoder: BlockDecoder, number: int) -> None:
    """Decode a block into files of its own, one beside each output."""
    records = job.blocks[number]
    with ExitStack() as stack:
        files = [
            stack.enter_context(LineFile(part_path(path, number), expected))
            for path, expected in zip(outputs.files, job.expected_lines(records), strict=True)
        ]
        fill(files, decoder, number, range(job.num_results(records)))


def _reopen_if_damaged(job: Job, outputs: Outputs) -> None:
    """Take a joined output apart again where lines of it are no longer there, or a new file is asked for."""
    every = range(len(job.records))
    whole = job.num_results(every)
    for path, expected in zip(outputs.files, job.expected_lines(every), strict=True):
        scan = scan_lines(path, expected, outputs.digest(path))
        if scan.num_lines == whole:
            continue
        scan.warn(path)
        outputs.reopen()
        for each, lines in zip(outputs.files, job.expected_lines(every), strict=True):
            _take_apart(job, each, scan_lines(each, lines, outputs.digest(each)).num_lines)
        return


def _take_apart(job: Job, path: Path, num_good: int) -> None:
    """Write the good lines of a joined file as the blocks that they came from."""
    with path.open("rb") as file:
        lines = itertools.islice(file, num_good)
        for number, records in enumerate(job.blocks):
            part = part_path(path, number)
            part.parent.mkdir(exist_ok=True)
            part.write_bytes(b"".join(itertools.islice(lines, job.num_results(records))))


class BlockDecoder:
    """Decodes blocks with models that are loaded at the first one, and shows progress on stderr."""

    def __init__(self, job: Job, on_text: OnText = None, *, num_records: int | None = None) -> None:
        self.job = job
        self._on_text = on_text
        self._engine: RunEngine | None = None
        self._begun: tuple[int, Iterator[tuple[Line, ...]]] | None = None
        self._num_tokens = 0
        self._seconds = 0.0
        self._before: Mapping[str, Any] = {}
        self._progress = Progress(
            TextColumn("decoding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts  {task.fields[speed]:.0f} tokens/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not is_main_process() or is_quiet(),
        )
        self._bar = self._progress.add_task("", total=num_records or len(job.records), speed=0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._engine is not None:  # stopping what was never started prints an empty line
            self._progress.stop()
            self._engine.close()

    def skip(self, block: int) -> None:
        """Count a block that is complete already."""
        self._progress.advance(self._bar, len(self.job.blocks[block]))

    def begin(self, block: int) -> None:
        """Decode a block's first record, to see that the models load and answer; `lines` goes on from it."""
        lines = self._decode(self.job.blocks[block])
        first = next(lines)
        self._begun = block, itertools.chain([first], lines)

    def lines(self, block: int) -> Iterator[tuple[Line, ...]]:
        """Return a block's results, each with its trace line where there is a trace, in the input's order."""
        if self._begun is not None and self._begun[0] == block:
            lines, self._begun = self._begun[1], None
            return lines
        return self._decode(self.job.blocks[block])

    def go_on_from(self, summary: Mapping[str, Any]) -> None:
        """Count on from the summary of a run that was cut short."""
        self._before = summary

    def summary(self) -> dict[str, Any]:
        """Return what has been decoded: tokens returned, seconds, tokens fed to each model, and arithmetic.

        What an earlier run finished is counted in; a block that it did not finish is decoded again, and
        counted once.
        """
        before, engine = self._before, self._engine
        found, flops = ({}, 0.0) if engine is None else (engine.tokens_fed, engine.flops)
        # By role alone: a model's path may come from the environment, and stays out of the manifest then.
        fed = {name.partition(" (")[0]: number for name, number in found.items()}
        fed_before = before.get("tokens_fed", {})
        return {
            "num_tokens": before.get("num_tokens", 0) + self._num_tokens,
            "seconds": round(before.get("seconds", 0.0) + self._seconds, 3),
            "tokens_fed": {
                name: fed_before.get(name, 0) + fed.get(name, 0) for name in {**fed_before, **fed}
            },
            "flops": before.get("flops", 0.0) + flops,
        }

    def _decode(self, records: range) -> Iterator[tuple[Line, ...]]:
        config, engine = self.job.config, self._load_engine()
        tasks = [task for i in records for task in self.job.tasks[i]]
        finished = in_order(tasks, engine.run(tasks))
        for i in records:
            fields = self.job.records[i].fields
            if i in self.job.bad:
                error = {"error": self.job.bad[i]}
                yield self._with_trace({**fields, "response": None, **error}, error)
            for _ in self.job.tasks[i]:
                start = time.perf_counter()
                done = next(finished)
                found = response(done, fields, engine.stop_checker, config.search)
                self._count(found, time.perf_counter() - start)
                traced = (
                    trace_line(done, config.search.num_successors, engine.stop_checker.decode)
                    if config.trace
                    else {}
                )
                yield self._with_trace(self._make_result(found, done.task.sample), traced)
            self._progress.advance(self._bar)

    def _with_trace(self, result: Line, traced: Line) -> tuple[Line, ...]:
        return (result, traced) if self.job.config.trace is not None else (result,)

    def _load_engine(self) -> RunEngine:
        if self._engine is None:
            self._engine = self.job.start_engine(self._on_text)
            self._progress.start()  # not before: what loading has to say stands alone
        return self._engine

    def _count(self, found: Response, seconds: float) -> None:
        self._num_tokens += found.num_tokens
        self._seconds += seconds
        self._progress.update(self._bar, speed=self._num_tokens / max(self._seconds, 1e-9))

    def _make_result(self, found: Response, sample: int) -> Line:
        config = self.job.config
        result = {**own_fields(found.prompt), **result_fields(found)}
        if config.sampling.num_samples > 1:
            result["sample"] = sample
        if config.return_token_ids:
            result["token_ids"] = list(found.token_ids)
        if config.return_beams:
            result["beams"] = [dataclasses.asdict(beam) for beam in found.beams]
        return result
