"""A run before it starts: everything checked, every prompt encoded, nothing loaded or written."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivg.config import DecodeConfig
from ivg.decoding.sequences import Task
from ivg.engines.chunk_guidance import import_value_function
from ivg.errors import is_main_process
from ivg.models.inspection import ModelInfo
from ivg.models.memory import check_it_fits
from ivg.models.plan import (
    GuidePlan,
    ModelInfos,
    inspect_models,
    plan_functions,
    plan_guides,
    reading_models,
    tell_templates,
    used_models,
)
from ivg.models.vocab import stop_token_ids
from ivg.rewards import source_hash
from ivg.run.engines import StartEngine, prepare_engine
from ivg.run.input_files import RESULT_FIELDS, InputRecord, read_input, refuse_bad_records, source_name
from ivg.run.output_files import check_paths, content_hash, fingerprint
from ivg.run.resume import Line, Lines
from ivg.run.tasks import make_tasks

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A run whose settings, prompts and guidance were checked; weights and files were not touched yet.

    Attributes:
        config: what was asked for.
        references: texts of the configuration that the environment gave, and how they were written.
        infos: the models, not loaded.
        plans: who guides, and how.
        records: the input.
        tasks: per record, its tasks (none for a bad one).
        bad: per bad record's index, the reason.
        start_engine: loads the models into the engine that was chosen.
    """

    config: DecodeConfig
    references: Mapping[str, str]
    infos: ModelInfos
    plans: list[GuidePlan]
    records: list[InputRecord]
    tasks: list[list[Task]]
    bad: dict[int, str]
    start_engine: StartEngine

    @property
    def blocks(self) -> list[range]:
        """Records of each block; a function of input and settings alone."""
        size = self.config.block_size
        return [range(s, min(s + size, len(self.records))) for s in range(0, len(self.records), size)]

    def num_results(self, records: range) -> int:
        """Return how many result lines records make: one per sample, one for a bad record."""
        return sum(len(self.tasks[i]) or 1 for i in records)

    @property
    def trace_paths(self) -> list[Path]:
        """The trace file's path, or nothing."""
        return [] if self.config.trace is None else [Path(self.config.trace)]

    def expected_lines(self, records: range) -> list[Lines]:
        """Say which lines these records make, in the output and, if there is one, in the trace."""
        results, traces = [], []
        for i in records:
            fields = self.records[i].fields
            if i in self.bad:
                results.append(_result_key({**fields, "error": self.bad[i]}))
                traces.append(_trace_key({"error": self.bad[i]}))
            for task in self.tasks[i]:
                sample = {"sample": task.sample} if self.config.sampling.num_samples > 1 else {}
                results.append(_result_key({**own_fields(fields), **sample}))
                traces.append(_trace_key({"id": task.prompt_id, "sample": task.sample}))
        return [Lines(results, _result_key), *(Lines(traces, _trace_key) for _ in self.trace_paths)]


def own_fields(fields: Line) -> dict[str, Any]:
    """Return what of a record its result keeps: all but what a result says itself."""
    return {name: value for name, value in fields.items() if name not in RESULT_FIELDS}


def _result_key(line: Line) -> str:
    """Return what a result line answers: its record's fields, which sample, and why if it was refused."""
    more = {name: line[name] for name in ("sample", "error") if name in line}
    return json.dumps([own_fields(line), more], sort_keys=True)


def _trace_key(line: Line) -> str:
    return json.dumps([line["error"]] if "error" in line else [line["id"], line["sample"]])


def prepare(
    config: DecodeConfig,
    records: Sequence[InputRecord] | None = None,
    *,
    references: Mapping[str, str] | None = None,
) -> Job:
    """Check the whole run before any weights are loaded.

    Args:
        config: the run.
        records: its input, where that was read already.
        references: texts of the configuration that came from the environment, and how they were written.

    Raises:
        UserError: whatever the user can mend, all bad records at once.
    """
    check_paths(config)
    records = read_input(config.input, config.dataset, config.limit) if records is None else list(records)
    infos = inspect_models(config.base, config.pairs, config.values)
    plans = plan_guides(infos, config.search)
    for function in plan_functions(infos, config.search):
        import_value_function(function.name)
    check_it_fits(reading_models(infos.base, plans))
    stop_token_ids(infos.base.tokenizer, config.sampling.stop)
    usable = [i for i, record in enumerate(records) if record.error is None]
    tasks, too_long = make_tasks(
        [records[i].fields for i in usable],
        reading_models(infos.base, plans),
        config.sampling,
        on_overflow=config.on_overflow,
    )
    for entry in too_long:
        i = usable[entry.index]
        records[i] = records[i]._replace(error=f"{records[i].where}: {entry.reason}")
    if not config.skip_bad_rows:
        refuse_bad_records(records, source_name(config.input, config.dataset))
    num_samples = config.sampling.num_samples
    by_record: list[list[Task]] = [[] for _ in records]
    for task in tasks:
        i = usable[task.index // num_samples]
        by_record[i].append(dataclasses.replace(task, index=i * num_samples + task.sample))
    bad = {i: record.error for i, record in enumerate(records) if record.error is not None}
    infos = used_models(infos, plans)
    if is_main_process():
        for line in tell_templates(infos):
            logger.warning(line)
    start_engine = prepare_engine(config, infos, plans, [task for some in by_record for task in some])
    return Job(config, references or {}, infos, plans, records, by_record, bad, start_engine)


_NOT_SETTINGS = ("input", "output", "trace")


def settings(job: Job, *, several_processes: bool) -> dict[str, Any]:
    """Return everything that decides the output's bytes, for the manifest.

    What the environment gave stands there as it was written, with a hash that tells another value.
    """
    config = dataclasses.asdict(job.config)
    for name in _NOT_SETTINGS:
        config.pop(name)
    if job.config.engine != "vllm":
        config.pop("vllm")  # not read
    if config["dataset"] is not None and config["dataset"]["file"] is None:
        config["dataset"].pop("file")  # outputs begun before there was such a key are still gone on with
    models = reading_models(job.infos.base, job.plans)
    data = {
        **config,
        "input_hash": content_hash([record.fields for record in job.records]),
        "models": {info.name: _describe_model(info) for info in models},
        "functions": {
            function.name: source_hash(function.name)
            for function in plan_functions(job.infos, job.config.search)
        },
        "several_processes": several_processes,
    }
    replaced = _refer_to_environment(data, job.references)
    assert isinstance(replaced, dict)
    return replaced


def _refer_to_environment(data: object, references: Mapping[str, str]) -> object:
    """Replace texts that came from the environment, also in the names of models, `role (path)`."""
    if isinstance(data, Mapping):
        return {
            _refer_to_environment(key, references): _refer_to_environment(value, references)
            for key, value in data.items()
        }
    if isinstance(data, list | tuple):
        return [_refer_to_environment(value, references) for value in data]
    for value, written in references.items():
        if data == value:
            return f"{written} [{content_hash(value)[:8]}]"
        if isinstance(data, str) and data.endswith(f" ({value})"):
            return f"{data.removesuffix(f'({value})')}({written})"
    return data


def _describe_model(info: ModelInfo) -> dict[str, Any]:
    folders = [Path(path) for path in (info.source.path, info.adapter_over) if path is not None]
    return {
        "fingerprint": [fingerprint(folder) for folder in folders if folder.is_dir()],
        "commit": info.config.to_dict().get("_commit_hash"),
        "template": info.template,
        "eos_ids": list(info.eos_ids),
    }
