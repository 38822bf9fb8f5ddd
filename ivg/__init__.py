"""Guided decoding for frozen language models: Integrated Value Guidance (arXiv 2409.17819).

What is exported is imported at its first use: torch and transformers take seconds, which `ivg --help` and a
mistyped flag do not wait for.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ivg import config as config
    from ivg import errors as errors
    from ivg import hf as hf
    from ivg import models as models
    from ivg import rewards as rewards
    from ivg import run as run
    from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
    from ivg.hf import custom_generate
    from ivg.models.loading import load_models
    from ivg.run.api import Response as Response
    from ivg.run.api import generate

__all__ = [
    "ModelConfig",
    "PairConfig",
    "SamplingConfig",
    "SearchConfig",
    "ValueConfig",
    "custom_generate",
    "generate",
    "load_models",
]

_MODULES = {
    "ModelConfig": "ivg.config",
    "PairConfig": "ivg.config",
    "Response": "ivg.run.api",
    "SamplingConfig": "ivg.config",
    "SearchConfig": "ivg.config",
    "ValueConfig": "ivg.config",
    "custom_generate": "ivg.hf",
    "generate": "ivg.run.api",
    "load_models": "ivg.models.loading",
}
_ROOMS = ("config", "errors", "hf", "models", "rewards", "run")  # for `ivg.hf.Guidance` after `import ivg`

# Two lines of other libraries that no user of ours can mend; they would open every command.
# peft imports bitsandbytes where it is installed, whatever is loaded, and that misses a kernel of the Hub's.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: not record.msg.startswith("Failed to load CPU gemm_4bit_forward")
)
# peft 0.21 asks transformers by the old name when it wraps a model.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return importlib.import_module(f"ivg.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = found  # the next use finds it without asking
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
