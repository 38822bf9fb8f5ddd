"""However a response ended, its value is that of what was trained: its text and the guide's own end."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import GPT2ForTokenClassification, GPT2LMHeadModel, PreTrainedTokenizerBase

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.engine import in_order
from ivg.decoding.sequences import Finished, Hypothesis
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.models.loading import LoadedModel, Models
from ivg.models.rendering import Renderer
from ivg.run.tasks import make_tasks
from ivg.training.value.data import IGNORED, ValueCollator, encode_rewarded
from tests.engines.lockstep import tiny
from tests.engines.lockstep.tiny import EOS, PAD, TOKENS, V

SEARCH = SearchConfig(chunk_guidance="explicit", num_beams=2, num_successors=2, chunk_length=4)
PROMPTS = [{"prompt": "ab", "id": i} for i in range(12)]


def _run(
    models: Models, *, stop: Sequence[str] = (), search: SearchConfig = SEARCH, temperature: float = 1.5
) -> list[Finished]:
    sampling = SamplingConfig(max_new_tokens=12, temperature=temperature, stop=tuple(stop))
    engine = LockstepEngine(models, search, sampling, max_batch_rows=16, keep_trace=True)
    tasks, bad = make_tasks(PROMPTS, engine.infos, sampling)
    assert not bad
    return list(in_order(tasks, engine.run(tasks)))


def _candidates(finished: Sequence[Finished], reason: str) -> list[Hypothesis]:
    boundaries = [boundary for task in finished for boundary in task.trace]
    found = [c for boundary in boundaries for c in boundary.candidates if c.finish_reason == reason]
    assert len(found) > 5
    return found


def _value(model: torch.nn.Module, ids: Sequence[int]) -> float:
    """V of the sequence, or Q of its last token."""
    with torch.no_grad():
        logits = model(torch.tensor([[*map(TOKENS.index, "ab"), *ids]])).logits[0]
    return float(logits[-1, 0] if logits.shape[1] == 1 else logits[-2, ids[-1]])


def _closing_turns_with_e() -> PreTrainedTokenizerBase:
    """As Gemma and Phi-3 do it: the template closes a turn with another token than the tokenizer's EOS."""
    tok = tiny.tokenizer()
    tok.add_special_tokens({"extra_special_tokens": ["e"]})
    tok.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}e{% endif %}{% endfor %}"
    )
    return tok


@pytest.mark.parametrize("num_labels", [1, V])
def test_an_ending_by_a_stop_string_is_read_without_it_and_closed(num_labels: int) -> None:
    value = tiny.loaded(tiny.value(5, num_labels), "value", "value")
    models = tiny.together(tiny.loaded(tiny.causal(0), "base", "base"), values=(tiny.scorer(value),))
    for candidate in _candidates(_run(models, stop=["c", "bd"]), "stop"):
        text = "".join(TOKENS[i] for i in candidate.ids if i < len(TOKENS))
        text = text[: min(text.find(stop) for stop in ("c", "bd") if stop in text)]
        before = [list(candidate.ids[:n]) for n in range(len(candidate.ids))]
        spelling = [ids for ids in before if "".join(TOKENS[i] for i in ids if i < len(TOKENS)) == text]
        content = spelling[-1] if spelling else [TOKENS.index(letter) for letter in text]
        assert candidate.value == pytest.approx(_value(value.module, [*content, EOS]), abs=1e-9)


@pytest.mark.parametrize("num_labels", [1, V])
def test_an_ending_by_another_eos_is_read_with_the_guides_own(num_labels: int) -> None:
    """The base may end by its EOS or by `e`; the value model was trained on responses that `e` closes."""
    own = TOKENS.index("e")
    value = tiny.loaded(tiny.value(5, num_labels), "value", "value", tok=_closing_turns_with_e())
    base = tiny.loaded(tiny.causal(0), "base", "base", eos=[EOS, own], tok=_closing_turns_with_e())
    candidates = _candidates(_run(tiny.together(base, values=(tiny.scorer(value),))), "eos")
    assert {c.ids[-1] for c in candidates} == {EOS, own}
    for candidate in candidates:
        expected = _value(value.module, [*candidate.ids[:-1], own])
        assert candidate.value == pytest.approx(expected, abs=1e-9)


def test_a_guide_without_the_bases_eos_values_endings_by_its_own() -> None:
    """A vocabulary head knows nothing of an id that its tokenizer lacks; it gave every ending 0."""
    model = tiny.value(6, V)
    tok = tiny.tokenizer()
    tok.add_special_tokens({"extra_special_tokens": ["<end>"]})  # the base's alone, with id V
    value = tiny.loaded(model, "value", "value")
    base = tiny.loaded(tiny.causal(0, vocab_size=V + 1), "base", "base", eos=[V], tok=tok)
    for candidate in _candidates(_run(tiny.together(base, values=(tiny.scorer(value),))), "eos"):
        assert candidate.ids[-1] == V
        expected = _value(model, [*candidate.ids[:-1], EOS])
        assert candidate.value == pytest.approx(expected, abs=1e-9)
        assert expected != 0


