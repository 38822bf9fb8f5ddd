"""What a decoding run is made of: frozen dataclasses, checked when built.

Nothing here touches a disk, a network or a device; `config_file.py` reads YAML into these.
"""

from ivg.config.models import Dtype, ModelConfig, PairConfig, ValueConfig, VocabMapping
from ivg.config.run import DatasetConfig, DecodeConfig, check_guidance
from ivg.config.search import Guidance, SamplingConfig, SearchConfig

__all__ = [
    "DatasetConfig",
    "DecodeConfig",
    "Dtype",
    "Guidance",
    "ModelConfig",
    "PairConfig",
    "SamplingConfig",
    "SearchConfig",
    "ValueConfig",
    "VocabMapping",
    "check_guidance",
]
