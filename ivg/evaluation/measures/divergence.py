"""Kullback-Leibler divergence from the base, where a method allows it to be known.

Of best-of-N there is a bound. Of token guidance alone it is summed along the sampled responses, once it was
found out how the file was made: from what is stated, and from the record that the run left beside it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ivg.config import ModelConfig, PairConfig, SearchConfig
from ivg.decoding.log_ratio import as_float, log_probs, log_ratio
from ivg.decoding.shared_ids import SharedIds
from ivg.decoding.token_guidance import WeightedScores, guide_logits
from ivg.errors import UserError
from ivg.evaluation.measures.decoded import Decoded
from ivg.evaluation.measures.distance import EncodedResponse, encode_response, response_logits
from ivg.evaluation.measures.statistics import Scores, mean_by_prompt
from ivg.evaluation.reading import read_json
from ivg.models.loading import load_inspected
from ivg.models.plan import Fit, ModelInfos, inspect_models, plan_guides
from ivg.models.vocab import compare
from ivg.run.output_files import manifest_path

T = TypeVar("T")


def best_of_n_bound(n: int) -> float:
    """Return log N - (N - 1) / N, an upper bound in nats on the divergence of best-of-N from its sampler.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"best-of-{n} is not defined; give an integer >= 1")
    return math.log(n) - (n - 1) / n


def search_bound(num_beams: int, num_successors: int, num_chunks: float) -> float:
    """Return log W + n log K, an upper bound in nats on the divergence of chunk search from its sampler.

    A response of n chunks is found only if it is among the candidates. The expected number of candidates
    equal to its first chunk is W·K times the chunk's probability; at every later boundary each copy of a
    prefix that was kept is continued K times, so that the whole is expected at most W·K^n times its
    probability. So the search's probability is nowhere more than W·K^n times the sampler's.

    Args:
        num_beams: W.
        num_successors: K.
        num_chunks: n, or its mean over responses that the search found.

    Raises:
        ValueError: a number below 1.
    """
    if min(num_beams, num_successors, num_chunks) < 1:
        raise ValueError(f"W={num_beams}, K={num_successors}, n={num_chunks}; give numbers >= 1")
    return math.log(num_beams) + num_chunks * math.log(num_successors)


def best_of_bounds(arguments: Sequence[str]) -> dict[str, float]:
    """Return the bound of each file that NAME=N arguments say best-of-N made.

    Raises:
        UserError: an argument of another form.
    """
    bounds = {}
    for argument in arguments:
        name, _, n = argument.partition("=")
        if not re.fullmatch("[1-9][0-9]{0,8}", n):
            raise UserError(f"best_of: got {argument!r}; expected NAME=N, such as best_of_n=16")
        bounds[name] = best_of_n_bound(int(n))
    return bounds


@torch.inference_mode()
def sampled_kl(
    models: Sequence[Any],
    encoded: Sequence[Sequence[EncodedResponse]],
    *,
    beta: float,
    temperature: float,
    num_shared: int | None = None,
    unguided: Sequence[int] = (),
) -> list[float]:
    """Estimate KL(guided || base) in nats for responses that token guidance by a pair sampled.

    Along each sampled response the divergence of every next-token distribution is summed over the whole
    vocabulary, which has the same mean as the log-ratio of the sampled tokens and less noise:

        Σ_t Σ_v p_t(v) [log p_t(v) - log q_t(v)],
        p_t = softmax((base + β (log tuned - log untuned)) / τ),  q_t = softmax(base / τ)

    Args:
        models: base, tuned, untuned.
        encoded: for each of the three, prompts in its own template with the common response ids.
        beta: weight of the pair.
        temperature: τ, above 0; the responses were sampled at it without top-k or top-p.
        num_shared: ids below this are guided; default: those that all three have.
        unguided: ids below it that are not.

    Returns:
        One number per response.
    """
    return [
        float((guided.exp() * (guided - plain)).sum())
        for guided, plain, _ in _next_logps(
            models, encoded, beta=beta, temperature=temperature, num_shared=num_shared, unguided=unguided
        )
    ]


