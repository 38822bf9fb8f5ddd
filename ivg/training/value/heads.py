"""Value heads on stock token-classification classes, evaluated without a (rows, time, vocabulary) tensor.

A scalar head gives V(x, y≤t) from the hidden state at t. A vocabulary head gives Q(x, y<t)[y_t], the value
after token y_t, from the hidden state *before* y_t: of its (H, V) weight only the columns of the tokens that
were really there are needed, so they are gathered instead of computing all V scores.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from ivg.errors import UserError
from ivg.models.inspection import HEAD_NAMES
from ivg.training.value.losses import expected_values

# From a slice of positions to a policy's next-token logits there (n, V).
NextLogits = Callable[[slice], Tensor]
HeadKind = Literal["scalar", "vocabulary"]
# Positions whose values and probabilities of all next tokens are held at once.
_PIECE = 128


class ColumnLinear(nn.Linear):
    """A linear layer that can compute one chosen output per input, or an average, instead of all outputs."""

    def forward(
        self, hidden: Tensor, columns: Tensor | None = None, next_logits: NextLogits | None = None
    ) -> Tensor:
        """Apply the layer.

        Args:
            hidden: (N, H), or any leading shape where all outputs are wanted.
            columns: the output wanted for each input (N,).
            next_logits: a policy's logits for each input, by which all outputs are averaged.

        Returns:
            (N,) in float32 with columns or next_logits (without gradient), else (..., out_features).
        """
        if next_logits is not None:
            return self._expected(hidden, next_logits)
        if columns is None:
            return super().forward(hidden)
        weight = nn.functional.embedding(columns, self.weight)  # (N, H)
        outputs = (hidden.float() * weight.float()).sum(-1)  # (N,)
        return outputs + self.bias.float()[columns] if self.bias is not None else outputs

    @torch.no_grad()
    def _expected(self, hidden: Tensor, next_logits: NextLogits) -> Tensor:
        # One call of the layer whatever N is: under ZeRO-3 every call gathers its weight on all processes.
        expected = hidden.new_zeros(len(hidden), dtype=torch.float32)  # (N,)
        for start in range(0, len(hidden), _PIECE):
            part = slice(start, start + _PIECE)
            expected[part] = expected_values(super().forward(hidden[part]), next_logits(part))
        return expected


def head_name(model: nn.Module) -> str:
    """Return the name of the model's head module.

    Raises:
        UserError: the class has no head under a known name.
    """
    names = [name for name, _ in model.named_children() if name in HEAD_NAMES]
    if len(names) != 1:
        raise UserError(
            f"{type(model).__name__} has no token-classification head named {' or '.join(HEAD_NAMES)}; "
            "give an architecture that transformers has a token classifier for"
        )
    return names[0]


def prefix_values(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    mask: Tensor,
    next_logits: NextLogits | None = None,
) -> dict[str, Tensor]:
    """Return the value of every response prefix.

    Args:
        model: a token classifier made ready by `prepare_value_model`, bare (not wrapped).
        input_ids: prompt and response, padded on the right (R, T).
        attention_mask: (R, T).
        mask: response positions (R, T); never the first column.
        next_logits: a policy's logits of the token after each response position, for a vocabulary head.

    Returns:
        `values` (R, T) in float32: at position t the value of the prefix ending with token t, 0 outside the
        mask; with next_logits also `next_values` (R, T): there the expected value after one more token.
    """
    outputs = model.base_model(input_ids=input_ids, attention_mask=attention_mask)
    hidden = model.dropout(outputs.last_hidden_state)  # (R, T, H)
    head = model.get_submodule(head_name(model))
    if model.config.num_labels == 1:
        values: Tensor = head(hidden[mask]).float().squeeze(-1)  # (N,)
    else:
        before = mask.roll(-1, dims=1)  # the positions whose next token is in the response
        values = head(hidden[before], input_ids[mask])  # (N,)
    found = {"values": values}
    if next_logits is not None:
        found["next_values"] = head(hidden[mask], next_logits=next_logits)
    empty = values.new_zeros(mask.shape)
    return {name: empty.masked_scatter(mask, flat) for name, flat in found.items()}  # (R, T)


def _forward(
    self: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    next_logits: NextLogits | None = None,
    **_: Any,
) -> dict[str, Tensor]:
    return prefix_values(self, input_ids, attention_mask, labels != -100, next_logits)


def prepare_value_model(model: PreTrainedModel) -> None:
    """Make a stock token classifier return prefix values from `forward(input_ids, attention_mask, labels)`.

    The class, the parameters and their names stay as they are, so that DDP, DeepSpeed and PEFT, which act
    in `forward`, and `save_pretrained` work unchanged. Done in place, before any wrapping.
    """
    head = model.get_submodule(head_name(model))
    if not isinstance(head, nn.Linear):
        raise UserError(f"the head of {type(model).__name__} is a {type(head).__name__}; expected nn.Linear")
    head.__class__ = ColumnLinear
    model.forward = types.MethodType(_forward, model)


def check_architecture(config: PretrainedConfig) -> None:
    """Refuse an architecture that transformers has no token classifier for."""
    if config.model_type not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(
            f"{config.model_type} has no token classifier in transformers; "
            "train the value model from another architecture, such as gpt2, llama, mistral or qwen3"
        )


def fold_normalisation(
    state: Mapping[str, Tensor], name: str, *, mean: float, std: float
) -> dict[str, Tensor]:
    """Return a state dict whose head gives the reward's own unit: W·std, b·std + mean.

    Args:
        state: a model's state dict; only the head's tensors are copied.
        name: the head's module name.
        mean: the rewards' mean, subtracted in training.
        std: the rewards' standard deviation, divided by in training.
    """
    folded = dict(state)
    for key, tensor in state.items():
        # PEFT keeps the trained head under <name>.modules_to_save.<adapter>.
        if name not in key.split("."):
            continue
        exact = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if key.endswith(".weight"):
            folded[key] = (exact * std).to(tensor.dtype)
        elif key.endswith(".bias"):
            folded[key] = (exact * std + mean).to(tensor.dtype)
    return folded


def compact_labels(path: Path) -> None:
    """Replace the made-up label names of a saved config by their number, which loads the same.

    transformers writes one name per output, for a vocabulary head tens of thousands.

    Args:
        path: a saved model's `config.json`; an adapter's folder has none, and nothing is done.
    """
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    labels = config.pop("id2label", None)
    if labels is not None:
        config.pop("label2id", None)
        config["num_labels"] = len(labels)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
