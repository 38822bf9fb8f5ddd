"""Checkpoints of the paper's authors become stock classifiers (`ivg-convert-value`).

Those checkpoints hold a GPT-2 or Llama backbone and `score_head.weight` without a bias. Of shape (V, H) it is
a token-reward model, which becomes a token classifier; the stock head has a bias, which is set to zero. Of
shape (1, H) it is a reward model of finished responses, which becomes a sequence classifier.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from ivg.errors import UserError, first_line, readable
from ivg.models.folders import check_conversion
from ivg.models.inspection import read_config, read_tokenizer
from ivg.models.memory import refuse_absurd_size
from ivg.training.value.heads import check_architecture, compact_labels, head_name

_HEAD = "score_head.weight"
_PREFIXES = ("model.", "transformer.")
# Saved by some, computed by all: masks, rotary frequencies, and a language-model head that is not used.
_IGNORED_ENDINGS = (
    ".attn.bias",
    ".attn.masked_bias",
    "rotary_emb.inv_freq",
    "lm_head.weight",
    "score_head.bias",
    # Running statistics of scores, which are applied only where the config says do_normalize.
    "normalizer.mean",
    "normalizer.var",
    "normalizer.count",
)


def convert_value(source: str, destination: str) -> int:
    """Write a token-reward checkpoint as an `AutoModelForTokenClassification` with a vocabulary head.

    A reward model, whose head has one row, becomes an `AutoModelForSequenceClassification`.

    Args:
        source: folder with config.json and the weights (safetensors or .bin, in one file or sharded).
        destination: folder to write; the tokenizer is copied where there is one.

    Returns:
        V, the number of outputs; 1 of a reward model.

    Raises:
        UserError: not such a checkpoint, or the destination holds a model already.
    """
    check_conversion(source, destination)
    folder, target = Path(source), Path(destination)
    config = read_config(source, source)
    check_architecture(config)
    refuse_absurd_size(config, source)
    tokenizer = read_tokenizer(source, source) if (folder / "tokenizer_config.json").is_file() else None
    model = _convert(read_weights(folder), config, source)
    partial = target.with_name(f"{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        compact_labels(partial / "config.json")
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{destination}: cannot be written: {first_line(error)}") from error
    return int(model.config.num_labels)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all weight files of a checkpoint.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    state: dict[str, Tensor] = {}
    for name, read in (("model.safetensors", load_file), ("pytorch_model.bin", _read_bin)):
        for file in _weight_files(folder, name):
            with readable(f"{folder}: {file.name} cannot be read"):
                state.update(read(file))
        if state:
            return state
    raise UserError(f"{folder}: no model.safetensors or pytorch_model.bin there, nor their index files")


def _weight_files(folder: Path, name: str) -> list[Path]:
    """Return the files that hold a checkpoint's weights: one, or those that its index names."""
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return []
    with readable(f"{folder}: {index.name} cannot be read"):
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [folder / file for file in sorted(set(placed.values()))]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise UserError(f"{folder}: {index.name} names {file.name}, which is no file there")
    return files


def _read_bin(file: Path) -> dict[str, Tensor]:
    state = torch.load(file, map_location="cpu", weights_only=True)
    is_state = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in state.items()
    )
    if not is_state:
        raise UserError(f"{file}: holds no weights by name; give a file saved by save_pretrained")
    return dict(state)


def _convert(state: dict[str, Tensor], config: PretrainedConfig, source: str) -> PreTrainedModel:
    """Make the stock model of a checkpoint's weights."""
    if _HEAD not in state:
        raise UserError(
            f"{source}: has no {_HEAD}; expected a token-reward checkpoint with a vocabulary head"
        )
    if bool(state.get("score_head.bias", torch.zeros(1)).count_nonzero()):
        raise UserError(f"{source}: score_head has a bias; expected the authors' head, which has none")
    head = state.pop(_HEAD)
    if (
        head.dim() != 2
        or head.shape[1] != config.hidden_size
        or not len(head)
        or not head.is_floating_point()
    ):
        raise UserError(f"{source}: {_HEAD} is {tuple(head.shape)}; expected (V, {config.hidden_size})")
    is_reward = len(head) == 1
    if is_reward and getattr(config, "do_normalize", False):
        raise UserError(f"{source}: normalises its scores (do_normalize), which no stock class does")
    kind = AutoModelForSequenceClassification if is_reward else AutoModelForTokenClassification
    config.num_labels = len(head)
    with readable(f"{source}: no {config.model_type} can be made of its config"), torch.device("meta"):
        model = kind.from_config(config, dtype=head.dtype, trust_remote_code=False)
    prefix, name = f"{model.base_model_prefix}.", head_name(model)
    renamed = {
        prefix + _bare(key): tensor for key, tensor in state.items() if not key.endswith(_IGNORED_ENDINGS)
    }
    renamed |= {f"{name}.weight": head}
    if model.get_submodule(name).bias is not None:
        renamed |= {f"{name}.bias": head.new_zeros(len(head))}
    wanted = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    found = {key: tuple(tensor.shape) for key, tensor in renamed.items()}
    wrong = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        shapes = f" ({found.get(key, 'absent')} instead of {wanted.get(key, 'nothing')})"
        raise UserError(
            f"{source}: {len(wrong)} weights do not fit a {config.model_type} token classifier, "
            f"such as {key}{shapes}; expected a plain GPT-2 or Llama backbone with {_HEAD}"
        )
    model = kind.from_config(config, dtype=head.dtype, trust_remote_code=False)
    model.load_state_dict(renamed, strict=False)
    return model


def _bare(key: str) -> str:
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return _bare(key.removeprefix(prefix))
    return key
