"""Log-probs of given tokens are the formula's, whichever kind of guide there is, however they are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.decoding.engine import NumericalError
from ivg.engines.lockstep import given_tokens
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.lockstep.given_tokens import score_given
from ivg.models.loading import Models, load_models
from tests import tiny
from tests.engines.lockstep.test_lora_pair import _adapter, _merged

BETA = 0.7
IDS = (4, 11, 2, 30, 7, 7, 19, 0, 25)


def log_probs(path: str) -> torch.Tensor:
    """(T, V) of what follows each token, without any cache."""
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        return model(torch.tensor([IDS])).logits[0].log_softmax(-1)


def start(models: Models, kind: str) -> LockstepEngine:
    return LockstepEngine(models, SearchConfig(token_guidance=kind), SamplingConfig())  # type: ignore[arg-type]


def score(engine: LockstepEngine, num_tokens: int, num_top: int = 3) -> list:
    names = [runner.name for runner in engine.lockstep.stepping_runners]
    found = score_given(engine.lockstep, dict.fromkeys(names, IDS), num_tokens, num_top)
    assert engine.lockstep.num_rows == 0
    return found


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Models, str, torch.Tensor]]:
    """By kind of guide: the models, token guidance, and what the formula says."""
    tmp_path: Path = tmp_path_factory.mktemp("models")
    base = tiny.save(tmp_path / "base", tiny.causal(1))
    tuned = tiny.save(tmp_path / "tuned", tiny.causal(3))
    untuned = tiny.save(tmp_path / "untuned", tiny.causal(2))
    adapter = _adapter(tmp_path / "adapter", untuned)
    merged = _merged(tmp_path / "merged", untuned, adapter)
    value = tiny.save(tmp_path / "value", tiny.value(4, num_labels=len(tiny.LETTERS) + 2))
    with torch.no_grad():
        head = AutoModelForTokenClassification.from_pretrained(value, dtype=torch.float64)
        scores = head(torch.tensor([IDS])).logits[0]

    def pair(path: str) -> PairConfig:
        return PairConfig(tuned=ModelConfig(path=path), untuned=ModelConfig(path=untuned), beta=BETA)

    plain, under = log_probs(base), log_probs(untuned)
    return {
        "none": (load_models(base), "none", plain),
        "pair": (
            load_models(base, pairs=[pair(tuned)]),
            "implicit",
            plain + BETA * (log_probs(tuned) - under),
        ),
        "lora": (
            load_models(base, pairs=[pair(adapter)]),
            "implicit",
            plain + BETA * (log_probs(merged) - under),
        ),
        "value": (
            load_models(base, values=[ValueConfig(model=ModelConfig(path=value), beta=BETA)]),
            "explicit",
            plain + BETA * scores,
        ),
    }


@pytest.mark.parametrize("cut", [2**24, 1, 100], ids=["whole", "one by one", "by threes"])
@pytest.mark.parametrize("kind", ["none", "pair", "lora", "value"])
def test_scores_are_the_formula_s(kinds, kind: str, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_tokens, "_MAX_SCORES", cut)
    models, guidance, unnormalised = kinds[kind]
    expected, engine = unnormalised.log_softmax(-1), start(models, guidance)
    for num_tokens in (1, 4, len(IDS) - 1):
        found = score(engine, num_tokens)
        first = len(IDS) - num_tokens
        assert [entry.id for entry in found] == list(IDS[first:])
        for place, entry in enumerate(found, start=first - 1):
            assert entry.log_prob == pytest.approx(float(expected[place, IDS[place + 1]]), abs=1e-9)
            best = expected[place].topk(3)
            assert [i for i, _ in entry.top] == best.indices.tolist()
            assert [logp for _, logp in entry.top] == pytest.approx(best.values.tolist(), abs=1e-9)


def test_none_of_the_most_probable_may_be_asked_for(kinds) -> None:
    models, guidance, _ = kinds["pair"]
    assert [entry.top for entry in score(start(models, guidance), 3, num_top=0)] == [()] * 3


def test_a_model_that_returns_nan_is_named(kinds) -> None:
    models, guidance, _ = kinds["pair"]
    engine = start(models, guidance)
    weight = models.pairs[0].tuned.module.transformer.ln_f.weight
    kept = weight.data.clone()
    weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="tuned"):
        score(engine, 3)
    weight.data.copy_(kept)
