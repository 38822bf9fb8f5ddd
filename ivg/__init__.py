"""Guided decoding for frozen language models: Integrated Value Guidance (arXiv 2409.17819)."""

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
