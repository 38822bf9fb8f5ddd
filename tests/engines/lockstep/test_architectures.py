"""Today's architectures in lockstep: hybrids with states beside attention, mixed windows, experts.

Kept caches equal recomputation after everything that happens to rows. Models compute in float64, but linear
attention and state-space scans do part of their work in float32 whatever the weights' type: the bound is
wider for those, and two decades below what a bug does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from ivg.config import SamplingConfig, SearchConfig
from ivg.engines.lockstep.model_runner import BatchState, ModelRunner
from ivg.engines.lockstep.state_check import require_exact_states
from ivg.errors import UserError
from ivg.models.architectures import check_rows_can_move
from ivg.run.api import generate
from tests.engines.lockstep import reference, tiny
from tests.engines.lockstep.rows import PROMPTS, Batch, V
from tests.tiny import scale_up

EXACT, EXACT_IN_PARTS, VISIBLE = 1e-9, 1e-4, 1e-2
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
}
WINDOWS = {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
SHARED_KEYS = {
    **WINDOWS,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": V,
    "hidden_size_per_layer_input": 4,
}
# Class of transformers, and what its configuration is given beside the sizes.
HYBRID: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": (
        "Qwen3Next",
        {**DELTA, **EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 16},
    ),
    "qwen3_5": ("Qwen3_5", {**DELTA, "head_dim": 8}),
    "olmo_hybrid": ("OlmoHybrid", DELTA),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **MAMBA,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
            "position_embedding_type": "rope",
        },
    ),
    "falcon_h1": ("FalconH1", {**MAMBA, "mamba_d_ssm": 32, "head_dim": 8}),
    "falcon_h1 with biases": (
        "FalconH1",
        {**MAMBA, "mamba_d_ssm": 32, "head_dim": 8, "mamba_proj_bias": True},
    ),
    "nemotron_h": (
        "NemotronH",
        {
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 4,
        },
    ),
    "bamba": ("Bamba", {**MAMBA, "attn_layer_indices": [1]}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "lfm2 with biases": (
        "Lfm2",
        {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "conv_bias": True},
    ),
}
ATTENTION: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("Gemma3", {**WINDOWS, "query_pre_attn_scalar": 8}),
    "gemma3n": ("Gemma3n", {**SHARED_KEYS, "laurel_rank": 4, "altup_num_inputs": 2}),
    "gemma4": ("Gemma4", {**SHARED_KEYS, "global_head_dim": 8}),
    "gpt_oss": ("GptOss", {**WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 8}),
}
EVERY = {**HYBRID, **ATTENTION}


def _config(name: str) -> PretrainedConfig:
    kind, options = EVERY[name]
    found = f"{kind}TextConfig"
    made = getattr(transformers, found if hasattr(transformers, found) else f"{kind}Config")
    config: PretrainedConfig = made(**{**SIZES, **options})
    return config


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    made = getattr(transformers, f"{EVERY[name][0]}ForCausalLM")(_config(name))
    model = scale_up(made, factor=16.0).double()
    if "num_experts_per_tok" in EVERY[name][1]:
        model.set_experts_implementation("eager")  # the grouped products know no float64
    return model


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=EVERY)
def batch(request: pytest.FixtureRequest) -> Batch:
    model = build(request.param)
    return Batch(model, PROMPTS, plain=model)


@pytest.fixture(params=HYBRID)
def hybrid(request: pytest.FixtureRequest) -> Batch:
    model = build(request.param)
    return Batch(model, PROMPTS, plain=model)


def bound(batch: Batch) -> float:
    return EXACT_IN_PARTS if batch.runner.has_states else EXACT


@pytest.mark.parametrize("name", EVERY)
def test_the_architecture_is_let_in(name: str) -> None:
    check_rows_can_move(_config(name), "base", is_causal=True)


def test_every_step_equals_recomputation(batch: Batch) -> None:
    exact = bound(batch)
    assert batch.state.last.std() >= 0.9
    assert batch.error() < exact  # prompts of three lengths
    fed = batch.feed([1, 2, 3], [4, 5, 6], [7, 8, 9])
    assert batch.error() < exact
    for row, history in enumerate(batch.histories):  # each column of a chunk, not just the last
        alone = batch.plain(input_ids=torch.tensor([history])).logits[0, -3:]
        assert torch.allclose(fed[row], alone, rtol=0, atol=exact)
    batch.select(2, 0, 0, 1, 2)  # reorder and repeat
    assert batch.error() < exact
    batch.feed([1], [2], [3], [4], [5])
    assert batch.error() < exact
    batch.select(3, 1)  # leave
    batch.feed([6, 6], [7, 8])
    assert batch.error() < exact
    batch.join([1, 0, 1], [[3, 3, 4], list(range(3, 24))], [1, 0, 0])  # a longer and a shorter prompt
    batch.feed(*[[i, i + 1] for i in range(6)])
    assert batch.error() < exact
    batch.trim(5, 2)  # the longest leaves, its padding with it
    for token in range(20):  # past the buffers' spare columns
        batch.feed([token], [token + 3])
    assert batch.error() < exact


def _states(state: BatchState) -> Iterator[tuple[dict[int, Any], int]]:
    for layer in state.cache.layers:
        for states in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {})):
            yield from ((states, i) for i in states if states[i] is not None)


def _states_left_behind(batch: Batch) -> None:
    """Columns move, states do not."""
    kept = [states[i].clone() for states, i in _states(batch.state)]
    batch.select(2, 1, 0)
    for (states, i), old in zip(_states(batch.state), kept, strict=True):
        states[i] = old
    batch.feed([1], [2], [3])


def _states_forgotten(batch: Batch) -> None:
    for states, i in _states(batch.state):
        states[i].zero_()
    batch.feed([1], [2], [3])


def _stale_token(batch: Batch) -> None:
    batch.feed([1], [2], [3])
    batch.histories = [[*history[:-1], 4] for history in batch.histories]
    batch.feed([5], [6], [7])


@pytest.mark.parametrize(
    "plant",
    [_states_left_behind, _states_forgotten, _stale_token],
    ids=lambda plant: plant.__name__.strip("_"),
)
def test_a_planted_bug_is_seen(hybrid: Batch, plant: Callable[[Batch], None]) -> None:
    plant(hybrid)
    assert hybrid.error() > VISIBLE


@pytest.mark.parametrize("name", ["falcon_h1 with biases", "lfm2 with biases"])
def test_padding_would_enter_states(name: str) -> None:
    """Why prompts are run one length at a time: a bias turns padding into content."""
    model = build(name)
    batch = Batch(model, PROMPTS, plain=model)
    batch.runner.has_states = False
    batch.state = batch.runner.prefill(PROMPTS)
    assert batch.error() > VISIBLE


def test_a_model_that_fails_the_check_is_refused_by_name() -> None:
    """Jamba's mixer forgets its state where several tokens follow at once."""
    options = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 4}
    torch.manual_seed(0)
    made = transformers.JambaForCausalLM(transformers.JambaConfig(**SIZES, **options, mamba_d_state=8))
    model = scale_up(made, factor=16.0).double()
    model.set_experts_implementation("eager")
    runner = ModelRunner(model, name="base (jamba)", has_logits=True, num_ids=V, max_length=64)
    with pytest.raises(UserError, match=r"base \(jamba\): fed by chunks, .* are off by [\d.]+ standard"):
        require_exact_states(runner)
    model = build("qwen3_5")
    runner = ModelRunner(model, name="base", has_logits=True, num_ids=V, max_length=64)
    require_exact_states(runner)
    assert runner.tokens_fed == 0


