"""What can be known of a model without loading its weights: kind, vocabulary, EOS ids, context length."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from ivg.config import ModelConfig
from ivg.errors import UserError, readable, require_module
from ivg.models.architectures import check_rows_can_move
from ivg.models.folders import model_name, require_folder
from ivg.models.prompts import resolve_template

Kind = Literal["causal", "scalar", "vocabulary", "classifier"]
Role = Literal["base", "tuned", "untuned", "value"]
_TOKENIZER_FILES = ("*token*", "*vocab*", "*.model")  # without any, GPT-2 gets an empty tokenizer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model's description.

    Attributes:
        name: how messages call it, such as `value 1 (runs/value)`.
        source: where it comes from and how to load it.
        config: the architecture's configuration.
        tokenizer: its own.
        template: `chat` or a format string with `{prompt}`.
        kind: causal LM, scalar head, vocabulary head, or sequence classifier.
        generation: its generation config, if it has one.
        adapter_over: base model of a PEFT adapter, else None.
    """

    name: str
    source: ModelConfig
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    template: str
    kind: Kind
    generation: GenerationConfig | None = None
    adapter_over: str | None = None

    @property
    def num_token_ids(self) -> int:
        """Ids that the tokenizer names: its largest id + 1."""
        ids: dict[str, int] = self.tokenizer.get_vocab()
        return max(ids.values()) + 1

    @property
    def num_embeddings(self) -> int:
        """Rows of the input embedding (padded tails included)."""
        size: int = self.config.get_text_config().vocab_size
        return size

    @property
    def num_outputs(self) -> int:
        """V of a causal LM's or vocabulary head's output."""
        return int(self.config.num_labels) if self.kind == "vocabulary" else self.num_embeddings

    @property
    def max_length(self) -> int | None:
        """Context length in tokens, or None where the architecture sets none."""
        return context_length(self.config)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a response: the generation config's, else the model's, else the tokenizer's.

        Raises:
            UserError: what stands there is no id.
        """
        for found in (
            self.generation.eos_token_id if self.generation is not None else None,
            self.config.get_text_config().to_dict().get("eos_token_id"),
            self.tokenizer.eos_token_id,
        ):
            if found is not None:
                ids = tuple(found) if isinstance(found, list | tuple) else (found,)
                if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                    raise UserError(
                        f"{self.name}: eos_token_id is {found!r:.60}; give a token id or a list of them in "
                        "its generation_config.json or config.json"
                    )
                return ids
        return ()


def context_length(config: PretrainedConfig) -> int | None:
    """Return an architecture's context length in tokens, or None where it sets none."""
    text = config.get_text_config()
    fields = text.to_dict()
    # Older architectures keep it under another name (GPT-2: n_positions).
    name = text.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    lengths = [fields.get(name), longrope_length(config)]
    return min((int(length) for length in lengths if length), default=None)


def longrope_length(config: PretrainedConfig) -> int | None:
    """Return up to which length a model with longrope positions can be used, or None for any other model.

    Once the longest row of a batch passes the original context, transformers turns the positions of all its
    rows another way, and keys that are cached already stay as they were. Up to there a row is exact.
    """
    parameters = config.get_text_config().to_dict().get("rope_parameters") or {}
    # One set of parameters, or one for each type of layer.
    sets = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    lengths = [p.get("original_max_position_embeddings") for p in sets if p.get("rope_type") == "longrope"]
    return min((int(length) for length in lengths if length), default=None)


def inspect_model(source: ModelConfig, role: Role, *, number: int | None = None) -> ModelInfo:
    """Read a model's configuration and tokenizer, not its weights.

    Args:
        source: where it is.
        role: what it is to be used as.
        number: which of several of its role, for messages.

    Raises:
        UserError: the folder is no model folder, or the model is not of the kind its role needs.
    """
    name = model_name(role, source, number)
    require_folder(source.path, name)
    kwargs = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    adapter_over = _adapter_base(source, name) if Path(source.path).exists() else None
    path = adapter_over or source.path
    if adapter_over is not None:
        kwargs.pop("revision")
    if adapter_over is not None:
        require_folder(path, name)
    _require_device(source.device, name)
    if source.quantization is not None:
        require_module("bitsandbytes", "quantization", f"{name}: quantization {source.quantization}")
    with readable(f"{name}: not a model that can be read"):
        config = AutoConfig.from_pretrained(path, **kwargs)
    kind = kind_of(config, role, name)
    if kind != "classifier":  # some of those read whole texts, and need no cache
        check_rows_can_move(config, name, is_causal=kind == "causal")
    return ModelInfo(
        name=name,
        source=source,
        config=config,
        tokenizer=(tokenizer := _read_tokenizer(source, path, name, kwargs)),
        template=resolve_template(tokenizer, source.template),
        kind=kind,
        generation=_read_generation(path, name, kwargs),
        adapter_over=adapter_over,
    )


def kind_of(config: PretrainedConfig, role: Role, name: str) -> Kind:
    """Tell a model's kind from its architecture, and refuse what its role cannot use.

    Raises:
        UserError: naming the architecture found and those expected.
    """
    architectures = list(config.architectures or [])
    is_token = any(a.endswith("ForTokenClassification") for a in architectures)
    is_sequence = any(a.endswith("ForSequenceClassification") for a in architectures)
    found = ", ".join(architectures) or config.model_type
    if role != "value":
        if is_token or is_sequence:
            raise UserError(f"{name}: its architecture is {found}; expected a causal language model")
        return "causal"
    if is_sequence:
        return "classifier"
    if not is_token:
        raise UserError(
            f"{name}: its architecture is {found}; expected a token classifier (value head) "
            "or a sequence classifier (reward model)"
        )
    return "scalar" if config.num_labels == 1 else "vocabulary"


def _require_device(device: str | None, name: str) -> None:
    """A device must be one that this machine has; only the CPU and GPUs of CUDA have been tried."""
    if device is None:
        return
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"{name}: device {device!r} is none; give cpu, cuda or cuda:N") from error
    if found.type == "meta":
        raise UserError(f"{name}: device meta holds no numbers; give cpu, cuda or cuda:N")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{name}: device {device} asked for, but {torch.cuda.device_count()} GPUs are seen")


def _adapter_base(source: ModelConfig, name: str) -> str | None:
    file = Path(source.path) / "adapter_config.json"
    if not file.is_file():
        return None
    with readable(f"{name}: adapter_config.json is not readable"):
        return str(json.loads(file.read_text())["base_model_name_or_path"])


def _read_tokenizer(
    source: ModelConfig, path: str, name: str, kwargs: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """Read the tokenizer beside the weights, or beside the model under an adapter."""
    place = source.path if (Path(source.path) / "tokenizer_config.json").is_file() else path
    folder = Path(place)
    if folder.is_dir() and not any(file for kind in _TOKENIZER_FILES for file in folder.glob(kind)):
        raise UserError(f"{name}: the folder has no tokenizer; save the model's own beside its weights")
    with readable(f"{name}: its tokenizer cannot be read"):
        return AutoTokenizer.from_pretrained(place, **kwargs)


def _read_generation(path: str, name: str, kwargs: dict[str, Any]) -> GenerationConfig | None:
    with readable(f"{name}: its generation_config.json cannot be read"):
        file = Path(path) / "generation_config.json"
        if file.is_file():
            json.loads(file.read_text(encoding="utf-8"))  # transformers takes a broken file for none
        try:
            return GenerationConfig.from_pretrained(path, revision=kwargs.get("revision"))
        except OSError:  # many checkpoints have none
            return None


HEAD_NAMES = ("score", "classifier")  # of value models
