"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`)."""

from __future__ import annotations

ARCHITECTURE = "IvgForCausalLM"


def register() -> None:
    """Tell vLLM of the guided model; calling it again changes nothing."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # Only here: this module is read by every vLLM process of the environment, guided or not.
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        from ivg.engines.vllm.model import IvgForCausalLM
        from ivg.engines.vllm.model_config import GuidedModelConfig

        ModelRegistry.register_model(ARCHITECTURE, IvgForCausalLM)
        MODELS_CONFIG_MAP[ARCHITECTURE] = GuidedModelConfig
