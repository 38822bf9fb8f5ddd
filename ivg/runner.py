"""A whole `ivg-decode` run: check everything, load, decode block by block, write rows, resume."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ivg.blocks import BlockDecoder, Job, fill, output_rows, trace_paths
from ivg.config import DecodeConfig
from ivg.engine import lane_infos, make_tasks
from ivg.errors import UserError
from ivg.hypotheses import Task
from ivg.inspection import ModelInfo
from ivg.plan import inspect_models, plan_guides, used_models
from ivg.records import (
    RowFile,
    close_run,
    content_hash,
    fingerprint,
    join_parts,
    manifest_is_complete,
    open_run,
    part_folder,
)
from ivg.sources import SourceRow, read_input, refuse_bad_rows, source_name
from ivg.streaming import NewText
from ivg.vocab import stop_token_ids

OnText = Callable[[NewText], None] | None
_NOT_SETTINGS = ("input", "output", "trace")


def prepare(config: DecodeConfig, rows: Sequence[SourceRow] | None = None) -> Job:
    """Check the whole run before any weights are loaded.

    Args:
        config: the run.
        rows: its input, where that was read already.

    Raises:
        UserError: whatever the user can mend, all bad rows at once.
    """
    _check_paths(config)
    infos = inspect_models(config.base, config.pairs, config.values)
    plans = plan_guides(infos, config.search)
    stop_token_ids(infos.base.tokenizer, config.sampling.stop)
    rows = read_input(config.input, config.dataset, config.limit) if rows is None else list(rows)
    lanes = lane_infos(infos.base, plans)
    usable = [(i, source) for i, source in enumerate(rows) if source.error is None]
    tasks, too_long = make_tasks(
        [source.row for _, source in usable], lanes, config.sampling, on_overflow=config.on_overflow
    )
    places = [i for i, _ in usable]
    for entry in too_long:
        i = places[entry.index]
        rows[i] = rows[i]._replace(error=f"{rows[i].where}: {entry.reason}")
    if not config.skip_bad_rows:
        refuse_bad_rows(rows, source_name(config.input, config.dataset))
    num_samples = config.sampling.num_samples
    per_row: list[list[Task]] = [[] for _ in rows]
    for task in tasks:
        i = places[task.index // num_samples]
        per_row[i].append(dataclasses.replace(task, index=i * num_samples + task.sample))
    bad = {i: source.error for i, source in enumerate(rows) if source.error is not None}
    return Job(config, used_models(infos, plans), plans, rows, per_row, bad)


def _check_paths(config: DecodeConfig) -> None:
    """Refuse files that would be written over each other."""
    if config.output is None:
        raise UserError("no output: give a file, or '-' for standard output")
    if config.trace is not None and "-" in (config.output, config.trace):
        raise UserError("trace and output are two files; give both a path instead of '-'")
    named = [("input", config.input), ("output", config.output), ("trace", config.trace)]
    files = [(name, path, os.path.realpath(path)) for name, path in named if path not in (None, "-")]
    for i, (name, path, real) in enumerate(files):
        for other, _, other_real in files[:i]:
            if real == other_real:
                raise UserError(f"{other} and {name} are the same file, {path}; give each its own")


def settings(job: Job, *, several_processes: bool) -> dict[str, Any]:
    """Return everything that decides the output's bytes, for the manifest."""
    config = dataclasses.asdict(job.config)
    for name in _NOT_SETTINGS:
        config.pop(name)
    models = lane_infos(job.infos.base, job.plans)
    return {
        **config,
        "input_hash": content_hash([source.row for source in job.rows]),
        "models": {info.name: _identity(info) for info in models},
        "several_processes": several_processes,
    }


def _identity(info: ModelInfo) -> dict[str, Any]:
    folder = Path(info.source.path)
    return {
        "fingerprint": fingerprint(folder) if folder.is_dir() else None,
        "commit": info.config.to_dict().get("_commit_hash"),
        "template": info.template,
        "eos_ids": list(info.eos_ids),
    }


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
    from ivg.processes import join_processes, leave_processes

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
