"""From model descriptions to weights in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from ivg.config import ModelConfig, PairConfig, ValueConfig
from ivg.errors import UserError, readable
from ivg.models.attention_masks import use_finite_masks
from ivg.models.inspection import HEAD_NAMES, PEFT_PREFIX, Kind, ModelInfo, adapter_weights
from ivg.models.plan import ModelInfos, PairInfo, ValueInfo, inspect_models

logger = logging.getLogger(__name__)

CLASSES: dict[Kind, Any] = {
    "causal": AutoModelForCausalLM,
    "scalar": AutoModelForTokenClassification,
    "vocabulary": AutoModelForTokenClassification,
    "classifier": AutoModelForSequenceClassification,
}
MAX_LAYERS = 10_000  # making more takes minutes, whatever their width
# Heads are gathered row by row, so they stay as they are.
UNQUANTIZED = ("lm_head", *HEAD_NAMES)
# What PEFT calls a row with the adapter of the first shared pair, and one without any.
WITH_ADAPTER, WITHOUT_ADAPTER = "tuned", "__base__"


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its description.

    Attributes:
        is_ours: loaded here and not handed in, so that an engine may replace its layers by faster ones.
        branch: where LoRAs over it are in the same module, what PEFT calls a row of this model: an adapter's
            name, or `__base__` for none; else None.
    """

    info: ModelInfo
    module: PreTrainedModel
    is_ours: bool = False
    branch: str | None = None

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
    """Load the weights of models that were inspected, except a base that is in memory already.

    Adapters over one model stand over one set of weights, the base's too where they are over the base.
    """
    loaded: dict[str, PreTrainedModel] = {}
    adapted: dict[str, Any] = {}  # models with adapters over them

    def load(info: ModelInfo) -> LoadedModel:
        key = loading_key(info.source)
        if key not in loaded:
            loaded[key] = _load_module(info)
        return LoadedModel(info, loaded[key], is_ours=True)

    pairs = tuple(
        _load_shared_pair(pair, adapted)
        if pair.is_shared
        else LoadedPair(pair, load(pair.tuned), load(pair.untuned))
        for pair in infos.pairs
    )
    if base is None and (key := loading_key(infos.base.source)) in adapted:
        base = LoadedModel(infos.base, adapted[key], is_ours=True, branch=WITHOUT_ADAPTER)
    base = base or load(infos.base)
    return Models(infos, base, pairs, tuple(LoadedValue(value, load(value.model)) for value in infos.values))


def load_model(info: ModelInfo) -> LoadedModel:
    """Load one model by itself."""
    return LoadedModel(info, _load_module(info), is_ours=True)


def load_pair(pair: PairInfo) -> LoadedPair:
    """Load one pair by itself; a LoRA and the model under it share their weights."""
    if pair.is_shared:
        return _load_shared_pair(pair, {})
    return LoadedPair(pair, load_model(pair.tuned), load_model(pair.untuned))


def loading_key(source: ModelConfig) -> str:
    """Return what decides a model's weights: all of its configuration but how it words prompts."""
    return repr(dataclasses.replace(source, template=None, chat_template_kwargs={}))


def _load_shared_pair(pair: PairInfo, adapted: dict[str, Any]) -> LoadedPair:
    """Put a pair's adapter over its untuned model, beside others that are there already.

    Args:
        pair: the pair.
        adapted: by `loading_key`, models with adapters over them; extended in place.
    """
    path, name = pair.tuned.source.path, pair.tuned.name
    brought = adapter_weights(path, name)
    key = loading_key(pair.untuned.source)
    module = adapted.get(key)
    branch = WITH_ADAPTER if module is None else f"{WITH_ADAPTER}{len(module.peft_config) + 1}"
    under = _load_module(pair.untuned) if module is None else module
    module = adapted[key] = _attach_adapter(under, path, brought, name, branch).eval()
    module.requires_grad_(False)
    module.base_model.set_adapter([])  # called without a branch, it is the model under the adapters
    config = module.peft_config[branch]
    if config.modules_to_save or config.peft_type != "LORA" or config.use_dora:
        raise UserError(
            f"{pair.tuned.name}: rows with and without this adapter cannot share a batch (plain LoRA could); "
            "merge the adapter into its base and give that folder"
        )
    tuned = LoadedModel(pair.tuned, module, is_ours=True, branch=branch)
    return LoadedPair(pair, tuned, LoadedModel(pair.untuned, module, is_ours=True, branch=WITHOUT_ADAPTER))


