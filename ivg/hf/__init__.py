"""Guidance inside Hugging Face's `generate`: a custom decoding function, and a logits processor."""

from ivg.hf.generate import custom_generate
from ivg.hf.guidance import Guidance
from ivg.hf.logits_processor import GuidanceLogitsProcessor

__all__ = ["Guidance", "GuidanceLogitsProcessor", "custom_generate"]
