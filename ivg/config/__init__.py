"""What a decoding run is made of: frozen dataclasses, checked when built.

Nothing here touches a disk, a network or a device; `yaml_file.py` reads YAML into these.
"""

from ivg.config.models import Dtype, ModelConfig, PairConfig, Quantization, ValueConfig, VocabMapping
from ivg.config.run import (
    DatasetConfig,
    DecodeConfig,
    EngineName,
    OnOverflow,
    check_guidance,
    check_rows,
)
from ivg.config.search import Guidance, SamplingConfig, SearchConfig

__all__ = [
    "DatasetConfig",
    "DecodeConfig",
    "Dtype",
    "EngineName",
    "Guidance",
    "ModelConfig",
    "OnOverflow",
    "PairConfig",
    "Quantization",
    "SamplingConfig",
    "SearchConfig",
    "ValueConfig",
    "VocabMapping",
    "check_guidance",
    "check_rows",
]