SEARCHES = [
    SearchConfig(token_guidance="implicit", chunk_length=4),
    SearchConfig(
        token_guidance="implicit", chunk_guidance="implicit", num_beams=2, num_successors=2, chunk_length=3
    ),
    SearchConfig(chunk_guidance="implicit", num_beams=2, num_successors=2, chunk_length=3),
]


@pytest.mark.parametrize("search", SEARCHES, ids=["token", "both", "chunk"])
def test_a_search_with_hybrids_equals_a_slow_reference(search: SearchConfig) -> None:
    """Stop strings end some responses inside a chunk: the pair then reads those anew."""
    loaded, slow = [], []
    for seed, name in enumerate(("falcon_h1", "qwen3_5", "qwen3_5")):
        kind, _ = HYBRID[name]
        config = _config(name)
        config.vocab_size, config.eos_token_id = tiny.V, tiny.EOS
        made = getattr(transformers, f"{kind}ForCausalLM")(config)
        model = scale_up(made, factor=16.0, seed=seed).double()
        loaded.append(tiny.loaded(model, "base", f"m{seed}"))
        slow.append(reference.Model(model, lambda prompt: prompt))
    sampling = SamplingConfig(max_new_tokens=10, seed=3, stop=("d", "ba"))
    models = tiny.together(loaded[0], (tiny.pair(loaded[1], loaded[2], beta=0.6),))
    pair = reference.Pair(slow[1], slow[2], beta=0.6)
    expected = reference.Reference(slow[0], [pair], [], [tiny.EOS], search, sampling)
    prompts = ["a", "bca", "deadbe", "c d.", "eee"]
    reasons = set()
    for response in generate(prompts, models, search=search, sampling=sampling, max_batch_rows=8):
        beams = expected.respond(response.prompt["prompt"], response.id)
        assert response.token_ids == beams[0].ids
        assert response.finish_reason == beams[0].reason
        if search.chunk_guidance != "none":
            assert response.value == pytest.approx(beams[0].value, abs=EXACT_IN_PARTS)
        reasons.add(response.finish_reason)
    assert "stop" in reasons
