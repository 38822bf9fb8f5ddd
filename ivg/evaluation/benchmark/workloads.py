"""What the speed benchmark decodes: models with random weights, prompts of random ids."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.sequences import Task
from ivg.decoding.shared_ids import SharedIds
from ivg.engines.lockstep.acceleration import Accelerations, accelerate
from ivg.engines.lockstep.batch import LockstepBatch
from ivg.engines.lockstep.guides import PairGuide, VocabularyValueGuide, Weights
from ivg.engines.lockstep.model_runner import ModelRunner

MODEL_NAMES = ("base", "tuned", "untuned", "value")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A transformer's size; what is 0 is for Llama alone, where as many heads have keys as have queries."""

    layers: int
    hidden: int
    heads: int
    intermediate: int = 0
    kv_heads: int = 0

    def num_weights(self, vocab_size: int) -> int:
        """Count a Llama's weights of this size, with an output layer of its own; norms are left out."""
        per_layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        return self.layers * per_layer + 2 * vocab_size * self.hidden


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Models and prompts of one benchmark.

    Attributes:
        prompt_lengths: shortest and longest prompt in tokens.
        new_tokens: tokens returned per prompt; no response ends earlier.
        search: IVG with its W, K and L.
        ties_embeddings: the output layer is the embedding (GPT-2's always is).
    """

    name: str
    architecture: Literal["gpt2", "llama"]
    base: Shape
    guide: Shape
    vocab_size: int
    num_prompts: int
    prompt_lengths: tuple[int, int]
    new_tokens: int
    search: SearchConfig
    temperature: float = 0.7
    ties_embeddings: bool = False

    @property
    def sampling(self) -> SamplingConfig:
        """Sampling settings."""
        return SamplingConfig(max_new_tokens=self.new_tokens, temperature=self.temperature)

    def prompts(self, num_prompts: int | None = None) -> list[tuple[int, ...]]:
        """Return random prompts, the same at every call."""
        generator = np.random.default_rng(0)
        low, high = self.prompt_lengths
        lengths = generator.integers(low, high + 1, num_prompts or self.num_prompts)
        return [tuple(generator.integers(1, self.vocab_size, n).tolist()) for n in lengths]

    def tasks(self, num_prompts: int | None = None) -> list[Task]:
        """Return the prompts as tasks; every model sees the same ids."""
        return [
            Task(
                index=i,
                prompt_id=str(i),
                prompt_ids=dict.fromkeys(MODEL_NAMES, ids),
                max_tokens=self.new_tokens,
            )
            for i, ids in enumerate(self.prompts(num_prompts))
        ]


def _ivg(beams: int, successors: int, length: int) -> SearchConfig:
    return SearchConfig(
        token_guidance="implicit",
        chunk_guidance="explicit",
        num_beams=beams,
        num_successors=successors,
        chunk_length=length,
    )


_SMALL: dict[str, Any] = {
    "architecture": "gpt2",
    "base": Shape(layers=8, hidden=512, heads=8),
    "guide": Shape(layers=4, hidden=256, heads=4),
    "vocab_size": 8192,
}
_LLAMA_7B = Shape(layers=32, hidden=4096, heads=32, intermediate=11008)
_LLAMA_1B = Shape(layers=16, hidden=2048, heads=32, intermediate=8192)
_CHAT: dict[str, Any] = {
    "architecture": "llama",
    "base": _LLAMA_7B,
    "vocab_size": 32000,
    "num_prompts": 32,
    "prompt_lengths": (30, 120),
    "new_tokens": 512,
    "search": _ivg(2, 2, 30),
}
WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            name="short",
            num_prompts=32,
            prompt_lengths=(12, 20),
            new_tokens=50,
            search=_ivg(4, 4, 5),
            **_SMALL,
        ),
        Workload(
            name="long",
            num_prompts=16,
            prompt_lengths=(90, 110),
            new_tokens=300,
            search=_ivg(2, 2, 30),
            **_SMALL,
        ),
        Workload(
            name="smollm2",
            architecture="llama",
            base=Shape(layers=30, hidden=576, heads=9, kv_heads=3, intermediate=1536),
            guide=Shape(layers=6, hidden=256, heads=4, kv_heads=2, intermediate=768),
            vocab_size=49152,
            ties_embeddings=True,
            num_prompts=16,
            prompt_lengths=(90, 110),
            new_tokens=60,
            search=_ivg(2, 2, 20),
        ),
        Workload(name="chat-7b", guide=_LLAMA_7B, **_CHAT),
        Workload(name="chat-1b", guide=_LLAMA_1B, **_CHAT),
    )
}


@dataclasses.dataclass(frozen=True, slots=True)
class BenchmarkModels:
    """Base, pair and value model with random weights."""

    base: PreTrainedModel
    tuned: PreTrainedModel
    untuned: PreTrainedModel
    value: PreTrainedModel


def build_model(workload: Workload, shape: Shape, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Build a causal LM with random weights on a device."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(model_config(workload, shape), dtype=dtype).eval()


def build_models(workload: Workload, dtype: torch.dtype, device: str) -> BenchmarkModels:
    """Build the four models on a device."""
    torch.manual_seed(0)

    def causal(shape: Shape) -> PreTrainedModel:
        return build_model(workload, shape, dtype, device)

    def value(shape: Shape) -> PreTrainedModel:
        config = model_config(workload, shape)
        config.num_labels = workload.vocab_size
        with torch.device(device):
            return AutoModelForTokenClassification.from_config(config, dtype=dtype).eval()

    guide = workload.guide
    return BenchmarkModels(causal(workload.base), causal(guide), causal(guide), value(guide))


def build_rows(
    models: BenchmarkModels, workload: Workload, accelerations: Accelerations | None = None
) -> LockstepBatch:
    """Put the models side by side as `ivg-decode` does for IVG; on a CPU their layers are replaced."""
    vocab_size = workload.vocab_size
    value = models.value
    shared = SharedIds(vocab_size, vocab_size)
    head = value.get_submodule("classifier" if workload.architecture == "gpt2" else "score")
    backbone = value.get_submodule(value.base_model_prefix)
    assert isinstance(head, torch.nn.Linear)
    pair = PairGuide(
        (runner_over(models.tuned, "tuned"), runner_over(models.untuned, "untuned")),
        shared,
        Weights(guides_tokens=True, beta=1.0),
    )
    ranker = VocabularyValueGuide(
        ModelRunner(backbone, name="value", has_logits=False, num_ids=vocab_size, max_length=None),
        head,
        shared,
        Weights(chunk=1.0),
    )
    lockstep = LockstepBatch(runner_over(models.base, "base"), [pair, ranker], workload.sampling)
    accelerate(lockstep.runners, (models.base, models.tuned, models.untuned, value), accelerations)
    return lockstep


def runner_over(model: PreTrainedModel, name: str) -> ModelRunner:
    """Return a runner over a causal LM whose every id is an embedding."""
    size = int(model.config.vocab_size)
    return ModelRunner(model, name=name, has_logits=True, num_ids=size, max_length=None)


def model_config(workload: Workload, shape: Shape) -> PretrainedConfig:
    """Return the configuration of one of a workload's models."""
    context = workload.prompt_lengths[1] + workload.new_tokens + 1
    common = {"vocab_size": workload.vocab_size, "bos_token_id": None, "eos_token_id": None}
    if workload.architecture == "gpt2":
        return AutoConfig.for_model(
            "gpt2",
            n_layer=shape.layers,
            n_embd=shape.hidden,
            n_head=shape.heads,
            n_positions=context,
            **common,
        )
    return AutoConfig.for_model(
        "llama",
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        tie_word_embeddings=workload.ties_embeddings,
        intermediate_size=shape.intermediate,
        max_position_embeddings=context,
        **common,
    )
