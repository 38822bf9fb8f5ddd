"""Which engine decodes a run: each by its name, and vLLM is asked nothing where lockstep was chosen.

A server chooses in `serve/starting.py`, by the same names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from ivg.config import DecodeConfig, EngineName
from ivg.decoding.engine import Engine, Refusal, refuse
from ivg.decoding.sequences import Task
from ivg.decoding.stopping import StopChecker
from ivg.decoding.streaming import AgreedText, NewText
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.vllm.refusals import check_prompt, find_refusals, refuse_absence, split_values
from ivg.errors import UserError, first_line
from ivg.models.loading import load_inspected
from ivg.models.plan import GuidePlan, ModelInfos
from ivg.run.console import is_verbose

OnText = Callable[[NewText], None] | None


class RunEngine(Engine, Protocol):
    """An engine that also says how its responses' ids are read, and what its models were fed."""

    stop_checker: StopChecker

    @property
    def tokens_fed(self) -> Mapping[str, int]:
        """Tokens fed to each model so far, by its name; empty where an engine does not count."""
        ...

    @property
    def flops(self) -> float:
        """Arithmetic so far, in floating-point operations; 0 where an engine does not count."""
        ...


StartEngine = Callable[[OnText], RunEngine]


def prepare_engine(
    config: DecodeConfig, infos: ModelInfos, plans: Sequence[GuidePlan], tasks: Sequence[Task]
) -> StartEngine:
    """Check that the chosen engine can do a run; nothing is loaded until what is returned is called.

    Args:
        config: the run.
        infos: base and guides that take part.
        plans: who guides and how.
        tasks: all that will be decoded.

    Raises:
        UserError: what the engine cannot do.
    """
    return _PREPARATIONS[config.engine](config, infos, plans, tasks)


def find_engine_refusals(
    config: DecodeConfig, infos: ModelInfos, plans: Sequence[GuidePlan], *, asks_vllm: bool = True
) -> list[Refusal]:
    """Return everything that the chosen engine cannot do in a run.

    Args:
        config: the run.
        infos: base and guides.
        plans: who guides and how.
        asks_vllm: also ask vLLM, if it is installed, which takes seconds to import.
    """
    if config.engine == "lockstep":  # the reference: it does all that a configuration can ask for
        return []
    assert config.engine == "vllm"
    absence = [*refuse_absence()] if asks_vllm else []
    args = config.vllm
    keep_trace = config.trace is not None
    found = find_refusals(infos.base, plans, config.sampling, engine_args=args, keep_trace=keep_trace)
    here: list[Refusal] = []
    if asks_vllm and not absence:
        with importing_vllm():
            from ivg.engines.vllm.refusals_here import find_refusals_here
        here = find_refusals_here(infos.base, plans, config.sampling, args)
    return [*absence, *_refuse_lockstep_settings(config), *found, *here]


def _prepare_lockstep(
    config: DecodeConfig, infos: ModelInfos, plans: Sequence[GuidePlan], tasks: Sequence[Task]
) -> StartEngine:
    return functools.partial(_start_lockstep, config, infos, plans)


def _start_lockstep(
    config: DecodeConfig, infos: ModelInfos, plans: Sequence[GuidePlan], on_text: OnText
) -> RunEngine:
    return LockstepEngine(
        load_inspected(infos),
        config.search,
        config.sampling,
        max_batch_rows=config.max_batch_rows,
        max_batch_tokens=config.max_batch_tokens,
        plans=plans,
        keep_trace=config.trace is not None,
        on_text=on_text,
    )


def _prepare_vllm(
    config: DecodeConfig, infos: ModelInfos, plans: Sequence[GuidePlan], tasks: Sequence[Task]
) -> StartEngine:
    refuse("vllm", [*refuse_absence(), *_refuse_lockstep_settings(config)])
    with importing_vllm():
        from ivg.engines.vllm.engine import prepare, start

    keep_trace = config.trace is not None
    prepared = prepare(infos, config.search, config.sampling, engine_args=config.vllm, keep_trace=keep_trace)
    alone = split_values(plans, config.vllm).names_alone
    for task in tasks:
        check_prompt(task, config.vllm.get("max_model_len"), alone=alone)

    def start_vllm(on_text: OnText) -> RunEngine:
        checker = prepared.settings.stop_checker
        watcher = None if on_text is None else AgreedText(checker, config.sampling.stop, on_text)
        return start(prepared, watcher)

    return start_vllm


Prepare = Callable[[DecodeConfig, ModelInfos, Sequence[GuidePlan], Sequence[Task]], StartEngine]
_PREPARATIONS: dict[EngineName, Prepare] = {"lockstep": _prepare_lockstep, "vllm": _prepare_vllm}


@contextlib.contextmanager
def importing_vllm() -> Iterator[None]:
    """Stand around the first import of vLLM.

    What it reads then is set: standard output is for results, and nobody is told of runs.

    Raises:
        UserError: it cannot be imported.
    """
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if is_verbose() else "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        yield
    except ImportError as error:  # a build for other hardware, or half an installation
        raise UserError(
            f"engine vllm: vLLM is installed but cannot be imported: {first_line(error)}; install it anew, "
            "or set engine: lockstep"
        ) from error


def _refuse_lockstep_settings(config: DecodeConfig) -> Iterator[Refusal]:
    """What says how lockstep batches, and processes that share a run's blocks."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, instead in (("max_batch_rows", "max_num_seqs"), ("max_batch_tokens", "max_num_batched_tokens")):
        value = getattr(config, name)
        if value != defaults[name]:
            yield Refusal(f"{name} {value}", "vLLM batches by itself", f"set vllm.{instead}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        reason = "vLLM starts the processes that it needs"
        yield Refusal("several processes", reason, "start one, with vllm.tensor_parallel_size")
