"""The explicit value function: a linear head on a backbone's hidden states.

A scalar head gives V(x, y<=t) from the state of y_t; a vocabulary head gives Q(x, y<t)[y_t] for every next
token from the state before it. Only the wanted columns are computed, never a (rows, time, vocabulary) tensor.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ivg.decoding.log_ratio import as_float


def scalar_values(hidden: Tensor, head: nn.Linear) -> Tensor:
    """Return V of the prefix that ends at each state.

    Args:
        hidden: (..., H) states of the prefixes' last tokens.
        head: one output.

    Returns:
        (...,) values.
    """
    return as_float(head(hidden)).squeeze(-1)


def vocabulary_values(hidden: Tensor, head: nn.Linear) -> Tensor:
    """Return Q for every next token.

    Args:
        hidden: (R, H) states of the last tokens.
        head: V outputs.

    Returns:
        (R, V) values.
    """
    return as_float(head(hidden))


def chosen_values(hidden: Tensor, head: nn.Linear, ids: Tensor) -> Tensor:
    """Return Q of the token chosen after each state, from that token's row of the head alone.

    Args:
        hidden: (..., H) states before the tokens.
        head: V outputs.
        ids: (...,) the tokens.

    Returns:
        (...,) values.
    """
    weight = functional.embedding(ids, head.weight)  # (..., H)
    values = as_float((hidden * weight).sum(dim=-1))
    return values if head.bias is None else values + as_float(head.bias[ids])