@torch.inference_mode()
def sampled_log_ratio(
    models: Sequence[Any],
    encoded: Sequence[Sequence[EncodedResponse]],
    *,
    beta: float,
    temperature: float,
    num_shared: int | None = None,
    unguided: Sequence[int] = (),
) -> list[float]:
    """Return log p(y) - log q(y) in nats of each response y, guided and unguided as `sampled_kl` has them.

    Averaged over the responses of a search within the guided distribution, and added to `search_bound` (or
    `best_of_n_bound`), it bounds the search's divergence from the base:

        KL(search || base) = KL(search || guided) + E_search[log p - log q]

    Args:
        models: base, tuned, untuned.
        encoded: as `sampled_kl` takes them.
        beta: weight of the pair.
        temperature: above 0.
        num_shared: as `sampled_kl` takes it.
        unguided: likewise.
    """
    found = []
    for guided, plain, ids in _next_logps(
        models, encoded, beta=beta, temperature=temperature, num_shared=num_shared, unguided=unguided
    ):
        chosen = torch.tensor(ids)[:, None]
        found.append(float((guided - plain).gather(1, chosen).sum()))
    return found


def _next_logps(
    models: Sequence[Any],
    encoded: Sequence[Sequence[EncodedResponse]],
    *,
    beta: float,
    temperature: float,
    num_shared: int | None,
    unguided: Sequence[int],
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Yield each response's next-token log-probabilities (T, V), guided and plain, and its ids."""
    for rows in zip(*encoded, strict=True):
        base, tuned, untuned = (
            as_float(response_logits(model, [row])[0]).cpu() for model, row in zip(models, rows, strict=True)
        )  # each (T, V)
        size = num_shared or min(base.shape[1], tuned.shape[1], untuned.shape[1])
        shared = SharedIds(base.shape[1], size, tuple(unguided))
        ratio = shared.widen(log_ratio(tuned[:, :size], untuned[:, :size]))
        guided: Tensor = log_probs(guide_logits(base, [WeightedScores(beta, ratio)]) / temperature)  # (T, V)
        yield guided, log_probs(base / temperature), rows[0].response_ids


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What is said of a run; what is unset is taken from its record, where it has one.

    Attributes:
        base: folder or Hub name.
        tuned: the pair's tuned half.
        untuned: its twin.
        base_template: how the base sees a prompt.
        pair_template: how both halves of the pair see it.
        beta: weight of the pair.
        temperature: sampling temperature.
        trust_remote_code: run code that the checkpoints bring.
    """

    base: str
    tuned: str
    untuned: str
    base_template: str | None = None
    pair_template: str | None = None
    beta: float | None = None
    temperature: float | None = None
    trust_remote_code: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class TokenGuidance:
    """How a file was made: the models, not loaded, and two numbers."""

    file: Decoded
    infos: ModelInfos
    fit: Fit
    beta: float
    temperature: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Record:
    """What a run's record says of token guidance."""

    beta: float | None = None
    temperature: float | None = None
    base_template: str | None = None
    tuned_template: str | None = None
    untuned_template: str | None = None


def inspect_token_guidance(file: Decoded, stated: Stated) -> TokenGuidance:
    """Find out how a file was made, from what is stated and from the run's record beside it.

    Raises:
        UserError: a file that token guidance by one pair did not make alone, or with top-k or top-p; a number
            that neither says, or that they say differently; no models, or other vocabularies than the base's.
    """
    record = _read_record(file.path)
    beta = _reconcile("beta", stated.beta, record.beta, file)
    temperature = _reconcile("temperature", stated.temperature, record.temperature, file)
    if beta is None or temperature is None:
        name = "beta" if beta is None else "temperature"
        raise UserError(f"kl_of: {file.name} has no record beside it that says its {name}; give --{name}")
    if not (0 < temperature < math.inf and 0 <= beta < math.inf):
        raise UserError(f"kl_of: temperature is {temperature} and beta {beta}; expected > 0 and >= 0")
    templates = (
        _reconcile("base_template", stated.base_template, record.base_template, file),
        _reconcile("pair_template", stated.pair_template, record.tuned_template, file),
        _reconcile("pair_template", stated.pair_template, record.untuned_template, file),
    )
    base, tuned, untuned = (
        ModelConfig(path=path, template=template, trust_remote_code=stated.trust_remote_code)
        for path, template in zip((stated.base, stated.tuned, stated.untuned), templates, strict=True)
    )
    infos = inspect_models(base, [PairConfig(tuned=tuned, untuned=untuned)])
    for guide in (infos.pairs[0].tuned, infos.pairs[0].untuned):
        match = compare(infos.base.tokenizer, guide.tokenizer)
        if not match.agrees:
            raise UserError(
                f"kl_of: the vocabulary of {guide.name} differs from the base's ({match.summary()}); the "
                "divergence is known for equal token-to-id maps alone"
            )
    (plan,) = plan_guides(infos, SearchConfig(token_guidance="implicit"))
    return TokenGuidance(file, infos, plan.fit, beta, temperature)


def _reconcile(name: str, stated: T | None, recorded: T | None, file: Decoded) -> T | None:
    """Return what is stated or recorded, if they do not contradict each other."""
    if stated is None or recorded is None:
        return recorded if stated is None else stated
    if stated != recorded:
        raise UserError(
            f"{name} is {stated!r}, but {file.name} was made with {recorded!r}, as the record beside it "
            f"says; leave out --{name}"
        )
    return stated


def _read_record(path: Path | None) -> _Record:
    """Read the record beside a decoded file; it says nothing where there is none."""
    place = None if path is None else manifest_path(path)
    if place is None or not place.is_file():
        return _Record()
    record = None
    try:
        settings: dict[str, Any] = read_json(place, "the record of a run, or move it away")["settings"]
        why_not = _why_not_known(settings)
        if why_not is None:
            pair, temperature = settings["pairs"][0], float(settings["sampling"]["temperature"])
            models = (settings["base"], pair["tuned"], pair["untuned"])
            record = _Record(float(pair["beta"]), temperature, *(model["template"] for model in models))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"kl_of: {place} is not a run's record ({error!r:.60}); move it away") from error
    if record is None:
        raise UserError(f"kl_of: {place} says {why_not}")
    return record


