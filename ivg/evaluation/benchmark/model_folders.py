"""A workload's models as folders, for engines that load models themselves; and what a step of each costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from ivg.config import ModelConfig, PairConfig, ValueConfig
from ivg.config.models import Dtype
from ivg.errors import UserError
from ivg.evaluation.benchmark.workloads import Shape, Workload, model_config
from ivg.models.inspection import context_length
from ivg.models.plan import ModelInfos, inspect_models


def save_models(workload: Workload, folder: Path, base: Path | None = None) -> None:
    """Write `base`, `tuned`, `untuned` and `value` (a scalar head) with random weights.

    Args:
        workload: their shapes.
        folder: where to.
        base: a model to be linked as the base; the guides then have its vocabulary.

    Raises:
        UserError: its context is too short, or its vocabulary another one than the workload's.
    """
    tokenizer = _tokenizer(workload.vocab_size)
    torch.manual_seed(0)
    if base is None:
        _save_causal(workload, workload.base, folder / "base", tokenizer)
    else:
        _check_base(workload, base)
        tokenizer = AutoTokenizer.from_pretrained(base)
        (folder / "base").symlink_to(base.resolve(), target_is_directory=True)
    for name in ("tuned", "untuned"):
        _save_causal(workload, workload.guide, folder / name, tokenizer)
    config = model_config(workload, workload.guide)
    config.num_labels = 1
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder / "value")
    tokenizer.save_pretrained(folder / "value")


def inspect_folders(folder: Path, dtype: Dtype) -> ModelInfos:
    """Inspect what `save_models` wrote; no response of its base ever ends before its limit."""

    def source(name: str) -> ModelConfig:
        return ModelConfig(path=str(folder / name), dtype=dtype)

    pair = PairConfig(tuned=source("tuned"), untuned=source("untuned"))
    infos = inspect_models(source("base"), [pair], [ValueConfig(model=source("value"))])
    never = GenerationConfig(eos_token_id=[])
    return dataclasses.replace(infos, base=dataclasses.replace(infos.base, generation=never))


@dataclasses.dataclass(frozen=True, slots=True)
class StepCost:
    """What a step of a model costs: `flops` for each row, `bytes` to be read for the whole batch."""

    flops: float
    bytes: float


def step_cost(config: PretrainedConfig, num_rows: int, columns: float, itemsize: int) -> StepCost:
    """Count what a step must multiply and read: weights, and the keys and values of its rows.

    Args:
        config: of a causal language model.
        num_rows: sequences in the batch.
        columns: tokens of prompt and response so far, on average.
        itemsize: bytes of a number.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = sum(
        module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear | Conv1D)
    )
    text = config.get_text_config()
    fields = text.to_dict()
    head_size = fields.get("head_dim") or text.hidden_size // text.num_attention_heads
    kv_heads = fields.get("num_key_value_heads") or text.num_attention_heads
    attention = 4 * text.num_hidden_layers * columns * text.num_attention_heads * head_size
    cached = 2 * text.num_hidden_layers * columns * kv_heads * head_size
    return StepCost(flops=2.0 * weights + attention, bytes=itemsize * (weights + num_rows * cached))


def cost_ratio(base: StepCost, guides: Sequence[StepCost]) -> StepCost:
    """Return what base and guides cost together, in units of the base."""
    flops = sum(cost.flops for cost in (base, *guides)) / base.flops
    return StepCost(flops=flops, bytes=sum(cost.bytes for cost in (base, *guides)) / base.bytes)


def _check_base(workload: Workload, base: Path) -> None:
    config = AutoConfig.from_pretrained(base)
    size, length = config.get_text_config().vocab_size, context_length(config)
    if size != workload.vocab_size:
        raise UserError(
            f"base {base} has {size} token ids, and the guides of {workload.name} {workload.vocab_size}; "
            "give a base of that vocabulary, or leave --base out"
        )
    needed = workload.prompt_lengths[1] + workload.new_tokens
    if length is not None and length < needed:
        raise UserError(f"base {base} reads {length} tokens, and {workload.name} needs {needed}")


def _save_causal(workload: Workload, shape: Shape, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    AutoModelForCausalLM.from_config(model_config(workload, shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(size: int) -> PreTrainedTokenizerBase:
    """Return a vocabulary of made-up words; the last id is its EOS, as guides that rank must have one."""
    words = {f"<{i}>": i for i in range(size)}
    core = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=f"<{size - 1}>")
