"""One model over the rows of the batch: prefill prompts, feed tokens, keep the cache aligned.

A LoRA pair runs as one model in which each row stands twice, with the adapter and without (`branches`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ivg.engines.lockstep.kv_cache import RowCache, Source
from ivg.errors import UserError
from ivg.models.architectures import has_states
from ivg.models.loading import LoadedModel


@dataclasses.dataclass(slots=True)
class BatchState:
    """What a model remembers of its rows; with branches, a row's branches stand one below the other.

    Attributes:
        cache: keys and values, right-aligned.
        mask: (R, T) which cached columns are real tokens.
        lengths: (R,) real tokens per row, hence each row's next position.
        prompt_lengths: (R,) how many of them are the prompt's.
        last: (R, V) logits or (R, H) hidden states at each row's last fed token.
        finite: (R,) whether every output so far was a number (minus infinity is allowed in logits).
    """

    cache: RowCache
    mask: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    last: Tensor
    finite: Tensor


class Part(NamedTuple):
    """Rows (R',) to take from a state."""

    state: BatchState
    rows: Tensor


class ModelRunner:
    """A model fed side by side with the others; all tensors that a reorder touches are in its `BatchState`.

    Args:
        module: the network called: a causal LM, or the backbone of a value model.
        name: how messages call it.
        has_logits: whether `module` returns logits (causal LM), or hidden states (backbone).
        num_ids: size of the input embedding; a larger id from the base is fed as 0 (it carries no guidance).
        max_length: context length in tokens, or None where the architecture sets none.
        branches: for a LoRA pair, the adapters under which each row runs; rows then come once per branch.

    Attributes:
        rows_grow_alike: whether every row is fed the same number of tokens, and never loses any.
        new_cache: makes the empty cache of new rows.
        has_states: whether some layers keep a state instead of columns: padding would enter it, and no token
            can be taken out of it again.
        tokens_fed: so far, branches counted.
    """

    rows_grow_alike = True

    def __init__(
        self,
        module: PreTrainedModel,
        *,
        name: str,
        has_logits: bool,
        num_ids: int,
        max_length: int | None,
        branches: tuple[str, ...] = (),
    ) -> None:
        self.module = module
        self.name = name
        self.has_logits = has_logits
        self.num_ids = num_ids
        self.max_length = max_length
        self.branches = branches
        network = network_of(module)
        config = None if network is None else network.config
        self.new_cache: Callable[[], RowCache] = functools.partial(RowCache, config=config)
        self.has_states = config is not None and has_states(config)
        self.tokens_fed = 0
        self.device = next(module.parameters()).device

    @property
    def num_matrix_weights(self) -> int:
        """Weights that every fed token is multiplied by: those of linear layers, tied heads included."""
        return sum(
            m.in_features * m.out_features if isinstance(m, nn.Linear) else m.weight.numel()
            for m in self.module.modules()
            if isinstance(m, nn.Linear | Conv1D)
        )

    @property
    def num_branches(self) -> int:
        """How many times each row runs through the module."""
        return max(1, len(self.branches))

    def prefill(self, prompts: Sequence[Sequence[int]]) -> BatchState:
        """Run prompts of any length, one row each.

        Args:
            prompts: token ids, none empty.

        Returns:
            A state whose `last` is the output at each prompt's end.

        Raises:
            UserError: the architecture keeps something else than keys and values, or states that are known.
        """
        if self.has_states and len({len(ids) for ids in prompts}) > 1:
            return self._prefill_by_length(prompts)
        width = max(len(ids) for ids in prompts)
        padded = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts], device=self.device)
        lengths = self.per_branch(torch.tensor([len(ids) for ids in prompts], device=self.device))
        offsets = torch.arange(width, device=self.device) - (width - lengths[:, None])  # (R, T)
        state = BatchState(self.new_cache(), offsets >= 0, lengths, lengths, padded, padded)
        output = self.forward(
            state.cache, self.per_branch(padded), state.mask, offsets.clamp(min=0), num_outputs=1
        )
        state.last = output[:, -1]
        state.finite = self.is_finite(output)
        if {layer.get_seq_length() for layer in state.cache.row_layers} != {width}:
            raise UserError(
                f"{self.name}: its architecture remembers in a way of its own, so its rows cannot be "
                "reordered; use a model with attention, alone or beside linear-attention or state-space "
                "layers"
            )
        self.tokens_fed += sum(map(len, prompts)) * self.num_branches
        return state

    def start(self, num_rows: int) -> BatchState:
        """Return the state of rows that hold nothing yet, to be fed; its `last` is none that was computed."""
        num_rows *= self.num_branches
        nothing = torch.zeros(num_rows, dtype=torch.long, device=self.device)
        mask = torch.ones(num_rows, 0, dtype=torch.bool, device=self.device)
        return BatchState(self.new_cache(), mask, nothing, nothing, nothing, nothing == 0)

    def _prefill_by_length(self, prompts: Sequence[Sequence[int]]) -> BatchState:
        """Run prompts of one length at a time, none padded, and join them in their order."""
        of_length: dict[int, list[int]] = {}
        for row, ids in enumerate(prompts):
            of_length.setdefault(len(ids), []).append(row)
        parts = [
            Part(self.prefill([prompts[row] for row in rows]), torch.arange(len(rows), device=self.device))
            for rows in of_length.values()
        ]
        state = self.rebuild(parts)
        order = torch.tensor([row for rows in of_length.values() for row in rows], device=self.device)
        self.select(state, order.argsort())
        return state

    def feed(self, state: BatchState, ids: Tensor) -> Tensor:
        """Append tokens to every row.

        Args:
            state: advanced in place; its `last` becomes the output at the last token.
            ids: (R, n) token ids, one row for all its branches.

        Returns:
            (R, n, V) logits or (R, n, H) hidden states, R counting branches.
        """
        ids = self.per_branch(ids.to(self.device))
        num_new = ids.shape[1]
        positions = state.lengths[:, None] + torch.arange(num_new, device=self.device)  # (R, n)
        if self.max_length is not None:
            # Only tokens past a row's own limit get here, and the stop checker drops them.
            positions = positions.clamp(max=self.max_length - 1)
        state.mask = torch.cat([state.mask, state.mask.new_ones(len(ids), num_new)], dim=1)
        state.lengths = state.lengths + num_new
        output = self.forward(state.cache, ids, state.mask, positions, num_new)
        state.last = output[:, -1]
        state.finite = state.finite & self.is_finite(output)
        self.tokens_fed += ids.numel()
        return output

    def select(self, state: BatchState, rows: Tensor, drop: int = 0) -> None:
        """Reorder, repeat or drop rows (R',) in place; leave out the first `drop` columns, padding in all."""
        rows = self.branch_rows(rows)
        state.cache.select(rows, drop)
        state.mask, state.lengths = state.mask[rows, drop:], state.lengths[rows]
        state.prompt_lengths = state.prompt_lengths[rows]
        state.last, state.finite = state.last[rows], state.finite[rows]

    def rebuild(self, parts: Sequence[Part]) -> BatchState:
        """Put the parts' rows into one state, without the columns that are padding in all of them.

        The first part's state gives its cache to the new one and cannot be used any more.
        """
        rows = [self.branch_rows(part.rows) for part in parts]
        lengths = torch.cat([part.state.lengths[r] for part, r in zip(parts, rows, strict=True)])
        width = int(lengths.max())
        sources = [
            Source(part.state.cache, r, max(0, part.state.cache.width - width))
            for part, r in zip(parts, rows, strict=True)
        ]
        cache = parts[0].state.cache
        cache.rebuild(sources)
        mask = torch.arange(width, device=self.device) >= width - lengths[:, None]
        prompt_lengths = torch.cat(
            [part.state.prompt_lengths[r] for part, r in zip(parts, rows, strict=True)]
        )
        last = torch.cat([part.state.last[r] for part, r in zip(parts, rows, strict=True)])
        finite = torch.cat([part.state.finite[r] for part, r in zip(parts, rows, strict=True)])
        return BatchState(cache, mask, lengths, prompt_lengths, last, finite)

    def forward(
        self, cache: RowCache, ids: Tensor, mask: Tensor, positions: Tensor, num_outputs: int
    ) -> Tensor:
        """Run the module once.

        Args:
            cache: keys and values of the columns before; the new ones are appended.
            ids: (R, n), R counting branches.
            mask: (R, T) real columns, the new ones included.
            positions: (R, n).
            num_outputs: how many of the last outputs are wanted.

        Returns:
            (R, num_outputs, V) logits or (R, num_outputs, H) hidden states.
        """
        kwargs = cache.forward_arguments
        if self.has_logits:
            kwargs["logits_to_keep"] = num_outputs
        if self.branches:
            kwargs["adapter_names"] = list(self.branches) * (len(ids) // len(self.branches))
        output = self.module(
            input_ids=ids.where(ids < self.num_ids, 0),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **kwargs,
        )
        kept: Tensor = output.logits if self.has_logits else output.last_hidden_state[:, -num_outputs:]
        return kept

    def is_finite(self, output: Tensor, is_real: Tensor | None = None) -> Tensor:
        """Reduce (R, n, ·) outputs to (R,) by a quantity that is NaN or infinite where a number is.

        Args:
            output: logits or hidden states.
            is_real: (R, n) which of them count; default all.
        """
        extreme = (output.amax(dim=-1) if self.has_logits else output.sum(dim=-1)).isfinite()
        return (extreme if is_real is None else extreme | ~is_real).all(dim=-1)

    def per_branch(self, rows: Tensor) -> Tensor:
        """Repeat each row for its branches: (R', ...) to (R' x branches, ...)."""
        return rows.repeat_interleave(self.num_branches, dim=0) if self.branches else rows

    def branch_rows(self, rows: Tensor) -> Tensor:
        """Return where the rows' branches stand: (R',) to (R' x branches,)."""
        rows = rows.to(self.device)
        if not self.branches:
            return rows
        branches = torch.arange(self.num_branches, device=self.device)
        return (rows[:, None] * self.num_branches + branches).flatten()


def network_of(module: nn.Module) -> PreTrainedModel | None:
    """Return the model of transformers that a module is or wraps (an adapter does), if there is one."""
    return next((m for m in module.modules() if isinstance(m, PreTrainedModel)), None)


def runner_of(model: LoadedModel, branches: tuple[str, ...] = ()) -> ModelRunner:
    """Return a fresh runner over a model: logits of a causal LM, hidden states of a value model.

    Args:
        model: the model.
        branches: the adapters under which each row runs; default: the model's own, if it is one of several.
    """
    is_causal = model.info.kind == "causal"
    own = () if model.branch is None else (model.branch,)
    return ModelRunner(
        model.module if is_causal else model.module.get_submodule(model.module.base_model_prefix),
        name=model.info.name,
        has_logits=is_causal,
        num_ids=model.info.num_embeddings,
        max_length=model.info.max_length,
        branches=branches or own,
    )
