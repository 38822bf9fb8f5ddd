"""What the doctor finds: a report on each model, on each kind of guidance, and on the whole run."""

from __future__ import annotations

import dataclasses

from ivg.config import Guidance
from ivg.memory import Needs
from ivg.vocab import VocabMatch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model of a run.

    Attributes:
        name: how messages call it.
        architecture: its class, from its configuration.
        kind: causal LM, scalar head, vocabulary head, or sequence classifier.
        needs: memory.
        shares_weights: its weights are counted with another model's.
        match: how its token-to-id map compares with the base's; None for the base.
        eos_ids: every id that ends its responses.
        eos_tokens: their strings.
        template: `chat` or a format string.
        example: the first prompt as it sees it.
        num_double_bos: prompts that open with two BOS tokens.
        longest_prompt: in its tokens.
        max_length: its context in tokens, or None.
        num_too_long: prompts that leave less than `max_new_tokens` of it.
        refused: prompts that its template refuses, with the reason.
        is_used: whether the run asks it anything; if not, it will not be loaded.
    """

    name: str
    architecture: str
    kind: str
    needs: Needs
    shares_weights: bool
    match: VocabMatch | None
    eos_ids: tuple[int, ...]
    eos_tokens: tuple[str, ...]
    template: str
    example: str
    num_double_bos: int
    longest_prompt: int
    max_length: int | None
    num_too_long: int
    refused: tuple[str, ...]
    is_used: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Possibility:
    """Whether a kind of guidance is possible at a level; if not, or with reservations, why."""

    level: str
    kind: Guidance
    is_possible: bool
    remark: str
    is_asked_for: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The report on a run.

    Attributes:
        models: base first.
        possibilities: the kinds of token and of chunk guidance.
        weight_bytes: weights of all models that are used, shared ones once.
        num_rows: rows that will stand side by side at most.
        cache_bytes: their keys and values at the longest prompt + max_new_tokens, if each row has a whole
            cache of its own; less where the successors of a beam share one (`lockstep/forks.py`).
        num_prompts: prompts read.
        problems: what would make the run fail; empty if it can start.
        warnings: what should be looked at.
    """

    models: tuple[ModelReport, ...]
    possibilities: tuple[Possibility, ...]
    weight_bytes: int
    num_rows: int
    cache_bytes: int
    num_prompts: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