def test_pairs_are_read_as_they_were_trained_too() -> None:
    tuned, untuned = (tiny.loaded(tiny.causal(seed), "tuned", f"m{seed}") for seed in (1, 2))
    base = tiny.loaded(tiny.causal(0), "base", "base")
    search = SearchConfig(chunk_guidance="implicit", num_beams=2, num_successors=2, chunk_length=4)
    finished = _run(tiny.together(base, pairs=(tiny.pair(tuned, untuned),)), stop=["."], search=search)
    for candidate in _candidates(finished, "stop"):
        ids = [*candidate.ids[:-1], EOS]  # the stop string is one token
        expected = _logp(tuned, ids) - _logp(untuned, ids)
        assert candidate.value == pytest.approx(expected, abs=1e-9)


def _logp(model: LoadedModel, ids: Sequence[int]) -> float:
    prompt = list(map(TOKENS.index, "ab"))
    with torch.no_grad():
        logps = model.module(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    return sum(float(logps[len(prompt) - 1 + t, i]) for t, i in enumerate(ids))


def test_content_of_a_response() -> None:
    checker = StopChecker([EOS], ["cd", "."], lambda ids: "".join(TOKENS[i] for i in ids if i < EOS))
    ab, bc, cd, c, d, dot = (TOKENS.index(token) for token in ("ab", "bc", "cd", "c", "d", "."))
    assert checker.content_ids(Hypothesis((ab, EOS), finish_reason="eos")) == (ab,)
    assert checker.content_ids(Hypothesis((ab, c), finish_reason="length")) == (ab, c)
    assert checker.content_ids(Hypothesis((ab, cd), finish_reason="stop")) == (ab,)
    assert checker.content_ids(Hypothesis((ab, c, d), finish_reason="stop")) == (ab,)
    assert checker.content_ids(Hypothesis((bc, d), finish_reason="stop")) is None  # begins inside `bc`
    assert checker.content_ids(Hypothesis((dot,), finish_reason="stop")) == ()


def test_values_at_stop_strings_rank_as_the_rewards_do() -> None:
    """Train a vocabulary head on rollouts that end by a stop, and search with the same stop."""
    generator, tok = np.random.default_rng(0), tiny.tokenizer()
    texts = ["".join(generator.choice(["a", "b"], size=generator.integers(3, 8))) for _ in range(96)]
    shape = {
        "n_embd": 32,
        "n_layer": 2,
        "n_positions": 32,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
        "attn_pdrop": 0,
    }
    rows = [
        {"prompt": "ab", "completion": text, "reward": _reward(text), "finish_reason": "stop"}
        for text in texts
    ]
    batch = ValueCollator(PAD)(encode_rewarded(datasets.Dataset.from_list(rows), Renderer(tok, None)))
    ids, mask, labels = (batch[name][:, 0] for name in ("input_ids", "attention_mask", "labels"))
    value = _trained(
        GPT2ForTokenClassification(tiny.config(num_labels=V, **shape)),
        lambda model: _fudge(model(input_ids=ids, attention_mask=mask).logits, labels, batch["rewards"]),
    )
    stopped = torch.tensor(tok([f"ab{text}." for text in texts], padding=True)["input_ids"])
    seen = stopped.where(stopped != PAD, IGNORED)
    base = _trained(
        GPT2LMHeadModel(tiny.config(**shape)), lambda model: model(input_ids=stopped, labels=seen).loss
    )
    value.config.architectures = ["GPT2ForTokenClassification"]
    models = tiny.together(
        tiny.loaded(base, "base", "base"),
        values=(tiny.scorer(tiny.loaded(value, "value", "value")),),
    )
    search = SearchConfig(chunk_guidance="explicit", num_successors=16, chunk_length=12)
    candidates = _candidates(_run(models, stop=["."], search=search, temperature=1.0), "stop")
    rewards = [
        _reward("".join(TOKENS[i] for i in c.ids if i < len(TOKENS)).removesuffix(".")) for c in candidates
    ]
    values = [c.value for c in candidates]
    assert len(candidates) > 100
    assert spearmanr(values, rewards).statistic > 0.9
    assert np.std(values) > 0.5 * np.std(rewards)


def _reward(text: str) -> float:
    return text.count("a") / max(1, len(text))


def _fudge(logits: torch.Tensor, labels: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Σ over response tokens of (Q(x, y<t)[y_t] - r)², a mean."""
    is_response = labels[:, 1:] != IGNORED
    chosen = logits[:, :-1].gather(2, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return ((chosen - rewards[:, None]) ** 2)[is_response].mean()


def _trained(model: torch.nn.Module, loss_of: object) -> torch.nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return model.eval().double()
