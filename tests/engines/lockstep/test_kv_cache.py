"""Kept caches equal recomputation, after everything that happens to rows; and bugs would show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
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
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ivg.engines.lockstep.cpu import attention
from ivg.engines.lockstep.cpu.library import library
from ivg.engines.lockstep.model_runner import ModelRunner, Part
from ivg.engines.lockstep.shared_prefix import IMPLEMENTATION, Fork, Trunks, attend
from ivg.engines.lockstep.variable_length import drop_last, feed_variable_length
from ivg.errors import UserError
from tests.tiny import scale_up

V = 32
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
PROMPTS = [[1, 2, 3, 9, 8, 7, 3, 2, 4, 11], [5], [13, 2, 2, 30, 17, 21]]


def build(name: str, **options: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return scale_up(BUILDERS[name](**options), factor=16.0).float()


class Batch:
    """A runner's rows beside the tokens that each row should hold."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], *, plain: PreTrainedModel) -> None:
        self.model, self.plain = model, plain
        self.runner = ModelRunner(model, name="model", has_logits=True, num_ids=V, max_length=64)
        self.histories = [list(prompt) for prompt in prompts]
        self.state = self.runner.prefill(prompts)

    def feed(self, *columns: list[int]) -> Tensor:
        """Feed one list of tokens per row; return (R, n, V)."""
        for history, new in zip(self.histories, columns, strict=True):
            history += new
        return self.runner.feed(self.state, torch.tensor(columns))

    def select(self, *rows: int) -> None:
        self.runner.select(self.state, torch.tensor(rows))
        self.histories = [list(self.histories[row]) for row in rows]

    def join(self, kept: list[int], prompts: list[list[int]], repeats: list[int]) -> None:
        fresh = Part(self.runner.prefill(prompts), torch.tensor(repeats))
        self.state = self.runner.rebuild([Part(self.state, torch.tensor(kept)), fresh])
        self.histories = [list(self.histories[r]) for r in kept] + [list(prompts[r]) for r in repeats]

    def fork(self, *parents: int) -> None:
        self.runner.fork(self.state, torch.tensor(parents))
        self.histories = [list(self.histories[row]) for row in parents]

    def merge(self, *rows: int) -> None:
        self.runner.merge(self.state, torch.tensor(rows))
        self.histories = [list(self.histories[row]) for row in rows]

    def trim(self, *rows: int) -> None:
        self.state = self.runner.rebuild([Part(self.state, torch.tensor(rows))])
        self.histories = [list(self.histories[row]) for row in rows]

    def error(self) -> float:
        """How far the rows' last outputs are from those of each whole sequence alone, without a cache."""
        alone = [self.plain(input_ids=torch.tensor([ids])).logits[0, -1] for ids in self.histories]
        return float((self.state.last - torch.stack(alone)).abs().max())


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=[name for name in BUILDERS if name != COPYING])
def batch(request: pytest.FixtureRequest) -> Batch:
    model = build(request.param)
    return Batch(model, PROMPTS, plain=model)


