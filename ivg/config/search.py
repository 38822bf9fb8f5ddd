"""What is decoded and how: token guidance, the beam search over chunks, sampling."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from ivg.config.checks import is_finite, require, require_choice, require_integer, require_not_negative

Guidance = Literal["none", "implicit", "explicit"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Token guidance, chunk guidance and the beam search over chunks.

    Attributes:
        token_guidance: what is added to the base's next-token log-probabilities.
        chunk_guidance: what ranks the hypotheses at a chunk boundary.
        num_beams: W, beams kept at a boundary.
        num_successors: K, continuations sampled per beam.
        chunk_length: L, in tokens.
        early_stopping: true: end a prompt once a hypothesis finished at an earlier boundary is best again;
            false: once all kept beams are finished. Unset: true where K >= W, else false. With K < W the
            paper's code, which continues a finished hypothesis as K equal rows, goes on while unfinished
            beams have room beside them; true would end there with a lower value.
    """

    token_guidance: Guidance = "none"
    chunk_guidance: Guidance = "none"
    num_beams: int = 1
    num_successors: int = 1
    chunk_length: int = 30
    early_stopping: bool | None = None

    def __post_init__(self) -> None:
        for name in ("token_guidance", "chunk_guidance"):
            require_choice(name, getattr(self, name), get_args(Guidance))
        for name in ("num_beams", "num_successors", "chunk_length"):
            require_integer(name, getattr(self, name), at_least=1)
        require(
            self.chunk_guidance != "none" or self.rows_per_prompt == 1,
            f"chunk_guidance none ranks nothing, but num_beams x num_successors is {self.rows_per_prompt}; "
            "set chunk_guidance, or num_samples for several responses",
        )

    @property
    def rows_per_prompt(self) -> int:
        """W·K, the rows one prompt owns in the batch."""
        return self.num_beams * self.num_successors

    @property
    def ends_when_best_again(self) -> bool:
        """Which rule `early_stopping` chooses."""
        if self.early_stopping is None:
            return self.num_successors >= self.num_beams
        return self.early_stopping


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn from the combined distribution.

    Attributes:
        max_new_tokens: length limit of a response in tokens, EOS included.
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability.
        stop: strings that end a response; they are dropped from its text.
        seed: with the prompt's id, the row and the position, decides every draw.
        num_samples: responses per prompt, drawn independently.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    num_samples: int = 1

    def __post_init__(self) -> None:
        require_integer("max_new_tokens", self.max_new_tokens, at_least=1)
        require_not_negative("temperature", self.temperature, " (0 is greedy)")
        require_integer("top_k", self.top_k, at_least=0, note=" (0 keeps all tokens)")
        is_share = is_finite(self.top_p) and 0 < self.top_p <= 1
        require(is_share, f"top_p is {self.top_p!r}; give a number above 0, at most 1")
        require(not isinstance(self.stop, str), f"stop is one string, {self.stop!r}; give a tuple of strings")
        is_text = all(isinstance(text, str) for text in self.stop)
        require(is_text, f"stop is {self.stop!r:.60}; give a tuple of strings")
        require(all(self.stop), "stop holds an empty string, which would end every response at once")
        require_integer("seed", self.seed)
        require_integer("num_samples", self.num_samples, at_least=1)
        require(
            self.temperature > 0 or self.num_samples == 1,
            f"temperature 0 is greedy: num_samples {self.num_samples} would repeat one response",
        )
