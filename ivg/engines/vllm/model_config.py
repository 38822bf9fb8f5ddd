"""What vLLM must set wherever it is started with the guided model: by ivg, or by plain `vllm serve`."""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from ivg.engines.vllm.description import Description

# By name: processes that only check requests need not load what a runner needs.
_PROCESSORS = {
    False: "ivg.engines.vllm.row_settings:RowSettingsProcessor",
    True: "ivg.engines.vllm.runner_v2:RowSettingsProcessorV2",
}


class GuidedModelConfig(VerifyAndUpdateConfig):
    """vLLM asks it once, for the guided model's architecture."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Have the settings of single requests followed by what the model runner takes.

        Raises:
            ValueError: a draft model beside an exported model, whose requests may bring betas, where the
                runner could not follow them.
        """
        model_config = vllm_config.model_config
        is_second = vllm_config.use_v2_model_runner
        if vllm_config.speculative_config is not None and not is_second:
            # Model runner V1 takes no processors beside a draft model: all requests have the model's betas.
            if Description.from_dict(model_config.hf_config.ivg).exported_by is not None:
                raise ValueError(
                    "vLLM's model runner V1 cannot give single requests their betas beside a draft model; "
                    "leave out speculative_config, or use ivg-decode, whose betas are fixed"
                )
            return
        model_config.logits_processors = [*(model_config.logits_processors or ()), _PROCESSORS[is_second]]
