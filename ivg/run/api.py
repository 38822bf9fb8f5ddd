"""`ivg.generate`: guided responses for a list of prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ivg.config import SamplingConfig, SearchConfig, check_guidance, check_rows
from ivg.config.checks import require_integer
from ivg.decoding.engine import Engine, in_order
from ivg.decoding.sequences import Finished, FinishReason, Hypothesis, Task
from ivg.decoding.stopping import StopChecker
from ivg.decoding.streaming import NewText
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.errors import UserError
from ivg.models.loading import Models
from ivg.models.prompts import Record, as_rows
from ivg.run.tasks import make_tasks


@dataclasses.dataclass(frozen=True, slots=True)
class Beam:
    """One kept hypothesis.

    Attributes:
        text: without special tokens and stop string.
        token_ids: EOS included.
        value: its chunk score.
        finish_reason: `eos`, `stop`, `length` or `context`; None if the search ended before it did.
    """

    text: str
    token_ids: tuple[int, ...]
    value: float
    finish_reason: FinishReason | None


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """The answer to one prompt.

    Attributes:
        id: identity of the prompt.
        prompt: its record.
        text: the best beam's text.
        token_ids: its tokens, EOS included.
        value: its chunk score; None without chunk guidance.
        num_tokens: its length, EOS included.
        finish_reason: why it ended.
        beams: all kept beams, best first.
    """

    id: str
    prompt: dict[str, Any]
    text: str
    token_ids: tuple[int, ...]
    value: float | None
    num_tokens: int
    finish_reason: FinishReason
    beams: tuple[Beam, ...]


def generate(
    prompts: Iterable[str | Record],
    models: Models,
    *,
    search: SearchConfig | None = None,
    sampling: SamplingConfig | None = None,
    max_batch_rows: int = 64,
    max_batch_tokens: int | None = None,
    block_size: int = 128,
    on_text: Callable[[NewText], None] | None = None,
) -> list[Response]:
    """Decode prompts with the base, guided as `search` says.

    Args:
        prompts: texts, or records with `prompt`, `messages` or `instruction` and optionally `id`.
        models: what `load_models` returned.
        search: guidance and beam search; default: plain sampling from the base.
        sampling: lengths, temperature, seed, stop strings.
        max_batch_rows: rows (prompts x W x K) decoded side by side.
        max_batch_tokens: rows times the columns that they may come to fill, at most; None: unbounded.
        block_size: prompts per block; a batch never spans two.
        on_text: gets each response's text as it becomes certain: what all surviving beams agree on.

    Returns:
        `sampling.num_samples` responses per prompt, in the prompts' order.

    Raises:
        UserError: a bad prompt, or guidance that the models cannot give.
    """
    search, sampling = search or SearchConfig(), sampling or SamplingConfig()
    _check_arguments(models, search, sampling, max_batch_rows, block_size)
    if max_batch_tokens is not None:
        require_integer("max_batch_tokens", max_batch_tokens, at_least=1)
    records = as_rows(prompts)
    engine = LockstepEngine(
        models,
        search,
        sampling,
        max_batch_rows=max_batch_rows,
        max_batch_tokens=max_batch_tokens,
        on_text=on_text,
    )
    tasks, bad = make_tasks(records, engine.infos, sampling)
    if bad:
        raise UserError(f"prompt {bad[0].index + 1} of {len(records)}: {bad[0].reason}")
    finished = run_blocks(engine, tasks, block_size * sampling.num_samples)
    return [
        response(done, records[done.task.index // sampling.num_samples], engine.stop_checker, search)
        for done in finished
    ]


def run_blocks(engine: Engine, tasks: Sequence[Task], block_size: int) -> Iterator[Finished]:
    """Decode tasks block by block, so that what shares a batch is decided by the input alone; in order."""
    for start in range(0, len(tasks), block_size):
        block = tasks[start : start + block_size]
        yield from in_order(block, engine.run(block))


def _check_arguments(
    models: Models, search: SearchConfig, sampling: SamplingConfig, max_batch_rows: int, block_size: int
) -> None:
    for name, value, wanted in (
        ("models", models, Models),
        ("search", search, SearchConfig),
        ("sampling", sampling, SamplingConfig),
    ):
        if not isinstance(value, wanted):
            raise UserError(f"{name} is {value!r:.60}; give ivg's {wanted.__name__}")
    infos = models.infos
    check_guidance(
        search,
        sampling,
        [p.config for p in infos.pairs],
        [*(v.config for v in infos.values), *infos.functions],
    )
    check_rows(search, max_batch_rows)
    if block_size < 1:
        raise UserError(f"block_size is {block_size}; give an integer >= 1")


def response(
    finished: Finished, record: dict[str, Any], stop_checker: StopChecker, search: SearchConfig
) -> Response:
    """Turn a finished task into what the user sees."""
    beams = tuple(_beam(hypothesis, stop_checker) for hypothesis in finished.beams)
    best = beams[0]
    assert best.finish_reason is not None
    return Response(
        id=finished.task.prompt_id,
        prompt=record,
        text=best.text,
        token_ids=best.token_ids,
        value=None if search.chunk_guidance == "none" else best.value,
        num_tokens=len(best.token_ids),
        finish_reason=best.finish_reason,
        beams=beams,
    )


def result_fields(found: Response) -> dict[str, Any]:
    """Return what every result line says beside its record's own fields."""
    return {
        "response": found.text,
        "value": found.value,
        "num_tokens": found.num_tokens,
        "finish_reason": found.finish_reason,
    }


def _beam(hypothesis: Hypothesis, stop_checker: StopChecker) -> Beam:
    return Beam(stop_checker.text(hypothesis), hypothesis.ids, hypothesis.value, hypothesis.finish_reason)
