"""The method by its definition, slowly: one prompt, one row, no cache, every prefix from scratch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.draws import Draws
from tests.engines.lockstep.tiny import EOS, TOKENS

Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network and how it words a prompt; forward passes are remembered by whole prefix."""

    module: PreTrainedModel
    template: Callable[[str], str]
    known: dict[Ids, np.ndarray] = dataclasses.field(default_factory=dict)

    def outputs(self, prompt: str, response: Ids) -> np.ndarray:
        """Return (T, ·) outputs from the prompt's last token on: T = len(response) + 1."""
        start = [TOKENS.index(letter) if letter in TOKENS else EOS for letter in self.template(prompt)]
        ids = (*start, *response)
        if ids not in self.known:
            with torch.inference_mode():
                self.known[ids] = self.module(input_ids=torch.tensor([ids])).logits[0].numpy()
        return self.known[ids][len(start) - 1 :]


@dataclasses.dataclass(frozen=True)
class Pair:
    tuned: Model
    untuned: Model
    beta: float = 1.0
    chunk_weight: float | None = None
    average: bool = False

    def log_ratios(self, prompt: str, response: Ids) -> np.ndarray:
        return log_softmax(self.tuned.outputs(prompt, response)) - log_softmax(
            self.untuned.outputs(prompt, response)
        )

    def chunk_value(self, prompt: str, response: Ids) -> float:
        ratios = self.log_ratios(prompt, response)
        total = sum(ratios[t, token] for t, token in enumerate(response))
        return float(total / len(response) if self.average else total)


@dataclasses.dataclass(frozen=True)
class Value:
    model: Model
    is_scalar: bool
    weight: float | None = None
    beta: float = 1.0

    def chunk_value(self, prompt: str, response: Ids) -> float:
        outputs = self.model.outputs(prompt, response)
        return float(outputs[-1, 0] if self.is_scalar else outputs[-2, response[-1]])


@dataclasses.dataclass(frozen=True)
class Found:
    """A hypothesis; `row` and `was_finished` say where it stood at the last boundary."""

    ids: Ids
    value: float
    reason: str | None
    row: int = 0
    was_finished: bool = False


@dataclasses.dataclass(frozen=True)
class Reference:
    base: Model
    pairs: Sequence[Pair]
    values: Sequence[Value]
    eos: Sequence[int]
    search: SearchConfig
    sampling: SamplingConfig
    gaps: list[float] = dataclasses.field(default_factory=list)  # between the values of candidates

    def text(self, ids: Ids) -> str:
        return "".join(TOKENS[i] for i in ids if i < len(TOKENS))

    def cut(self, ids: Ids) -> str:
        """The text before the earliest stop string."""
        text = self.text(ids)
        return min((text[: text.index(s)] for s in self.sampling.stop if s in text), key=len, default=text)

    def next_token(self, prompt: str, response: Ids, uniform: float) -> int:
        scores = log_softmax(self.base.outputs(prompt, response)[-1])
        if self.search.token_guidance == "implicit":
            for pair in self.pairs:
                scores = scores + pair.beta * pair.log_ratios(prompt, response)[-1]
        if self.search.token_guidance == "explicit":
            for value in self.values:
                scores = scores + value.beta * value.model.outputs(prompt, response)[-1]
        options = self.sampling
        if options.temperature == 0:
            return int(np.argmax(scores))
        probs = np.exp(log_softmax(scores / options.temperature))
        order = np.argsort(-probs, kind="stable")
        if options.top_k:
            probs[order[options.top_k :]] = 0
            probs /= probs.sum()
        if options.top_p < 1:
            mass = 0.0
            for token in order:
                probs[token], mass = (probs[token] if mass < options.top_p else 0), mass + probs[token]
            probs /= probs.sum()
        mass = 0.0
        for token, p in enumerate(probs):
            mass += p
            if p and uniform < mass:
                return token
        return int(np.flatnonzero(probs)[-1])

    def reason(self, ids: Ids) -> str | None:
        if any(stop in self.text(ids) for stop in self.sampling.stop):
            return "stop"
        if ids[-1] in self.eos:
            return "eos"
        return "length" if len(ids) == self.sampling.max_new_tokens else None

    def chunk_value(self, prompt: str, ids: Ids) -> float:
        total = 0.0
        kind = self.search.chunk_guidance
        if kind == "none":
            return total
        for pair in self.pairs:
            weight = pair.chunk_weight if pair.chunk_weight is not None else float(kind == "implicit")
            total += weight * pair.chunk_value(prompt, ids) if weight else 0.0
        for value in self.values:
            weight = value.weight if value.weight is not None else float(kind == "explicit")
            total += weight * value.chunk_value(prompt, ids) if weight else 0.0
        return total

    def grow(self, prompt: str, ids: Ids, uniforms: np.ndarray, row: int) -> Found:
        """Sample one chunk for one row."""
        for _ in range(self.search.chunk_length):
            ids = (*ids, self.next_token(prompt, ids, uniforms[len(ids)]))
            if self.reason(ids) is not None:
                break
        reason = self.reason(ids)
        return Found(ids, self.chunk_value(prompt, self.as_trained(ids, reason)), reason, row)

    def as_trained(self, ids: Ids, reason: str | None) -> Ids:
        """What guides were trained on: without what ended the response, closed by their own EOS."""
        if reason == "eos":
            return (*ids[:-1], EOS)
        if reason != "stop":
            return ids
        text = self.cut(ids)
        whole = [ids[:n] for n in range(len(ids)) if self.text(ids[:n]) == text]
        return (*(whole[-1] if whole else map(TOKENS.index, text)), EOS)

    def respond(self, prompt: str, prompt_id: str, sample: int = 0) -> list[Found]:
        """Return the kept beams of one search, best first."""
        width, successors = self.search.num_beams, self.search.num_successors
        uniforms = Draws(self.sampling.seed, prompt_id, sample + width * successors).next(
            self.sampling.max_new_tokens
        )[sample:]
        beams = [Found((), 0.0, None)]
        while True:
            candidates = []
            for w, beam in enumerate(beams):
                if beam.reason is not None:
                    frozen = dataclasses.replace(beam, row=w * successors, was_finished=True)
                    candidates.append(frozen)
                    continue
                first, count = (w * successors, successors) if beam.ids else (0, width * successors)
                candidates += [
                    self.grow(prompt, beam.ids, uniforms[r], r) for r in range(first, first + count)
                ]
            ranked = sorted(candidates, key=lambda c: (-c.value, c.row))
            self.gaps.extend(a.value - b.value for a, b in itertools.pairwise(ranked) if a.ids != b.ids)
            beams = ranked[:width]
            best_again = beams[0].was_finished or (width == 1 and beams[0].reason is not None)
            ends_early = self.search.early_stopping
            if ends_early is None:
                ends_early = successors >= width
            if all(b.reason is not None for b in beams) or (ends_early and best_again):
                return beams


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
