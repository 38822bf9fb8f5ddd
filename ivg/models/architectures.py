"""Which architectures can decode in a batch whose rows come, go and change places."""

from __future__ import annotations

import inspect

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    PretrainedConfig,
)

from ivg.errors import UserError

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
# Their attention is told distances by the mask's columns, so they need no positions.
_WITHOUT_POSITIONS = {"bloom", "mpt"}


def check_rows_can_move(config: PretrainedConfig, name: str, *, is_causal: bool) -> None:
    """Refuse an architecture whose state is more than attention keys and values, before it is loaded.

    Args:
        config: the model's.
        name: how messages call it.
        is_causal: a causal LM; else a value model, whose backbone is called.

    Raises:
        UserError: recurrent or convolutional layers, attention to later tokens, or positions that ignore a
            row's padding.
    """
    details = config.get_text_config().to_dict()
    other = sorted(set(details.get("layer_types") or ()) - _ATTENTION)
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if is_causal else MODEL_MAPPING
    model_class = mapping.get(type(config), None)  # None where the checkpoint brings its own code
    if other or (model_class is not None and model_class._is_stateful):
        found = f" ({', '.join(other)} layers)" if other else ""
        raise UserError(
            f"{name}: {config.model_type} does not keep attention keys and values in every layer{found}, so "
            "its rows cannot be reordered; use a model with full or sliding-window attention"
        )
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not details.get("is_decoder")
    if is_encoder or details.get("use_bidirectional_attention") is True:
        raise UserError(
            f"{name}: {config.model_type} reads in both directions, so a prefix's outputs change as it "
            "grows; use a decoder-only model"
        )
    if model_class is None or config.model_type in _WITHOUT_POSITIONS:
        return
    if "position_ids" not in inspect.signature(model_class.forward).parameters:
        raise UserError(
            f"{name}: {config.model_type} takes no position_ids, so prompts of different lengths cannot "
            "share a batch; use a decoder-only model"
        )
