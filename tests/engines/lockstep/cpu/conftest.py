"""The compiled loops must be there wherever they can be built: their tests do not pass by going without."""

from __future__ import annotations

import os
import shutil

import pytest

from ivg.engines.lockstep.cpu.library import library


@pytest.fixture(autouse=True)
def _needs_the_loops() -> None:
    if library() is None:
        if os.environ.get("IVG_REQUIRE_DEEPSPEED") or shutil.which("c++"):
            pytest.fail("the compiled loops are missing: reinstall ivg and read what its build says")
        pytest.skip("no C++ compiler built the loops")
