"""The asynchronous twin of lockstep: requests join the running batch and leave it while others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ivg.decoding.engine import Watcher
from ivg.decoding.sequences import Finished, Hypothesis, Task
from ivg.engines.lockstep.loop import Loop


class AsyncLockstep:
    """Runs a loop's steps in a thread, one after the other; everything else happens in the event loop.

    Args:
        loop: whose tasks are all added here; its watcher is taken over.
        turn: held for each step, by engines that share their models; they take turns in the order of asking.
        clear: gives the memory of rows and caches back once nothing runs; default: the loop's own.
    """

    def __init__(
        self, loop: Loop, turn: asyncio.Lock | None = None, clear: Callable[[], None] | None = None
    ) -> None:
        self._loop = loop
        self._clear = clear or loop.clear
        self._turn = turn or asyncio.Lock()
        self._loop.watcher = self._watch
        self._waiters: dict[int, asyncio.Future[Finished]] = {}
        self._watchers: dict[int, Watcher] = {}
        self._joining: list[Task] = []
        self._leaving: list[int] = []
        self._stepping: asyncio.Task[None] | None = None

    @property
    def num_tasks(self) -> int:
        """How many tasks run or wait."""
        return len(self._waiters)

    async def decode(self, task: Task, watcher: Watcher | None = None) -> Finished:
        """Decode one task beside whatever else is running; cancelling the wait frees its rows.

        Raises:
            ValueError: a task of the same index is running.
            NumericalError: a model returned NaN or infinite numbers; whatever shared the batch fails with it.
        """
        if task.index in self._waiters:
            raise ValueError(f"a task with index {task.index} is running")
        waiter: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self._waiters[task.index] = waiter
        if watcher is not None:
            self._watchers[task.index] = watcher
        self._joining.append(task)
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._step_until_idle())
        try:
            return await waiter
        finally:
            del self._waiters[task.index]
            self._watchers.pop(task.index, None)
            if waiter.cancelled():
                self._leaving.append(task.index)

    async def close(self) -> None:
        """Stop after the step that is running; tasks that wait end in `asyncio.CancelledError`."""
        for waiter in list(self._waiters.values()):
            waiter.cancel()
        if self._stepping is not None:
            await asyncio.wait([self._stepping])
        self._clear()

    async def _step_until_idle(self) -> None:
        while True:
            # The loop is touched between its steps only, so nothing needs a lock.
            joining, self._joining = self._joining, []
            self._loop.add(joining)
            leaving, self._leaving = self._leaving, []
            for index in leaving:
                self._loop.drop(index)
            if self._loop.is_idle:
                self._clear()
                return
            try:
                async with self._turn:
                    done = await asyncio.to_thread(self._loop.step)
            except (
                Exception
            ) as error:  # NumericalError, the device's own, a value function's: nobody waits on
                self._clear()
                self._joining.clear()
                for waiter in list(self._waiters.values()):
                    if not waiter.done():
                        waiter.set_exception(error)
                return
            for finished in done:
                found = self._waiters.get(finished.task.index)
                if found is not None and not found.done():
                    found.set_result(finished)

    def _watch(self, task: Task, beams: Sequence[Hypothesis], is_done: bool) -> None:
        """Pass what the thread sees on to the event loop."""
        watcher = self._watchers.get(task.index)
        if watcher is not None and self._stepping is not None:
            self._stepping.get_loop().call_soon_threadsafe(watcher, task, list(beams), is_done)
