"""Settings of single requests under vLLM's model runner V2, CUDA's default. NOT RUN ON A GPU YET.

Written by the source of vLLM 0.33.0. There a model brings a `ModelState`, which learns of requests and of the
rows of each step before the forward pass, and processors of V2's own kind see logits after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcessor,
    LogitsProcRequestState,
)
from vllm.v1.worker.gpu.states import RequestState

from ivg.engines.vllm.row_settings import CONTEXT_NAME, BatchSettings, RowSettings


class GuidedModelState(DefaultModelState):
    """Tells the guided model, before each forward pass, whose rows it will be asked for."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._by_slot: dict[int, RowSettings | None] = {}

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Note a request's settings under its slot; the next request in that slot overwrites them."""
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        self._by_slot[req_index] = None if params is None else RowSettings.from_params(params)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        """Hand the model the settings of the rows of logits that this step makes."""
        rows = settings_of_rows(self._by_slot, input_batch.idx_mapping_np, input_batch.cu_num_logits_np)
        self.model.settings.put(rows)
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs


def settings_of_rows(
    by_slot: Mapping[int, RowSettings | None], slots: np.ndarray, cumulative: np.ndarray
) -> Sequence[RowSettings | None]:
    """Return the settings of each row of logits: a request has one, and one more for each draft token.

    Args:
        by_slot: settings of the requests.
        slots: (R,) slot of each request of the batch, in its order.
        cumulative: (R + 1,) where each request's rows begin, and where the last one's end.
    """
    return [by_slot.get(slot) for slot in np.repeat(slots, np.diff(cumulative)).tolist()]


class RowSettingsProcessorV2(LogitsProcessor):
    """Puts guided logits in the place of chunk scores before tokens are sampled."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._context = vllm_config.compilation_config.static_forward_context

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse malformed settings."""
        RowSettings.check(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Tell whether a request's logits are changed here: where its chunk scores are reported."""
        settings = RowSettings.from_params(sampling_params)
        return settings is not None and settings.chunk_weights is not None

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """Return the logits to sample from."""
        settings: BatchSettings = self._context[CONTEXT_NAME]
        return settings.restore(logits)
