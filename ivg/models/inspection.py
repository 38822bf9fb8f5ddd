"""What can be known of a model without loading its weights: kind, vocabulary, EOS ids, context length."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from ivg.config import ModelConfig
from ivg.errors import UserError, readable, require_module
from ivg.models.architectures import check_rows_can_move
from ivg.models.folders import looks_local, model_name, require_folder
from ivg.models.prompts import resolve_template
from ivg.models.rendering import Renderer, check_format

Kind = Literal["causal", "scalar", "vocabulary", "classifier"]
Role = Literal["base", "tuned", "untuned", "value"]
HEAD_NAMES = ("score", "classifier")  # of value and reward models
PEFT_PREFIX = "base_model.model."  # what PEFT puts before the names of a model's weights
# PEFT's tasks that change what the model under the adapter is.
_TASKS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
_TOKENIZER_FILES = ("*token*", "*vocab*", "*.model")  # without any, GPT-2 gets an empty tokenizer
_NO_LIMIT = 2**31  # tokenizers without a limit of their own say 1e30


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

    def renderer(self) -> Renderer:
        """Return what turns prompts and responses into its ids."""
        return Renderer(self.tokenizer, self.template, self.source.chat_template_kwargs)

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


def readable_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the tokens a model can read, or None: not all rows of position embeddings are for use."""
    shortest = min(tokenizer.model_max_length, context_length(config) or _NO_LIMIT)
    return int(shortest) if shortest < _NO_LIMIT else None


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
        UserError: the folder is no model folder, the model is not of the kind its role needs, or it was
            trained with another template.
    """
    name = model_name(role, source, number)
    require_folder(source.path, name)
    adapter = read_adapter(source.path, name)
    path = source.path if adapter is None else adapter.over
    revision = source.revision if adapter is None else None
    if adapter is not None:
        require_folder(path, name)
    _require_device(source.device, name)
    if source.quantization is not None:
        require_module("bitsandbytes", "quantization", f"{name}: quantization {source.quantization}")
    config = read_config(path, name, revision=revision, trust_remote_code=source.trust_remote_code)
    if adapter is not None and adapter.num_labels is not None:
        config.num_labels = adapter.num_labels
    kind = kind_of(config, role, name, task=None if adapter is None else adapter.task)
    if kind != "classifier":  # some of those read whole texts, and need no cache
        check_rows_can_move(config, name, is_causal=kind == "causal")
    tokenizer = read_tokenizer(
        tokenizer_place(source.path, path),
        name,
        revision=revision,
        trust_remote_code=source.trust_remote_code,
    )
    kwargs = source.chat_template_kwargs
    template = resolve_template(tokenizer, source.template, kwargs)
    check_format(source.path, name, tokenizer, source.template, kwargs)
    return ModelInfo(
        name=name,
        source=source,
        config=config,
        tokenizer=tokenizer,
        template=template,
        kind=kind,
        generation=read_generation(path, name, revision),
        adapter_over=None if adapter is None else adapter.over,
    )


def read_config(
    path: str, name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Read a model's configuration; a head that it does not describe is measured in the checkpoint.

    Args:
        path: folder or Hub name.
        name: how messages call it.
        revision: Hub revision.
        trust_remote_code: run code shipped with the checkpoint; otherwise refuse it, without asking.

    Raises:
        UserError: no model there, or one that cannot be read.
    """
    require_folder(path, name)
    given = {"revision": revision, "trust_remote_code": trust_remote_code}
    with readable(f"{name}: not a model that can be read"):
        said, _ = PretrainedConfig.get_config_dict(path, revision=revision)
        if "auto_map" in said and said.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
            raise UserError(
                f"{name}: ships code of its own, which is not run; "
                "set trust_remote_code: true if you trust it"
            )
        config = AutoConfig.from_pretrained(path, **given)
        is_headed = any(a.endswith("Classification") for a in config.architectures or ())
        if is_headed and "num_labels" not in said and "id2label" not in said:
            # transformers would assume two.
            config.num_labels = _measured_labels(path, revision) or config.num_labels
        num_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(num_layers, int) and num_layers < 1:
        # It would load: no weights are missing where there is no layer.
        raise UserError(f"{name}: its config.json has {num_layers} layers; mend it, or save the model again")
    return config