def _load_module(info: ModelInfo) -> PreTrainedModel:
    source = info.source
    kwargs: dict[str, Any] = {
        "dtype": source.dtype if source.dtype == "auto" else getattr(torch, source.dtype),
        "revision": source.revision if info.adapter_over is None else None,
        "attn_implementation": source.attn_implementation,
        "device_map": source.device_map,
        "quantization_config": _quantization(source),
        "num_labels": None if info.kind == "causal" else info.config.num_labels,
    }
    module = load_weights(
        info.kind,
        info.adapter_over or source.path,
        info.name,
        adapter=None if info.adapter_over is None else source.path,
        trust_remote_code=source.trust_remote_code,
        **{key: value for key, value in kwargs.items() if value is not None},
    )
    if source.device_map is None and source.quantization is None:
        with readable(f"{info.name}: cannot be loaded"):
            module = module.to(source.device or default_device())
    logger.info("%s: loaded in %s on %s", info.name, module.dtype, module.device)
    return module.eval().requires_grad_(False)


def load_weights(
    kind: Kind,
    path: str,
    name: str,
    *,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a checkpoint whole: the one place where weights are read to be used.

    transformers puts random numbers where a checkpoint lacks weights; here that is refused.

    Args:
        kind: what it is loaded as.
        path: folder or Hub name.
        name: how messages call it.
        adapter: folder of a PEFT adapter over it, which is merged; it may bring the head.
        trust_remote_code: run code shipped with the checkpoint; otherwise refuse it, without asking.
        kwargs: for `from_pretrained`.

    Raises:
        UserError: damaged, or weights are missing or of another shape than its config says.
    """
    use_finite_masks()
    brought = {} if adapter is None else adapter_weights(adapter, name)
    check_weights(kind, path, name, brought=brought, trust_remote_code=trust_remote_code, **kwargs)
    with readable(f"{name}: cannot be loaded"), quiet():
        module: PreTrainedModel
        module, report = CLASSES[kind].from_pretrained(
            path, trust_remote_code=trust_remote_code, output_loading_info=True, **kwargs
        )
    refuse_missing(report, name, brought)
    return module if adapter is None else merge_adapter(module, adapter, brought, name)


def _refuse_endless(said: Mapping[str, Any], name: str) -> None:
    """Refuse a config of so many layers that making them, even without memory, would take hours."""
    parts = [part for part in (said, said.get("text_config")) if isinstance(part, dict)]
    for part in parts:
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            number = part.get(key)
            if isinstance(number, int) and number > MAX_LAYERS:
                raise UserError(f"{name}: its config.json says {key} {number}; give at most {MAX_LAYERS}")


def check_weights(
    kind: Kind,
    path: str,
    name: str,
    *,
    brought: Collection[str] = (),
    starts_head: bool = False,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> None:
    """Compare a checkpoint with what its config says, without reading its weights.

    Args:
        kind: what it will be loaded as.
        path: folder or Hub name.
        name: how messages call it.
        brought: weights that an adapter over it brings, by name.
        starts_head: whether training starts its head from random numbers.
        trust_remote_code: as in `load_weights`.
        kwargs: for `from_pretrained`; where weights go and how they are quantized does not matter here.

    Raises:
        UserError: damaged, or weights are missing or of another shape.
    """
    with readable(f"{name}: cannot be loaded"):
        said, _ = PretrainedConfig.get_config_dict(path, revision=kwargs.get("revision"))
    _refuse_endless(said, name)
    if said.get("quantization_config") is not None:  # its weights have other names and shapes
        return
    of_place = ("device_map", "quantization_config", "max_memory", "offload_folder", "low_cpu_mem_usage")
    given = {key: value for key, value in kwargs.items() if key not in of_place}
    with readable(f"{name}: cannot be loaded"), quiet():
        _, report = CLASSES[kind].from_pretrained(
            path,
            trust_remote_code=trust_remote_code,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **given,
        )
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        key, found, wanted = mismatched[0]
        raise UserError(
            f"{name}: {len(mismatched)} weights have another shape than its config says, such as {key}: "
            f"{tuple(found)} in the checkpoint, {tuple(wanted)} by config.json; give the config they were "
            "saved with"
        )
    own_start = HEAD_NAMES if starts_head else ()
    started = [key for key in report["missing_keys"] if key.split(".")[0] in own_start]
    refuse_missing(report, name, {*brought, *started})


def refuse_missing(report: Mapping[str, Collection[str]], name: str, expected: Collection[str]) -> None:
    """Refuse a loading report with weights missing that are not expected to be."""
    missing = [key for key in report["missing_keys"] if key not in expected]
    if missing:
        unused = sorted(key for key in report["unexpected_keys"] if "head" in key or "score" in key)
        other = f" (it has {unused[0]}, which no stock class reads)" if unused else ""
        raise UserError(
            f"{name}: {len(missing)} weights are missing from its checkpoint, such as {min(missing)}{other}; "
            "give a checkpoint that holds them"
        )


def merge_adapter(
    module: PreTrainedModel, folder: str, brought: Collection[str], name: str
) -> PreTrainedModel:
    """Merge a PEFT adapter into the model it was trained over, so that it computes what PEFT does.

    An embedding that is also the output layer is untied first where the adapter changes one of them: merged
    into both, it would change what the other computes.

    Args:
        module: the model under the adapter, changed in place.
        folder: the adapter.
        brought: names of the adapter's weights.
        name: how messages call it.

    Raises:
        UserError: it cannot be read, does not fit the model, or lacks weights that its config announces.
    """
    _untie(module, brought)
    with readable(f"{name}: its adapter cannot be merged"):
        merged: PreTrainedModel = _attach_adapter(module, folder, brought, name, "default").merge_and_unload()
    return merged


def _attach_adapter(
    module: PreTrainedModel, folder: str, brought: Collection[str], name: str, adapter_name: str
) -> Any:
    """Put an adapter over a model, as a `PeftModel`, and refuse missing weights, of which PEFT only warns."""
    from peft import PeftModel, get_peft_model_state_dict  # takes seconds; only adapters need it

    with readable(f"{name}: its adapter cannot be loaded"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        if isinstance(module, PeftModel):
            adapted = module
            adapted.load_adapter(folder, adapter_name=adapter_name)
        else:
            adapted = PeftModel.from_pretrained(module, folder, adapter_name=adapter_name)
        keys = get_peft_model_state_dict(adapted, adapter_name=adapter_name)
    wanted = {key.removeprefix(PEFT_PREFIX) for key in keys}
    if missing := sorted(wanted - set(brought)):
        raise UserError(
            f"{name}: {len(missing)} weights are missing from its adapter, such as {missing[0]}; "
            "save the adapter anew"
        )
    return adapted


def _untie(module: PreTrainedModel, changed: Collection[str]) -> None:
    """Give input and output embedding weights of their own if they share one and an adapter changes it."""
    if changes_tied_embedding(module, changed):
        output = module.get_output_embeddings()
        output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)
        module.config.tie_word_embeddings = False
        module.config.get_text_config().tie_word_embeddings = False


def changes_tied_embedding(module: PreTrainedModel, changed: Collection[str]) -> bool:
    """Tell whether an adapter changes an embedding that is also the output layer, or that output layer.

    Args:
        module: the model under the adapter; it may be on the meta device.
        changed: names of the adapter's weights.
    """
    given, output = module.get_input_embeddings(), module.get_output_embeddings()
    if output is None or output.weight is not given.weight:
        return False
    names = [name for name, child in module.named_modules() if child is given or child is output]
    return any(key.startswith(f"{name}.") for key in changed for name in names)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and its report of missing weights off the screen: what is wrong is raised."""
    level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


def default_device() -> str:
    """Return this process's GPU where there is one, else `cpu`."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _quantization(source: ModelConfig) -> BitsAndBytesConfig | None:
    if source.quantization is None:
        return None
    skip = list(UNQUANTIZED)
    if source.quantization == "8bit":
        # It tells of every layer at every token that inputs are cast.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=skip
    )
