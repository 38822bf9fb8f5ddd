"""What an engine is: tasks go in, finished tasks come out. Runs, sweeps and servers know no more than this.

An engine owns models, batches and memory. What is decoded is decided elsewhere and for all engines alike:
`beam_search.BeamSearch` says which prefixes to extend and which candidates survive, `token_guidance` holds
the formula, `stopping.StopChecker` finds where a response ends. To write an engine, read this folder and one
engine, and make `tests/engines/contract.py` pass. Then give it a name in `config/run.py`, under which
`run/engines.py` starts it for a run and `serve/starting.py` for a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ivg.decoding.sequences import Finished, Hypothesis, Task
from ivg.errors import RunError, UserError


class Engine(Protocol):
    """Decodes tasks with models that it holds in memory."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        """Decode tasks; each comes out once, as soon as it is finished, in any order.

        What comes out is decided by the tasks and the engine's settings alone. A caller that stops asking
        leaves nothing running.

        Raises:
            NumericalError: a model returned NaN or infinite numbers.
        """
        ...

    def close(self) -> None:
        """Give all memory back; the engine is of no use afterwards."""
        ...


class Watcher(Protocol):
    """Is told at every chunk boundary which hypotheses a search keeps."""

    def __call__(self, task: Task, beams: Sequence[Hypothesis], is_done: bool) -> None:
        """Look at the kept beams, best first; `is_done` where the search has ended."""
        ...


class AsyncEngine(Protocol):
    """The asynchronous twin, on which a server stands: requests join and leave while others run."""

    async def decode(self, task: Task, watcher: Watcher | None = None) -> Finished:
        """Decode one task beside whatever else is running; cancelling the wait frees its rows.

        Args:
            task: its index must differ from those of all tasks that are running.
            watcher: is told of this task's boundaries, in the event loop's thread.

        Raises:
            NumericalError: a model returned NaN or infinite numbers.
        """
        ...

    async def close(self) -> None:
        """Stop; tasks that are still running end in `asyncio.CancelledError`."""
        ...


class PrefixScorer(Protocol):
    """Scores prefixes at chunk boundaries from outside the batch: through text, or by a function."""

    def __call__(self, tasks: Sequence[Task], prefixes: Sequence[Hypothesis]) -> Sequence[float]:
        """Return the weighted score of each prefix, which is added to its value.

        Args:
            tasks: whose prefix each is; tasks repeat.
            prefixes: hypotheses, whose ids are the base's.
        """
        ...


class NumericalError(RunError):
    """A model returned NaN or infinite numbers."""


class EngineError(RunError):
    """An engine could not start, or has ended before its work was done; what was finished is saved."""


class Refusal(NamedTuple):
    """One thing that was asked for and that an engine cannot do.

    Attributes:
        asked: what was asked for, such as `dtype float64`.
        reason: why it cannot be.
        instead: which engine or setting serves.
    """

    asked: str
    reason: str
    instead: str

    def tell(self, engine: str) -> str:
        """Say it in one line, for an engine's name in the configuration."""
        return f"engine {engine}: {self.asked}: {self.reason}; {self.instead}"


def refuse(engine: str, refusals: Sequence[Refusal]) -> None:
    """Say what an engine cannot do, before anything is loaded.

    Args:
        engine: its name in the configuration.
        refusals: what its examination of a run found.

    Raises:
        UserError: there is a refusal; the first is told, and how many more there are.
    """
    if not refusals:
        return
    first, more = refusals[0], len(refusals) - 1
    others = f" (and {more} more; see --dry_run)" if more else ""
    raise UserError(first.tell(engine) + others)


def in_order(tasks: Sequence[Task], finished: Iterable[Finished]) -> Iterator[Finished]:
    """Yield finished tasks in the order of `tasks`, each as soon as all before it are done.

    Raises:
        RuntimeError: an engine that returned without finishing a task.
    """
    waiting = {task.index: None for task in tasks}
    done: dict[int, Finished] = {}
    for item in finished:
        done[item.task.index] = item
        while waiting and (first := next(iter(waiting))) in done:
            del waiting[first]
            yield done.pop(first)
    if waiting:
        raise RuntimeError(f"the engine ended with {len(waiting)} of {len(tasks)} tasks unfinished")
