"""Files made by token guidance alone: how they were made, and their divergence from the base."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoModelForCausalLM

from ivg.config import ModelConfig, PairConfig, SearchConfig
from ivg.errors import UserError, first_line
from ivg.evaluation.measures.decoded import Decoded
from ivg.evaluation.measures.distance import EncodedResponse, encode_response
from ivg.evaluation.measures.divergence import sampled_kl
from ivg.evaluation.measures.statistics import Scores, mean_by_prompt
from ivg.models.loading import default_device
from ivg.models.plan import Fit, ModelInfos, inspect_models, plan_guides
from ivg.models.prompts import encode_prompt
from ivg.models.vocab import compare
from ivg.run.output_files import manifest_path

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What is said of a run; what is unset is taken from its record, where it has one.

    Attributes:
        base: folder or Hub name.
        tuned: the pair's tuned half.
        untuned: its twin.
        base_template: how the base sees a prompt.
        pair_template: how both halves of the pair see it.
        beta: weight of the pair.
        temperature: sampling temperature.
    """

    base: str
    tuned: str
    untuned: str
    base_template: str | None = None
    pair_template: str | None = None
    beta: float | None = None
    temperature: float | None = None


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


def inspect_token_guidance(file: Decoded, given: Given) -> TokenGuidance:
    """Find out how a file was made, from what is given and from the run's record beside it.

    Raises:
        UserError: a file that token guidance by one pair did not make alone, or with top-k or top-p; a number
            that neither says, or that they say differently; no models, or other vocabularies than the base's.
    """
    record = _read_record(file.path)
    beta = _agreed("beta", given.beta, record.beta, file)
    temperature = _agreed("temperature", given.temperature, record.temperature, file)
    if beta is None or temperature is None:
        name = "beta" if beta is None else "temperature"
        raise UserError(f"kl_of: {file.name} has no record beside it that says its {name}; give --{name}")
    if temperature <= 0 or beta < 0:
        raise UserError(f"kl_of: temperature is {temperature} and beta {beta}; expected > 0 and >= 0")
    templates = (
        _agreed("base_template", given.base_template, record.base_template, file),
        _agreed("pair_template", given.pair_template, record.tuned_template, file),
        _agreed("pair_template", given.pair_template, record.untuned_template, file),
    )
    base, tuned, untuned = (
        ModelConfig(path=path, template=template)
        for path, template in zip((given.base, given.tuned, given.untuned), templates, strict=True)
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


def _agreed(name: str, given: T | None, recorded: T | None, file: Decoded) -> T | None:
    """Return what is given or recorded, if they do not contradict each other."""
    if given is None or recorded is None:
        return recorded if given is None else given
    if given != recorded:
        raise UserError(
            f"{name} is {given!r}, but {file.name} was made with {recorded!r}, as the record beside it says; "
            f"leave out --{name}"
        )
    return given


def _read_record(path: Path | None) -> _Record:
    """Read the record beside a decoded file; it says nothing where there is none."""
    place = None if path is None else manifest_path(path)
    if place is None or not place.is_file():
        return _Record()
    record = None
    try:
        settings: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))["settings"]
        why_not = _why_not_known(settings)
        if why_not is None:
            pair, temperature = settings["pairs"][0], float(settings["sampling"]["temperature"])
            models = (settings["base"], pair["tuned"], pair["untuned"])
            record = _Record(float(pair["beta"]), temperature, *(model["template"] for model in models))
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    by_base = [encode_response(base.tokenizer, row, template=base.template) for row in file.rows]
    # The response is common: the guides see the base's ids after their own prompt.
    by_guides = [
        [
            EncodedResponse(encode_prompt(guide.tokenizer, row, guide.template), encoded.response_ids)
            for row, encoded in zip(file.rows, by_base, strict=True)
        ]
        for guide in (pair.tuned, pair.untuned)
    ]
    models = [_load(info.source.path, info.name) for info in (base, pair.tuned, pair.untuned)]
    kl = sampled_kl(
        models,
        [by_base, *by_guides],
        beta=guidance.beta,
        temperature=guidance.temperature,
        num_shared=guidance.fit.num_shared,
        unguided=guidance.fit.unguided,
    )
    return mean_by_prompt(file.ids, kl)


def _load(path: str, name: str) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(path).to(default_device()).eval()
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{name}: cannot be loaded: {reason}") from error
