"""Model runner V2: its bookkeeping, and that vLLM's source is what it was written by. Not run on a GPU.

The source is that of the vLLM which is installed here and, where IVG_VLLM_SOURCE names the folder `vllm` of
the pinned CUDA build (`make test-vllm-source` fetches it), that one too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from vllm.sampling_params import SamplingParams

from ivg.engines.vllm.row_settings import CONTEXT_NAME, BatchSettings, RowSettings
from ivg.engines.vllm.runner_v2 import GuidedModelState, RowSettingsProcessorV2, settings_of_rows
from tests.engines.contract import MIN_P
from tests.engines.vllm.source import calls_in, names_in

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
ROOT = Path(__file__).parents[3]

OWN = RowSettings((0.5,))
ONE = RowSettings((1.0,))
SCORED = RowSettings((2.0,), (1.0,))


def params(settings: RowSettings | None = None) -> SamplingParams:
    return SamplingParams(extra_args=None if settings is None else settings.to_extra_args())


def model_state(settings: BatchSettings) -> GuidedModelState:
    """Return a state without the buffers that a real configuration and a device would give it."""
    state = GuidedModelState.__new__(GuidedModelState)
    state._by_slot = {}
    state.model = SimpleNamespace(settings=settings)
    state.rope_state = state.prompt_embeds_state = None
    return state


def batch(slots: list[int], rows_of_each: list[int]) -> SimpleNamespace:
    cumulative = np.cumsum([0, *rows_of_each])
    return SimpleNamespace(idx_mapping_np=np.array(slots), cu_num_logits_np=cumulative)


def new_request(settings: RowSettings | None) -> SimpleNamespace:
    return SimpleNamespace(sampling_params=params(settings))


def test_a_step_s_rows_have_their_slots_settings() -> None:
    settings = BatchSettings([0.5])
    state = model_state(settings)
    for slot, own in ((4, ONE), (0, None), (7, SCORED)):
        state.add_request(slot, new_request(own))
    assert state.prepare_inputs(batch([7, 4, 0], [1, 1, 1]), None) == {}
    assert settings.take(3) == [SCORED, ONE, OWN]
    state.prepare_inputs(batch([0, 7], [1, 1]), None)
    assert settings.take(2) == [OWN, SCORED]
    # A slot is given to another request; one that was never filled (a dummy run's) has the model's own.
    state.add_request(7, new_request(ONE))
    state.prepare_inputs(batch([7, 3], [1, 1]), None)
    assert settings.take(2) == [ONE, OWN]
    state.prepare_inputs(batch([7], [1]), None)
    assert settings.take(5) == [OWN] * 5  # a prompt's log-probs


def test_a_request_has_a_row_more_for_each_draft_token() -> None:
    by_slot = {2: ONE, 5: SCORED}
    rows = settings_of_rows(by_slot, np.array([5, 1, 2]), np.array([0, 3, 4, 6]))
    assert rows == [SCORED, SCORED, SCORED, None, ONE, ONE]
    assert settings_of_rows(by_slot, np.array([], dtype=int), np.array([0])) == []


def test_only_scored_requests_have_their_logits_changed() -> None:
    settings = BatchSettings([0.5])
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context={CONTEXT_NAME: settings})
    )
    processor = RowSettingsProcessorV2(config, None)
    assert [processor.add_request(i, params(own)) for i, own in enumerate((None, ONE, SCORED))] == [
        False,
        False,
        True,
    ]
    settings.keep_for_sampling(torch.tensor([1]), torch.tensor([[7.0, 8.0]]))
    assert processor.apply(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), None).tolist() == [[1.0, 2.0], [7.0, 8.0]]
    assert processor.apply(torch.tensor([[1.0, 2.0]]), None).tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="ivg"):
        RowSettingsProcessorV2.validate_params(SamplingParams(extra_args={"ivg": 3}))


def sources() -> list[object]:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    pinned = os.environ.get("IVG_VLLM_SOURCE")
    why = "IVG_VLLM_SOURCE is not set: the pinned CUDA build was NOT compared; run: make test-vllm-source"
    skip = pytest.mark.skipif(pinned is None, reason=why)
    return [
        pytest.param(Path(spec.origin).parent, id="installed"),
        pytest.param(Path(pinned or "."), id="pinned CUDA build", marks=skip),
    ]


STATES, SAMPLE = "v1/worker/gpu/model_states/", "v1/worker/gpu/sample/"
# Functions that we override, with all their arguments; and what we give or read of others.
OVERRIDDEN = {
    (STATES + "interface.py", "ModelState.__init__"): ["vllm_config", "model", "encoder_cache", "device"],
    (STATES + "default.py", "DefaultModelState.__init__"): [
        "vllm_config",
        "model",
        "encoder_cache",
        "device",
    ],
    (STATES + "default.py", "DefaultModelState.add_request"): ["req_index", "new_req_data"],
    (STATES + "default.py", "DefaultModelState.prepare_inputs"): ["input_batch", "req_states"],
    (SAMPLE + "logits_processor/interface.py", "LogitsProcessor.__init__"): ["vllm_config", "req_states"],
    (SAMPLE + "logits_processor/interface.py", "LogitsProcessor.validate_params"): ["sampling_params"],
    (SAMPLE + "logits_processor/interface.py", "LogitsProcessor.add_request"): ["req_idx", "sampling_params"],
    (SAMPLE + "logits_processor/interface.py", "LogitsProcessor.apply"): ["logits", "ctx"],
    ("model_executor/models/config.py", "VerifyAndUpdateConfig.verify_and_update_config"): ["vllm_config"],
}
READ = {
    ("v1/worker/gpu/input_batch.py", "InputBatch"): {"idx_mapping_np", "cu_num_logits_np"},
    ("v1/core/sched/output.py", "NewRequestData"): {"sampling_params"},
    ("config/compilation.py", "CompilationConfig"): {"static_forward_context"},
    ("config/model.py", "ModelConfig"): {"logits_processors", "logprobs_mode", "hf_overrides"},
    ("sampling_params.py", "SamplingParams"): {
        "logprob_token_ids",
        "extra_args",
        "ignore_eos",
        "output_kind",
    },
    ("model_executor/model_loader/default_loader.py", "DefaultModelLoader.Source"): {
        "model_or_path",
        "revision",
        "prefix",
    },
    ("model_executor/model_loader/utils.py", "initialize_model"): {"vllm_config", "prefix"},
    ("v1/engine/llm_engine.py", "LLMEngine.__init__"): {"vllm_config", "executor_class", "log_stats"},
    ("v1/engine/llm_engine.py", "LLMEngine.add_request"): {"request_id", "prompt", "params"},
}


@pytest.mark.parametrize("folder", sources())
def test_vllm_s_source_is_what_this_was_written_by(folder: Path) -> None:
    for (file, name), expected in OVERRIDDEN.items():
        assert names_in(folder, file, name) == expected, name
    for (file, name), needed in READ.items():
        assert needed <= set(names_in(folder, file, name)), name
    calls = calls_in(folder, STATES + "__init__.py", "resolve_model_state_cls")
    assert "model.get_model_state_cls" in calls
    runner = "v1/worker/gpu/model_runner.py"
    assert "self.model_state.add_request" in calls_in(folder, runner, "GPUModelRunner.add_requests")
    assert "self.model_state.prepare_inputs" in calls_in(folder, runner, "GPUModelRunner.execute_model")
    # Logits are asked for where tokens are sampled, after the forward pass, and processed after that.
    sampling = calls_in(folder, runner, "GPUModelRunner.sample")
    assert sampling.index("self.model.compute_logits") < sampling.index("self.sampler")
    sampler = SAMPLE + "sampler.py"
    assert "processor.apply" in calls_in(folder, sampler, "Sampler.apply_sampling_params")
    # What is reported is read from the logits as they came, or from their processed copy where that is asked.
    told = calls_in(folder, sampler, "Sampler.__call__")
    assert told.index("self.sample") < told.index("compute_topk_scores")


@pytest.mark.slow
def test_it_decodes_as_lockstep_does_by_triton_s_interpreter(tmp_path: Path) -> None:
    """On a CPU: greedy ids, values, betas of single requests, and samples beside a draft model."""
    pytest.importorskip("triton", reason="Triton is not installed")
    result = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.engines.vllm.interpreted_runner_v2", str(result)]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(result.read_text())
    search, betas = found["search"], found["betas"]
    assert search["equal"] == search["distinct"] == 8
    assert search["worst_value"] < 1e-4
    assert betas["alone"] == betas["drafted"] == betas["lockstep"]
    assert len({tuple(ids) for ids in betas["lockstep"]}) > 3
    assert found["distribution"]["guided"] > MIN_P > found["distribution"]["base"]
