"""A progress bar that ends with its block, however that ends."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from ivg.run.console import is_quiet

T = TypeVar("T")


@contextlib.contextmanager
def tracked(items: Collection[T], description: str) -> Iterator[Iterator[T]]:
    """Show on stderr how many items are done while the block goes through them.

    rich's own `track` is a generator with a thread. One that an error leaves half-way is closed by whichever
    thread collects garbage next; where that is the thread that draws, both wait for each other for ever.

    Args:
        items: what the block goes through.
        description: in front of the bar.

    Yields:
        The items, one after the other.
    """
    with Progress(console=Console(stderr=True), disable=is_quiet()) as progress:
        task = progress.add_task(description, total=len(items))

        def count() -> Iterator[T]:
            for item in items:
                yield item
                progress.advance(task)

        yield count()