def _why_not_known(settings: Mapping[str, Any]) -> str | None:
    """Say what in a run keeps its divergence from being known; None where nothing does."""
    search, sampling, num_pairs = settings["search"], settings["sampling"], len(settings["pairs"])
    kinds = (search["token_guidance"], search["chunk_guidance"])
    if kinds != ("implicit", "none") or num_pairs != 1:
        named = f"token_guidance {kinds[0]}, chunk_guidance {kinds[1]} and {num_pairs} pairs"
        return f"{named}; expected implicit, none and one pair"
    cuts = (sampling["top_k"], sampling["top_p"])
    if cuts != (0, 1):
        return f"top_k {cuts[0]} and top_p {cuts[1]}, which rule tokens out; decode without either"
    return None


def token_guidance_kl(guidance: TokenGuidance) -> Scores:
    """Load base and pair, and estimate the divergence of each output row (see `sampled_kl`).

    Returns:
        The mean by prompt id, in nats.

    Raises:
        UserError: a model that cannot be loaded.
    """
    file = guidance.file
    base, pair = guidance.infos.base, guidance.infos.pairs[0]
    told = base.source.chat_template_kwargs
    by_base = [
        encode_response(base.tokenizer, row, template=base.template, chat_template_kwargs=told)
        for row in file.rows
    ]
    # The response is common: the guides see the base's ids after their own prompt.
    by_guides = [
        [
            EncodedResponse(renderer.prompt_ids(row), encoded.response_ids)
            for row, encoded in zip(file.rows, by_base, strict=True)
        ]
        for renderer in (pair.tuned.renderer(), pair.untuned.renderer())
    ]
    # Each by itself: a LoRA over `untuned` would otherwise share one model with it.
    models = [
        load_inspected(ModelInfos(info, (), ())).base.module for info in (base, pair.tuned, pair.untuned)
    ]
    kl = sampled_kl(
        models,
        [by_base, *by_guides],
        beta=guidance.beta,
        temperature=guidance.temperature,
        num_shared=guidance.fit.num_shared,
        unguided=guidance.fit.unguided,
    )
    return mean_by_prompt(file.ids, kl)
