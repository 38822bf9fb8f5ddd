"""The compiled loop must be there wherever it can be built: its tests do not pass by going without."""

from __future__ import annotations

import os
import platform
import shutil

import pytest
import torch

from ivg.engines.lockstep.cpu.attention import library


@pytest.fixture(autouse=True)
def _needs_the_loops() -> None:
    if library() is None:
        if platform.machine() in ("x86_64", "AMD64") and "AVX" not in torch.backends.cpu.get_cpu_capability():
            pytest.skip("the loop needs AVX2, which this processor lacks")
        if os.environ.get("IVG_REQUIRE_DEEPSPEED") or shutil.which("c++"):
            pytest.fail("the compiled loop is missing: pip install -e . builds it; read what it says")
        pytest.skip("no C++ compiler built the loop")