@pytest.fixture(params=["compiled loops", "torch alone"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled loops, and as where they could not be built."""
    if request.param == "torch alone":
        monkeypatch.setattr(attention, "library", lambda: None)
    elif library() is None:
        pytest.skip("the compiled loops are not there")


def test_outputs_are_spread_out(batch: Batch) -> None:
    """Bugs hide behind flat outputs."""
    assert batch.state.last.std() >= 1
    assert max(map(len, PROMPTS)) > WINDOW


def test_every_step_equals_recomputation(batch: Batch, loops: None) -> None:
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


@pytest.mark.parametrize(
    ("parents", "kept"),
    [([0, 0, 1, 1, 2, 2], (0, 1, 3)), ([2, 0, 0, 1, 0], (4, 1, 3))],
    ids=["equal groups", "uneven"],
)
def test_rows_that_share_a_prefix_equal_recomputation(
    loops: None, batch: Batch, parents: list[int], kept: tuple[int, ...]
) -> None:
    assert batch.runner.can_fork
    batch.fork(*parents)
    assert batch.state.cache.is_forked
    assert batch.error() < EXACT
    batch.feed(*[[i] for i in range(len(parents))])
    assert batch.error() < EXACT
    fed = batch.feed(*[[i, i + 3, 4] for i in range(len(parents))])  # several tokens at once
    for row, history in enumerate(batch.histories):
        alone = batch.plain(input_ids=torch.tensor([history])).logits[0, -3:]
        assert torch.allclose(fed[row], alone, rtol=0, atol=EXACT)
    batch.select(*kept)  # of the first prefix two rows are left, of another one, of the third none
    assert batch.state.cache.is_forked
    batch.feed(*[[i + 9] for i in range(3)])
    assert batch.error() < EXACT
    for token in range(20):  # past the rows' own spare columns
        batch.feed([token], [token + 1], [token + 3])
    assert batch.error() < EXACT
    batch.merge(2, 0)
    assert not batch.state.cache.is_forked
    assert batch.state.cache.width == int(batch.state.lengths.max())
    batch.feed([1], [2])
    assert batch.error() < EXACT
    batch.fork(1, 1, 0, 1)  # again, in memory that was put by
    batch.feed([1], [2], [3], [4])
    batch.merge(3, 2)
    batch.join([1, 0], [[3, 3, 4]], [0])
    batch.feed([5], [6], [7])
    assert batch.error() < EXACT


@pytest.mark.parametrize(
    "parents", [[0, 0, 2, 1], [1, 0, 2], [2, 2, 0], [2, 0, 1]], ids=["stay", "swap", "repeat", "rotate"]
)
def test_rows_become_whole_in_the_memory_of_their_prefixes(
    loops: None, batch: Batch, parents: list[int]
) -> None:
    before = {layer.keys.data_ptr() for layer in batch.state.cache.layers}
    batch.fork(*parents)
    batch.feed(*[[i + 4] for i in range(len(parents))])
    batch.merge(*range(3))  # among them the row with the longest prompt, so that no column can go
    assert {layer.keys.data_ptr() for layer in batch.state.cache.layers} == before
    assert batch.error() < EXACT
    batch.feed([1], [2], [3])
    assert batch.error() < EXACT


def test_rows_that_hardly_share_any_more_become_whole(batch: Batch, loops: None) -> None:
    batch.fork(0, 0, 0, 1, 1, 1, 2, 2, 2)
    batch.feed(*[[i] for i in range(9)])
    batch.select(1, 2, 0, 8)  # one group of three, padded to it another of one, and an empty one: 9 for 4
    assert not batch.state.cache.is_forked
    batch.feed([1], [2], [3], [4])
    assert batch.error() < EXACT


def test_a_prefix_is_held_once() -> None:
    model = build("llama")
    batch = Batch(model, PROMPTS, plain=model)
    before = [layer.keys.data_ptr() for layer in batch.state.cache.layers]
    batch.fork(*[0] * 50)
    layers = batch.state.cache.layers
    assert [layer.prefix.keys.data_ptr() for layer in layers] == before
    assert {layer.keys.shape[2] for layer in layers} == {16}  # room for the rows' own columns only


def test_a_model_with_attention_of_its_own_cannot_share_prefixes_unnoticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its layers would see the rows' own columns alone."""

    def own_columns(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    batch = Batch(build("llama"), PROMPTS[1:2], plain=build("llama"))
    assert batch.runner.can_fork
    batch.fork(0, 0)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, IMPLEMENTATION, own_columns)
    with pytest.raises(UserError, match="of its 2 layers 0 use the attention that was set"):
        batch.feed([1], [2])
    assert not ModelRunner(build("llama"), name="model", has_logits=True, num_ids=V, max_length=64).can_fork


@pytest.mark.parametrize("change", ["eager", "latent", "wrong"])
def test_rows_of_models_that_cannot_fork_are_copied(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(COPYING if change == "latent" else "llama")
    if change == "eager":
        model.set_attn_implementation("eager")
    if change == "wrong":
        monkeypatch.setitem(
            ALL_ATTENTION_FUNCTIONS, IMPLEMENTATION, lambda *a, **k: (1.5 * attend(*a, **k)[0], None)
        )
    batch = Batch(model, PROMPTS, plain=model)
    assert not batch.runner.can_fork
    assert batch.runner.tokens_fed == sum(map(len, PROMPTS))  # trying is not counted
    batch.select(0, 0, 2, 1)
    batch.feed([1], [2], [3], [4])
    assert batch.error() < EXACT


def _wrong_parent(batch: Batch) -> None:
    batch.fork(0, 0, 1, 1)
    mixed_up = Fork(torch.tensor([0, 1, 1, 0]), Trunks.apart(3))
    for layer in batch.state.cache.layers:
        layer.prefix = layer.prefix._replace(fork=mixed_up)
    batch.feed([1], [2], [3], [4])


def _too_much_in_common(batch: Batch) -> None:
    """Rows with prompts of their own taken for beams of one."""
    batch.fork(0, 0, 1, 1, 2, 2)
    mixed_up = Fork(torch.tensor([0, 0, 1, 1, 2, 2]), Trunks((0, 0, 0), (batch.state.cache.width,) * 3))
    for layer in batch.state.cache.layers:
        layer.prefix = layer.prefix._replace(fork=mixed_up)
    batch.feed(*[[row] for row in range(6)])


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
    _wrong_parent,
    pytest.param(
        _too_much_in_common,
        marks=pytest.mark.skipif(
            library() is None, reason="torch alone does not read columns once per trunk"
        ),
    ),
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
