"""Guided decoding for frozen language models: Integrated Value Guidance (arXiv 2409.17819)."""

from ivg.api import Response, generate
from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.loading import load_models

__all__ = [
    "ModelConfig",
    "PairConfig",
    "Response",
    "SamplingConfig",
    "SearchConfig",
    "ValueConfig",
    "generate",
    "load_models",
]
