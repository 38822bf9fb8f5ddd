"""What tests of several processes need."""

import os
import shutil
from importlib.util import find_spec

import pytest

from tests.train.launching import path


@pytest.fixture(scope="session")
def deepspeed() -> None:
    """Skip without DeepSpeed or the compiler it needs; in CI, fail."""
    missing = [name for name in ("c++", "ninja") if shutil.which(name, path=path()) is None]
    missing += ["deepspeed"] if find_spec("deepspeed") is None else []
    if missing:
        reason = f"DeepSpeed on the CPU compiles a small operator; missing: {', '.join(missing)}"
        if os.environ.get("IVG_REQUIRE_DEEPSPEED"):
            pytest.fail(reason)
        pytest.skip(reason)
