"""What a dry run finds, against models whose faults are known; no weights are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import GPT2LMHeadModel, PreTrainedModel

from ivg.config import (
    DecodeConfig,
    Guidance,
    ModelConfig,
    PairConfig,
    SamplingConfig,
    SearchConfig,
    ValueConfig,
)
from ivg.run.dry_run import DryRun, examine_run, format_size, render
from tests import tiny
from tests.models import tiny as guides
from tests.models.vocabularies import bytewise, spaced

ROWS = [{"prompt": "ab"}, {"prompt": "cafe bad."}]


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)


def _shown(report: DryRun) -> str:
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report))
    console.file.close()
    return console.export_text()


def test_a_run_that_fits(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", tiny.causal(1, dtype=torch.float32), tiny.tokenizer(chat=True))
    tuned, untuned = (tiny.save(tmp_path / name, tiny.causal(2)) for name in ("tuned", "untuned"))
    value = tiny.save(tmp_path / "value", tiny.value(3, num_labels=1))
    config = DecodeConfig(
        base=ModelConfig(path=base),
        pairs=(PairConfig(tuned=ModelConfig(path=tuned), untuned=ModelConfig(path=untuned)),),
        values=(ValueConfig(model=ModelConfig(path=value)),),
        search=SearchConfig(
            token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=2
        ),
        sampling=SamplingConfig(max_new_tokens=10),
        max_batch_rows=8,
    )
    report = examine_run(config, ROWS)
    assert report.problems == ()
    assert report.warnings == ()
    first = report.models[0]
    parameters = sum(p.numel() for p in tiny.causal(1).parameters())
    assert first.needs.num_parameters == parameters
    assert first.needs.weight_bytes == 4 * parameters
    assert report.models[1].needs.weight_bytes == 8 * parameters  # float64 on disk
    assert first.needs.cache_bytes_per_token == 2 * 2 * 16 * 4  # keys and values, layers, width, float32
    # 8 rows of base prompt "u.cafe bad. a." (14) + 10, and three float64 guides of 9 + 10
    assert report.cache_bytes == 8 * (256 * (14 + 10) + 3 * 512 * (9 + 10))
    assert first.example == "u.ab a."
    assert first.eos_tokens == ("<eos>",)
    possible = {(p.level, p.kind) for p in report.possibilities if p.is_possible}
    assert ("token_guidance", "explicit") not in possible  # a scalar head
    assert len(possible) == 5
    text = _shown(report)
    assert "ready to decode 2 prompts" in text
    assert "needs a vocabulary head, this is a scalar head" in text
    assert "* token_guidance implicit" in text
    assert "  token_guidance explicit" in text


def test_faults_are_found(tmp_path: Path) -> None:
    """Another vocabulary, a prompt that is too long, two BOS, no EOS."""
    base = guides.base(tmp_path / "base")
    tuned, untuned = (guides.guide(tmp_path / name, 1, chat=True) for name in ("tuned", "untuned"))
    pair = PairConfig(
        tuned=ModelConfig(path=tuned, template="<s><s>{prompt}"), untuned=ModelConfig(path=untuned)
    )
    config = DecodeConfig(
        base=ModelConfig(path=base),
        pairs=(pair,),
        search=SearchConfig(token_guidance="implicit"),
        sampling=SamplingConfig(max_new_tokens=58),
    )
    report = examine_run(config, ROWS)
    assert (
        "vocabulary differs from the base's (8 of the base's 10 token strings are shared"
        in report.problems[0]
    )
    # "cafe bad." has 9 letters, and no merges; the guides' templates add to both prompts.
    assert [problem.split(" prompts + max_new_tokens 58 exceed")[0] for problem in report.problems[1:]] == [
        f"base ({base}): 1",
        f"untuned ({untuned}): 1",
        f"tuned ({tuned}): 1",
    ]
    assert report.warnings == (f"tuned ({tuned}): 2 prompts open with two BOS; drop the one in the template",)
    chunk = next(p for p in report.possibilities if (p.level, p.kind) == ("chunk_guidance", "implicit"))
    assert chunk.is_possible
    assert "through text" in chunk.remark
    assert "ready to decode" not in _shown(report)


def test_value_functions_are_looked_at(tmp_path: Path) -> None:
    config = DecodeConfig(
        base=ModelConfig(path=guides.base(tmp_path / "base")),
        values=(ValueConfig(function="ivg.rewards.vader"),),
        search=SearchConfig(chunk_guidance="explicit", num_successors=2),
        sampling=SamplingConfig(max_new_tokens=10),
    )
    (problem,) = examine_run(config, ROWS).problems
    assert "takes (rows, responses), so it is a reward" in problem


def test_a_pair_whose_untuned_half_is_the_base_keeps_one_cache_of_its_own(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", tiny.causal(1))
    tuned, other = (tiny.save(tmp_path / name, tiny.causal(2)) for name in ("tuned", "other"))

    def caches(untuned: ModelConfig, token_guidance: Guidance = "implicit") -> tuple[int, int]:
        """Return how many models' keys and values are counted, and how many models' scores."""
        config = DecodeConfig(
            base=ModelConfig(path=base),
            pairs=(PairConfig(tuned=ModelConfig(path=tuned), untuned=untuned),),
            search=SearchConfig(
                token_guidance=token_guidance, chunk_guidance="implicit", num_beams=2, num_successors=2
            ),
            sampling=SamplingConfig(max_new_tokens=10),
            max_batch_rows=4,
        )
        report = examine_run(config, ROWS)
        assert report.problems == ()
        one_cache = 4 * (2 * 2 * 16) * 8 * (9 + 10)  # rows, keys and values, float64, "cafe bad." and tokens
        one_of_scores = 4 * 4 * (len(tiny.LETTERS) + 2) * 4  # copies, rows, vocabulary, float32
        return report.cache_bytes // one_cache, report.score_bytes // one_of_scores

    assert caches(ModelConfig(path=other)) == (3, 3)
    assert caches(ModelConfig(path=base)) == (2, 2)
    # Asked for other numbers or with another prompt, it has rows of its own.
    assert caches(ModelConfig(path=base, dtype="float64")) == (3, 3)
    assert caches(ModelConfig(path=base, template="x{prompt}")) == (3, 3)  # 3.05
    assert caches(ModelConfig(path=base), token_guidance="none") == (3, 3)


def test_missing_loops_are_said_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = guides.base(tmp_path / "base")
    monkeypatch.setattr("ivg.run.dry_run.has_compiled_loops", lambda: False)
    for device, num_warnings in (("cpu", 1), ("cuda", 0)):
        monkeypatch.setattr("ivg.run.dry_run.default_device", lambda device=device: device)
        report = examine_run(DecodeConfig(base=ModelConfig(path=base)), ROWS)
        assert sum("compiled loops are missing" in warning for warning in report.warnings) == num_warnings


def test_quantized_weights_count_as_they_will_be(tmp_path: Path) -> None:
    model = tiny.llama(1).float()
    folder = tiny.save(tmp_path / "base", model)
    linear = sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
    total = sum(p.numel() for p in model.parameters())
    for quantization, per_weight in (("8bit", 1.0), ("4bit", 0.5)):
        base = ModelConfig(path=folder, quantization=quantization)  # type: ignore[arg-type]
        report = examine_run(DecodeConfig(base=base), ROWS)
        assert report.weight_bytes == int(4 * (total - linear) + per_weight * linear)


def test_sizes() -> None:
    assert [format_size(n) for n in (12, 2048, 5 * 2**20, 3 * 2**29)] == ["12 B", "2 KiB", "5 MiB", "1.5 GiB"]


def test_templates_that_differ_are_shown_at_both_ends(tmp_path: Path) -> None:
    chat = tiny.tokenizer(chat=True)
    base = tiny.save(tmp_path / "base", tiny.causal(1), chat)
    guide = tiny.save(tmp_path / "guide", tiny.causal(2), chat)
    untuned, plain = ModelConfig(path=base), ModelConfig(path=guide, template="{prompt}!?")
    config = DecodeConfig(base=untuned, pairs=(PairConfig(tuned=plain, untuned=untuned),))
    report = examine_run(config, [{"prompt": "ab" * 200}])
    assert [model.reads_as_base for model in report.models] == [True, True, False]
    text = _shown(report)
    assert "'{prompt}!?', not worded as for the base" in text
    assert f"{'ab' * 10} ... " in text
    assert f"{'ab' * 10}!?'" in text
    overridden = dataclasses.replace(
        config, base=ModelConfig(path=base, template="{prompt}!?"), search=SearchConfig()
    )
    (warning,) = examine_run(overridden, ROWS).warnings
    assert warning.endswith("reads prompts as '{prompt}!?', like the base, and not in its own chat template")


def test_the_share_that_another_vocabulary_guides_is_said(tmp_path: Path) -> None:
    folders = []
    for name, tokenizer in (("base", spaced()), ("guide", bytewise())):
        config = tiny.gpt2_config(len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
        folders.append(tiny.save(tmp_path / name, GPT2LMHeadModel(config), tokenizer))
    base, guide = (ModelConfig(path=folder) for folder in folders)
    config = DecodeConfig(
        base=base,
        pairs=(PairConfig(tuned=guide, untuned=guide, vocab_mapping="shared-strings"),),
        search=SearchConfig(token_guidance="implicit"),
        sampling=SamplingConfig(max_new_tokens=9),
    )
    report = examine_run(config, [{"prompt": "the aé"}])  # ▁the ▁a é, and ▁a has no counterpart
    assert report.problems == ()
    assert report.models[0].guided_share is None
    assert report.models[1].guided_share == pytest.approx(2 / 3)
    text = _shown(report)
    assert "it can guide 67% of the prompts' tokens" in text
    assert "where the guide has a token for the same bytes: " in text
