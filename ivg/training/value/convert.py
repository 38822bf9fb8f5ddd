"""`ivg-convert-value`: token-reward checkpoints of the paper's authors become stock token classifiers.

Those checkpoints hold a GPT-2 or Llama backbone and `score_head.weight` of shape (V, H), without a bias; the
stock head has a bias, which is set to zero.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, PretrainedConfig

from ivg.errors import UserError, exit_on_user_error
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
)


def convert_value(source: str, destination: str) -> int:
    """Write a token-reward checkpoint as an `AutoModelForTokenClassification` with a vocabulary head.

    Args:
        source: folder with config.json and the weights (safetensors or .bin, in one file or sharded).
        destination: folder to write; the tokenizer is copied where there is one.

    Returns:
        V, the number of outputs.

    Raises:
        UserError: not such a checkpoint, or the destination holds a model already.
    """
    folder, target = Path(source), Path(destination)
    if not (folder / "config.json").is_file():
        raise UserError(f"{source}: no config.json there; give the folder of a token-reward checkpoint")
    if (target / "config.json").exists():
        raise UserError(f"{destination}: holds a model already; give a new folder")
    state = read_weights(folder)
    if _HEAD not in state:
        raise UserError(
            f"{source}: has no {_HEAD}; expected a token-reward checkpoint with a vocabulary head"
        )
    if bool(state.get("score_head.bias", torch.zeros(1)).count_nonzero()):
        raise UserError(f"{source}: score_head has a bias; expected the authors' head, which has none")
    config = AutoConfig.from_pretrained(folder)
    check_architecture(config)
    num_outputs = _convert(state, config, target, source)
    if (folder / "tokenizer_config.json").is_file():
        AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    compact_labels(target / "config.json")
    return num_outputs


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all weight files of a checkpoint.

    Raises:
        UserError: there are none.
    """
    state: dict[str, Tensor] = {}
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_bin)):
        index = folder / f"{name}.index.json"
        names = [name] if (folder / name).is_file() else []
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        for file in names:
            state.update(read(folder / file))
        if state:
            return state
    raise UserError(f"{folder}: no model.safetensors or pytorch_model.bin there, nor their index files")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    return dict(load_file(file))


def _read_bin(file: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _convert(state: dict[str, Tensor], config: PretrainedConfig, target: Path, source: str) -> int:
    head = state.pop(_HEAD)
    num_outputs, width = head.shape
    if width != config.hidden_size:
        raise UserError(f"{source}: {_HEAD} is {tuple(head.shape)}; expected (V, {config.hidden_size})")
    config.num_labels = num_outputs
    with torch.device("meta"):
        model = AutoModelForTokenClassification.from_config(config, dtype=head.dtype)
    prefix, name = f"{model.base_model_prefix}.", head_name(model)
    renamed = {
        prefix + _bare(key): tensor for key, tensor in state.items() if not key.endswith(_IGNORED_ENDINGS)
    }
    renamed |= {f"{name}.weight": head, f"{name}.bias": head.new_zeros(num_outputs)}
    wanted = {key for key, _ in model.named_parameters()}
    wrong = sorted(wanted.symmetric_difference(renamed))
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights do not fit a {config.model_type} token classifier, "
            f"such as {wrong[0]}; expected a plain GPT-2 or Llama backbone with {_HEAD}"
        )
    model = AutoModelForTokenClassification.from_config(config, dtype=head.dtype)
    model.load_state_dict(renamed, strict=False)
    model.save_pretrained(target)
    return int(num_outputs)


def _bare(key: str) -> str:
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return _bare(key.removeprefix(prefix))
    return key


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Convert a checkpoint from the command line."""
    parser = argparse.ArgumentParser(prog="ivg-convert-value", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="folder of a token-reward checkpoint (score_head.weight)")
    parser.add_argument("destination", help="folder to write")
    given = parser.parse_args(arguments)
    convert_value(given.source, given.destination)


if __name__ == "__main__":
    main()
