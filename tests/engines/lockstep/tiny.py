"""Small worlds for the decoder: a tokenizer with longer tokens, models in memory, a logit table."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ivg import ModelConfig, PairConfig, ValueConfig
from ivg.engines.lockstep.kv_cache import RowCache
from ivg.models.inspection import ModelInfo, kind_of
from ivg.models.loading import LoadedModel, LoadedPair, LoadedValue, Models
from ivg.models.plan import ModelInfos, PairInfo, ValueInfo
from ivg.models.prompts import resolve_template
from tests import tiny

TOKENS = ["a", "b", "c", "d", "e", "ab", "bc", "cd", " ", "."]
V = len(TOKENS) + 2
EOS, PAD = V - 2, V - 1


def tokenizer(*, chat: bool = False) -> PreTrainedTokenizerBase:
    """One token per letter of a prompt; responses also hold tokens of two letters."""
    return tiny.tokenizer(TOKENS, chat=chat)


def config(**kwargs: object) -> GPT2Config:
    return tiny.gpt2_config(**{"vocab_size": V, "eos_token_id": EOS, "pad_token_id": PAD, **kwargs})


def causal(seed: int, *, factor: float = 20.0, **kwargs: object) -> GPT2LMHeadModel:
    return tiny.scale_up(GPT2LMHeadModel(config(**kwargs)), factor=factor, seed=seed).double()


def value(seed: int, num_labels: int, **kwargs: object) -> GPT2ForTokenClassification:
    model = GPT2ForTokenClassification(config(num_labels=num_labels, **kwargs))
    model.config.architectures = ["GPT2ForTokenClassification"]
    return tiny.scale_up(model, factor=20.0, seed=seed).double()


def loaded(
    model: PreTrainedModel,
    role: str,
    name: str,
    *,
    template: str | None = None,
    eos: list[int] | None = None,
    tok: PreTrainedTokenizerBase | None = None,
) -> LoadedModel:
    """Describe a model in memory as `load_models` would one from disk."""
    tok = tok or tokenizer(chat=template == "chat")
    info = ModelInfo(
        name=name,
        source=ModelConfig(path=name, template=template),
        config=model.config,
        tokenizer=tok,
        template=resolve_template(tok, template),
        kind=kind_of(model.config, role, name),
        generation=GenerationConfig(eos_token_id=eos) if eos else None,
    )
    return LoadedModel(info, model.requires_grad_(False))


def pair(tuned: LoadedModel, untuned: LoadedModel, **kwargs: object) -> LoadedPair:
    options = PairConfig(tuned=tuned.info.source, untuned=untuned.info.source, **kwargs)
    return LoadedPair(PairInfo(options, tuned.info, untuned.info), tuned, untuned)


def scorer(model: LoadedModel, **kwargs: object) -> LoadedValue:
    return LoadedValue(ValueInfo(ValueConfig(model=model.info.source, **kwargs), model.info), model)


def together(
    base: LoadedModel, pairs: tuple[LoadedPair, ...] = (), values: tuple[LoadedValue, ...] = ()
) -> Models:
    infos = ModelInfos(base.info, tuple(p.info for p in pairs), tuple(v.info for v in values))
    return Models(infos, base, pairs, values)


class Table(nn.Module):
    """Logits that depend on the position and the token before: (positions, V, V). Prompts are one token."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits, requires_grad=False)

    def forward(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: RowCache,
        logits_to_keep: int,
        use_cache: bool,
    ) -> SimpleNamespace:
        # Keys that stand for the tokens, so that the cache is filled as an attention layer fills it.
        keys = input_ids[:, None, :, None].to(self.logits.dtype)
        past_key_values.update(keys, keys, 0)
        positions = position_ids.clamp(max=len(self.logits) - 1)
        return SimpleNamespace(logits=self.logits[positions, input_ids][:, -logits_to_keep:])
