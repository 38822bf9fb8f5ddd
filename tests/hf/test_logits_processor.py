"""The processor under Hugging Face's own loops equals a recomputation without any cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    set_seed,
)

from ivg.config import ModelConfig, PairConfig, SearchConfig, ValueConfig
from ivg.errors import UserError
from ivg.hf import Guidance, GuidanceLogitsProcessor
from tests import tiny
from tests.models import tiny as guides

PROMPTS = ["hello", "a", "what is it?"]
BETA = 0.6


class Slow(LogitsProcessor):
    """Runs the pair over each row's real tokens, from the start, at every call."""

    def __init__(self, tuned: PreTrainedModel, untuned: PreTrainedModel, mask: torch.Tensor) -> None:
        self.pair = (tuned, untuned)
        self.num_padding = (mask == 0).sum(dim=1).tolist()

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        per_prompt = len(input_ids) // len(self.num_padding)
        guided = scores.log_softmax(-1)
        for row, ids in enumerate(input_ids):
            real = ids[self.num_padding[row // per_prompt] :][None]
            tuned, untuned = (m(real).logits[0, -1].log_softmax(-1) for m in self.pair)
            guided[row] += BETA * (tuned - untuned)
        return guided.log_softmax(-1)


class Recording(LogitsProcessor):
    """Counts the tokens the runners are fed, and keeps what the wrapped processor returned."""

    def __init__(self, inner: LogitsProcessor) -> None:
        self.inner = inner
        self.returned: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.returned.append(self.inner(input_ids, scores))
        return self.returned[-1]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    return {
        name: tiny.save(tmp_path / name, tiny.causal(i))
        for i, name in enumerate(["base", "tuned", "untuned"])
    }


def _base(folders: dict[str, str]) -> GenerationMixin:
    return AutoModelForCausalLM.from_pretrained(folders["base"]).eval()


def _guidance(folders: dict[str, str], model: Any, **kwargs: Any) -> Guidance:
    pair = PairConfig(
        tuned=ModelConfig(path=folders["tuned"]), untuned=ModelConfig(path=folders["untuned"]), beta=BETA
    )
    given = {"search": SearchConfig(token_guidance="implicit"), **kwargs}
    return Guidance(model, tiny.tokenizer(), pairs=[pair], **given)


def _inputs() -> dict[str, torch.Tensor]:
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    return dict(tokenizer(PROMPTS, padding=True, return_tensors="pt", return_token_type_ids=False))


@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": True},
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_beams": 2},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=["sampling", "greedy", "beams", "beam-sampling", "several"],
)
def test_generate_equals_slow_recomputation(folders: dict[str, str], mode: dict[str, Any]) -> None:
    model = _base(folders)
    guidance = _guidance(folders, model)
    inputs = _inputs()
    pair = guidance.models.pairs[0]
    slow = Recording(Slow(pair.tuned.module, pair.untuned.module, inputs["attention_mask"]))
    fast = Recording(GuidanceLogitsProcessor(guidance, inputs["input_ids"], inputs["attention_mask"]))
    found = []
    for processor in (fast, slow):
        set_seed(3)
        settings = {**inputs, **mode, "max_new_tokens": 12}
        found.append(model.generate(**settings, logits_processor=LogitsProcessorList([processor])))
    assert torch.equal(*found)
    assert len(fast.returned) == len(slow.returned)
    for one, other in zip(fast.returned, slow.returned, strict=True):
        assert (one - other).abs().max() < 2e-6  # generate hands over float32
    plain = model.generate(**{**inputs, "do_sample": False, "max_new_tokens": 12})
    assert mode.get("do_sample") or not torch.equal(found[0], plain)


def test_only_new_tokens_are_run_and_strangers_run_anew(folders: dict[str, str]) -> None:
    model = _base(folders)
    guidance = _guidance(folders, model)
    pair = guidance.models.pairs[0]
    prompts = torch.tensor([[1, 2, 3], [31, 5, 6]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    fast = GuidanceLogitsProcessor(guidance, prompts, mask)
    slow = Slow(pair.tuned.module, pair.untuned.module, mask)
    scores = torch.zeros(2, len(tiny.LETTERS) + 2, dtype=torch.float64)
    runner = fast._runners[0]

    def fed(ids: list[list[int]]) -> int:
        before = runner.tokens_fed
        rows = torch.tensor(ids)
        zeros = scores[:1].repeat(len(rows), 1)
        assert (fast(rows, zeros) - slow(rows, zeros)).abs().max() < 1e-9
        return runner.tokens_fed - before

    assert fed([[1, 2, 3], [1, 2, 3], [31, 5, 6], [31, 5, 6]]) == 3 + 3 + 2 + 2
    assert fed([[1, 2, 3, 4], [1, 2, 3, 9], [31, 5, 6, 7], [31, 5, 6, 8]]) == 4
    # Beams change places inside a prompt: selected, one token each.
    assert fed([[1, 2, 3, 9, 1], [1, 2, 3, 9, 2], [31, 5, 6, 8, 3], [31, 5, 6, 7, 4]]) == 4
    # A row that was never seen: everything is run again.
    assert (
        fed([[1, 2, 3, 0, 0, 1], [1, 2, 3, 9, 2, 2], [31, 5, 6, 8, 3, 3], [31, 5, 6, 7, 4, 4]])
        == 6 + 6 + 5 + 5
    )


def test_a_vocabulary_head_guides_too(folders: dict[str, str], tmp_path: Path) -> None:
    model = _base(folders)
    value = tiny.save(tmp_path / "value", tiny.value(3, num_labels=len(tiny.LETTERS) + 2))
    guidance = Guidance(
        model,
        tiny.tokenizer(),
        values=[ValueConfig(model=ModelConfig(path=value), beta=0.3)],
        search=SearchConfig(token_guidance="explicit"),
    )
    ids = torch.tensor([[1, 2, 3]])
    scores = torch.randn(
        1, len(tiny.LETTERS) + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    found = GuidanceLogitsProcessor(guidance, ids)(ids, scores)
    q = guidance.models.values[0].model.module(ids).logits[0, -1]
    assert found[0].tolist() == pytest.approx((scores[0] + 0.3 * q).log_softmax(-1).tolist(), abs=1e-9)


def test_what_a_processor_cannot_do_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    model = _base(folders)
    ids = torch.tensor([[1]])
    searching = _guidance(folders, model, search=SearchConfig(chunk_guidance="implicit", num_beams=2))
    with pytest.raises(
        UserError, match="token_guidance is none and chunk_guidance implicit; use custom_generate"
    ):
        GuidanceLogitsProcessor(searching, ids)
    other = AutoModelForCausalLM.from_pretrained(guides.base(tmp_path / "other")).eval()
    guide = ModelConfig(path=guides.guide(tmp_path / "guide", 1))
    guidance = Guidance(
        other,
        guides.base_tokenizer(),
        pairs=[PairConfig(tuned=guide, untuned=guide, vocab_mapping="shared-strings")],
        search=SearchConfig(token_guidance="implicit"),
    )
    with pytest.raises(UserError, match="needs guides with the base's vocabulary"):
        GuidanceLogitsProcessor(guidance, ids)