def read_tokenizer(
    path: str, name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Read a tokenizer.

    Raises:
        UserError: there is none at that path, or it cannot be read.
    """
    folder = Path(path)
    if folder.is_dir() and not any(file for kind in _TOKENIZER_FILES for file in folder.glob(kind)):
        raise UserError(f"{name}: the folder has no tokenizer; save the model's own beside its weights")
    with readable(f"{name}: its tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
        tokenizer("")  # a setting of a wrong type is met only when a text is encoded
        return tokenizer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A PEFT adapter's description.

    Attributes:
        over: the model it was trained over.
        task: PEFT's name for what it does, such as `SEQ_CLS`.
        num_labels: outputs of the head that it brings; None where it brings none.
    """

    over: str
    task: str | None
    num_labels: int | None


def read_adapter(path: str, name: str) -> Adapter | None:
    """Read a PEFT adapter's description; None where the path is no local adapter.

    Raises:
        UserError: it cannot be read, or does not say over which model that is here.
    """
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        return None
    with readable(f"{name}: adapter_config.json is not readable"):
        said = json.loads(file.read_text(encoding="utf-8"))
        over, task = said.get("base_model_name_or_path"), said.get("task_type")
    if not (isinstance(over, str) and over):
        raise UserError(
            f"{name}: base_model_name_or_path in its adapter_config.json is {json.dumps(over)}; "
            "set it to the model that the adapter was trained over"
        )
    if looks_local(over) and not Path(over).exists():
        raise UserError(
            f"{name}: base_model_name_or_path in its adapter_config.json is {over}, which is not here; "
            "set it to where the model that the adapter was trained over lies"
        )
    heads = [shape for key, shape in adapter_weights(path, name).items() if _is_head(key)]
    return Adapter(over=over, task=task, num_labels=heads[0][0] if heads else None)


def adapter_weights(path: str, name: str) -> dict[str, tuple[int, ...]]:
    """Return the names, as in the model under the adapter, and shapes of an adapter's weights.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    with readable(f"{name}: its adapter cannot be loaded"):
        for file in ("adapter_model.safetensors", "adapter_model.bin"):
            if (Path(path) / file).is_file():
                shapes = _shapes(Path(path) / file)
                return {key.removeprefix(PEFT_PREFIX): shape for key, shape in shapes.items()}
    raise UserError(
        f"{name}: its adapter cannot be loaded: no adapter_model.safetensors beside adapter_config.json"
    )


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a weights file."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    tensors: Mapping[str, torch.Tensor] = torch.load(file, map_location="meta", weights_only=True)
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _is_head(key: str) -> bool:
    return key in {f"{head}.weight" for head in HEAD_NAMES}


def _measured_labels(path: str, revision: str | None) -> int | None:
    try:
        with readable(path):
            return _head_rows(path, revision)
    except UserError:  # damaged weights are refused where they are loaded
        return None


def _head_rows(path: str, revision: str | None) -> int | None:
    """Return the number of outputs of a checkpoint's head, or None where it has none under a known name."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index, files = _find(path, f"{name}.index.json", revision), [name]
        if index is not None:
            placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = [file for key, file in placed.items() if _is_head(key)]
        for file in files:
            found = _find(path, file, revision)
            for key, shape in ({} if found is None else _shapes(found)).items():
                if _is_head(key):
                    return shape[0]
    return None


def _find(path: str, file: str, revision: str | None) -> Path | None:
    found = cached_file(path, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def kind_of(config: PretrainedConfig, role: Role, name: str, *, task: str | None = None) -> Kind:
    """Tell a model's kind from its architecture, and refuse what its role cannot use.

    Args:
        config: the model's.
        role: what it is to be used as.
        name: how messages call it.
        task: of an adapter over the model, which decides where it is there (`SEQ_CLS`, `TOKEN_CLS`).

    Raises:
        UserError: naming the architecture found and those expected.
    """
    architectures = list(config.architectures or [])
    if task in _TASKS:
        architectures = [f"adapter for {_TASKS[task]}"]
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


def tokenizer_place(path: str, over: str) -> str:
    """Return where a model's tokenizer lies: beside its weights, or beside the model under an adapter."""
    return path if (Path(path) / "tokenizer_config.json").is_file() else over


def read_generation(path: str, name: str, revision: str | None) -> GenerationConfig | None:
    """Read a model's generation settings; many checkpoints have none.

    Raises:
        UserError: the file is broken.
    """
    file = Path(path) / "generation_config.json"
    with readable(f"{name}: its generation_config.json cannot be read"):
        if file.is_file():
            json.loads(file.read_text(encoding="utf-8"))  # transformers takes a broken file for none
        try:
            return GenerationConfig.from_pretrained(path, revision=revision)
        except OSError:
            return None
