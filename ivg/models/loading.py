"""From model descriptions to weights in memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from ivg.config import ModelConfig, PairConfig, ValueConfig
from ivg.errors import UserError, readable
from ivg.models.inspection import HEAD_NAMES, Kind, ModelInfo
from ivg.models.plan import ModelInfos, PairInfo, ValueInfo, inspect_models

CLASSES: dict[Kind, Any] = {
    "causal": AutoModelForCausalLM,
    "scalar": AutoModelForTokenClassification,
    "vocabulary": AutoModelForTokenClassification,
    "classifier": AutoModelForSequenceClassification,
}
# Heads are gathered row by row, so they stay as they are.
UNQUANTIZED = ("lm_head", *HEAD_NAMES)
# What PEFT calls a row with the adapter of a shared pair, and one without any.
WITH_ADAPTER, WITHOUT_ADAPTER = "tuned", "__base__"


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its description.

    Attributes:
        is_ours: loaded here and not handed in, so that an engine may replace its layers by faster ones.
    """

    info: ModelInfo
    module: PreTrainedModel
    is_ours: bool = False

    @property
    def head(self) -> nn.Linear:
        """The value head: the linear layer that stands beside the backbone."""
        children = dict(self.module.named_children())
        for name in HEAD_NAMES:
            head = children.get(name)
            if isinstance(head, nn.Linear):
                return head
        raise UserError(f"{self.info.name}: no linear head named {' or '.join(HEAD_NAMES)}")


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedPair:
    """A pair in memory; with a LoRA over `untuned`, both are the one PEFT model."""

    info: PairInfo
    tuned: LoadedModel
    untuned: LoadedModel

    @property
    def is_shared(self) -> bool:
        """Whether one set of weights serves both."""
        return self.tuned.module is self.untuned.module


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedValue:
    """An explicit value in memory."""

    info: ValueInfo
    model: LoadedModel


@dataclasses.dataclass(frozen=True, slots=True)
class Models:
    """The frozen base and its guides, ready to decode."""

    infos: ModelInfos
    base: LoadedModel
    pairs: tuple[LoadedPair, ...] = ()
    values: tuple[LoadedValue, ...] = ()

    @property
    def every(self) -> tuple[LoadedModel, ...]:
        """All of them: the base, tuned and untuned of each pair, then the values."""
        pairs = (model for pair in self.pairs for model in (pair.tuned, pair.untuned))
        return (self.base, *pairs, *(value.model for value in self.values))


def load_models(
    base: str | ModelConfig, *, pairs: Sequence[PairConfig] = (), values: Sequence[ValueConfig] = ()
) -> Models:
    """Load a base and its guides; a model named twice is loaded once.

    Args:
        base: folder, Hub name, or a full configuration.
        pairs: implicit value functions.
        values: explicit value functions.

    Raises:
        UserError: before any weights are loaded, if a model is missing or of the wrong kind.
    """
    config = ModelConfig(path=base) if isinstance(base, str) else base
    return load_inspected(inspect_models(config, pairs, values))


def load_inspected(infos: ModelInfos, base: LoadedModel | None = None) -> Models:
    """Load the weights of models that were inspected, except a base that is in memory already."""
    loaded: dict[ModelConfig, PreTrainedModel] = {}

    def load(info: ModelInfo) -> LoadedModel:
        key = dataclasses.replace(info.source, template=None)
        if key not in loaded:
            loaded[key] = _load_module(info)
        return LoadedModel(info, loaded[key], is_ours=True)

    base = base or load(infos.base)
    pairs = tuple(
        _load_shared_pair(pair) if pair.is_shared else LoadedPair(pair, load(pair.tuned), load(pair.untuned))
        for pair in infos.pairs
    )
    return Models(infos, base, pairs, tuple(LoadedValue(value, load(value.model)) for value in infos.values))


def _load_shared_pair(pair: PairInfo) -> LoadedPair:
    from peft import PeftModel  # takes seconds to import, and only adapters need it

    untuned = _load_module(pair.untuned)
    with readable(f"{pair.tuned.name}: its adapter cannot be loaded"):
        module = PeftModel.from_pretrained(untuned, pair.tuned.source.path, adapter_name=WITH_ADAPTER).eval()
    config = module.peft_config[WITH_ADAPTER]
    if config.modules_to_save or config.peft_type != "LORA" or config.use_dora:
        raise UserError(
            f"{pair.tuned.name}: rows with and without this adapter cannot share a batch (plain LoRA could); "
            "merge the adapter into its base and give that folder"
        )
    tuned, untuned = (LoadedModel(info, module, is_ours=True) for info in (pair.tuned, pair.untuned))
    return LoadedPair(pair, tuned, untuned)


def _load_module(info: ModelInfo) -> PreTrainedModel:
    source = info.source
    kwargs: dict[str, Any] = {
        "dtype": source.dtype if source.dtype == "auto" else getattr(torch, source.dtype),
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
        "attn_implementation": source.attn_implementation,
        "device_map": source.device_map,
        "quantization_config": _quantization(source),
    }
    loader = CLASSES[info.kind]
    path = info.adapter_over or source.path
    if info.adapter_over is not None:
        kwargs.pop("revision")
    given = {k: v for k, v in kwargs.items() if v is not None}
    with readable(f"{info.name}: cannot be loaded"):
        module, report = loader.from_pretrained(path, **given, output_loading_info=True)
        # transformers would go on with random numbers in their place.
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"{info.name}: {len(missing)} weights are missing from its checkpoint, such as {missing[0]}"
            )
        if info.adapter_over is not None:
            from peft import PeftModel  # takes seconds to import, and only adapters need it

            module = PeftModel.from_pretrained(module, source.path).merge_and_unload()
        if source.device_map is None and source.quantization is None:
            module = module.to(source.device or default_device())
    return module.eval().requires_grad_(False)


def default_device() -> str:
    """Return this process's GPU where there is one, else `cpu`."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _quantization(source: ModelConfig) -> BitsAndBytesConfig | None:
    if source.quantization is None:
        return None
    skip = list(UNQUANTIZED)
    if source.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=skip
    )
