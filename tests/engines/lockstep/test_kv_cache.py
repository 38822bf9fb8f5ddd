"""Kept caches equal recomputation, after everything that happens to rows; and bugs would show."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ivg.engines.lockstep.variable_length import drop_last, feed_variable_length
from tests.engines.lockstep.rows import PROMPTS, Batch, V
from tests.tiny import scale_up

EXACT, VISIBLE = 1e-5, 1e-2
WINDOW = 4
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
GROUPED = {**SIZES, "num_key_value_heads": 1}
BUILDERS: dict[str, Callable[..., PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "mistral": lambda window=WINDOW: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=window)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**GROUPED, num_local_experts=4)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=8)),
    "gemma3": lambda window=WINDOW: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **GROUPED,
            head_dim=8,
            sliding_window=window,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=8,
        )
    ),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**GROUPED, pad_token_id=0)),
    "deepseek": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SIZES,
            num_key_value_heads=2,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
        )
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}
SLIDING = ("mistral", "gemma3")
COPYING = "deepseek"  # keeps keys and values compressed until they are attended to


def build(name: str, **options: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return scale_up(BUILDERS[name](**options), factor=16.0).float()


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=[name for name in BUILDERS if name != COPYING])
def batch(request: pytest.FixtureRequest) -> Batch:
    model = build(request.param)
    return Batch(model, PROMPTS, plain=model)


def test_outputs_are_spread_out(batch: Batch) -> None:
    """Bugs hide behind flat outputs."""
    assert batch.state.last.std() >= 1
    assert max(map(len, PROMPTS)) > WINDOW


def test_every_step_equals_recomputation(batch: Batch) -> None:
    assert batch.error() < EXACT  # prefill
    fed = batch.feed([1, 2, 3], [4, 5, 6], [7, 8, 9])
    assert batch.error() < EXACT
    for row, history in enumerate(batch.histories):  # each column of a chunk, not just the last
        alone = batch.plain(input_ids=torch.tensor([history])).logits[0, -3:]
        assert torch.allclose(fed[row], alone, rtol=0, atol=EXACT)
    batch.select(2, 0, 0, 1, 2)  # reorder and repeat
    assert batch.error() < EXACT
    batch.feed([1], [2], [3], [4], [5])
    assert batch.error() < EXACT
    batch.select(3, 1)  # leave: fewer rows than buffers
    batch.feed([6, 6], [7, 8])
    assert batch.error() < EXACT
    batch.join([1, 0, 1], [[3, 3, 4], list(range(2, 24))], [1, 0, 0])  # a longer and a shorter prompt
    batch.feed(*[[i, i + 1] for i in range(6)])
    assert batch.error() < EXACT
    width = batch.state.cache.width
    batch.trim(5, 2)  # the longest leaves, its padding with it
    assert batch.state.cache.width < width
    assert bool(batch.state.mask[int(batch.state.lengths.argmax())].all())
    for token in range(20):  # past the buffers' spare columns
        batch.feed([token], [token + 3])
    assert batch.error() < EXACT


def test_a_trim_to_padded_rows_keeps_the_columns_of_the_longest(batch: Batch) -> None:
    batch.trim(1, 2)
    assert batch.state.cache.width == len(PROMPTS[2])
    batch.feed([1, 2], [3, 4])
    assert batch.error() < EXACT


def test_ragged_rows_equal_recomputation(batch: Batch) -> None:
    """Rows that grow by different numbers of tokens, then lose some."""
    ids = torch.tensor([[1, 2, 3], [4, 0, 0], [0, 0, 0]])
    counts = torch.tensor([3, 1, 0])
    for _ in feed_variable_length(batch.runner, batch.state, ids, counts, columns=2):
        pass
    batch.histories = [[*PROMPTS[0], 1, 2, 3], [*PROMPTS[1], 4], PROMPTS[2]]
    assert batch.error() < EXACT
    drop_last(batch.state, torch.tensor([2, 0, 1]))
    batch.histories = [[*PROMPTS[0], 1], [*PROMPTS[1], 4], PROMPTS[2][:-1]]
    batch.feed([5, 6], [7, 8], [9, 10])
    assert batch.error() < EXACT


def _wrong_row(batch: Batch) -> None:
    batch.state.cache.select(torch.tensor([0, 2, 1]))
    batch.feed([1], [2], [3])


def _stale_token(batch: Batch) -> None:
    batch.feed([1], [2], [3])
    batch.histories = [[*history[:-1], 4] for history in batch.histories]
    batch.feed([5], [6], [7])


def _padding_attended(batch: Batch) -> None:
    batch.state.mask = torch.ones_like(batch.state.mask)
    batch.feed([1], [2], [3])


def _position_off_by_one(batch: Batch) -> None:
    batch.state.lengths = batch.state.lengths + 1
    batch.feed([1], [2], [3])


def _joined_without_alignment(batch: Batch) -> None:
    """Columns shifted by one against their mask."""
    batch.join([0, 1], [PROMPTS[2]], [0])
    width = batch.state.cache.width
    for layer in batch.state.cache.layers:
        for used in (layer.keys[:, :, :width], layer.values[:, :, :width]):
            used.copy_(used.roll(1, dims=2))
    batch.feed([1], [2], [3])


PLANTED = [
    _wrong_row,
    _stale_token,
    _padding_attended,
    _position_off_by_one,
    _joined_without_alignment,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_bug_is_seen(batch: Batch, plant: Callable[[Batch], None]) -> None:
    plant(batch)
    assert batch.error() > VISIBLE


@pytest.mark.parametrize("name", SLIDING)
def test_an_ignored_window_is_seen(name: str) -> None:
    batch = Batch(build(name, window=1000), PROMPTS, plain=build(name))
    assert batch.error() > VISIBLE
    batch.feed([1], [2], [3])
    assert batch.error() > VISIBLE


def test_a_shift_of_all_positions_is_harmless_where_they_are_relative() -> None:
    """Why 'off by one' above must count from where the prompt stands: rotary models see differences only."""
    model = build("llama")
    ids = torch.tensor([PROMPTS[0]])
    shifted = model(input_ids=ids, position_ids=torch.arange(3, 3 + ids.shape[1])[None]).logits
    assert torch.allclose(shifted, model(input_ids=ids).logits, rtol=0, atol=EXACT)
