"""The one door to the `alpaca_eval` package, which warns and logs a good deal."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

with warnings.catch_warnings():
    # It imports pkg_resources, whose end is announced for setuptools 81; constraints.txt stays below.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    from alpaca_eval import constants, metrics
    from alpaca_eval.annotators import PairwiseAnnotator

__all__ = ["PairwiseAnnotator", "constants", "metrics", "quiet"]


@contextlib.contextmanager
def quiet(*, show_progress: bool = True) -> Iterator[None]:
    """Hold back the package's log, where each request and each unparsed answer is reported."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(sys.stderr if show_progress else _Nowhere()):
            yield
    finally:
        logging.disable(previous)


class _Nowhere:
    """A stream that forgets: progress bars have no switch in this package."""

    def write(self, _: str) -> int:
        return 0

    def flush(self) -> None:
        pass
