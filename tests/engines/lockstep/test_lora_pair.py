"""A pair whose tuned model is a LoRA over the untuned: one set of weights, the merged model's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import ivg
from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig
from ivg.decoding.engine import in_order
from ivg.engines.lockstep.acceleration import Accelerations, accelerate
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.lockstep.lora_pair import pair_runners
from ivg.errors import UserError
from ivg.models.loading import Models, load_models
from ivg.models.prompts import as_rows
from ivg.run.tasks import make_tasks
from tests import tiny
from tests.models import tiny as guides

PROMPTS = ["ab", "hello there.", "f", "what a day"]
SAMPLING = SamplingConfig(max_new_tokens=13, seed=5)


def _adapter(folder: Path, untuned: str, *, use_dora: bool = False, seed: int = 9) -> str:
    """A LoRA with weights large enough to matter; `init` alone would add zero."""
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, use_dora=use_dora
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(untuned), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.to(torch.float64).save_pretrained(folder)
    return str(folder)


def _merged(folder: Path, untuned: str, adapter: str) -> str:
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(untuned), adapter
    ).merge_and_unload()
    return tiny.save(folder, model)


def _models(base: str, tuned: str, untuned: str, **kwargs: object) -> Models:
    pair = PairConfig(tuned=ModelConfig(path=tuned), untuned=ModelConfig(path=untuned), **kwargs)  # type: ignore[arg-type]
    return load_models(base, pairs=[pair])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str, str, str]:
    base = tiny.save(tmp_path / "base", tiny.causal(1))
    untuned = tiny.save(tmp_path / "untuned", tiny.causal(2))
    adapter = _adapter(tmp_path / "adapter", untuned)
    return base, untuned, adapter, _merged(tmp_path / "merged", untuned, adapter)


def test_weights_are_in_memory_once(folders: tuple[str, str, str, str]) -> None:
    base, untuned, adapter, _ = folders
    pair = _models(base, adapter, untuned).pairs[0]
    assert pair.is_shared
    assert pair.tuned.module is pair.untuned.module
    storages = {p.untyped_storage().data_ptr(): p.numel() for p in pair.tuned.module.parameters()}
    own = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(untuned).parameters())
    lora = sum(p.numel() for name, p in pair.tuned.module.named_parameters() if "lora_" in name)
    assert sum(storages.values()) == own + lora
    (runner,) = pair_runners(pair)
    state = runner.prefill([[1, 2, 3], [4]])
    assert len(state.mask) == 4  # two rows, each under both branches with its own keys and values
    keys = state.cache.layers[1].keys
    assert (keys[0] - keys[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "search",
    [
        SearchConfig(token_guidance="implicit", chunk_length=4),
        SearchConfig(chunk_guidance="implicit", num_beams=2, num_successors=2, chunk_length=3),
        SearchConfig(
            token_guidance="implicit",
            chunk_guidance="implicit",
            num_beams=2,
            num_successors=2,
            chunk_length=3,
        ),
    ],
    ids=["tokens", "chunks", "both"],
)
def test_log_ratios_equal_the_merged_models(folders: tuple[str, str, str, str], search: SearchConfig) -> None:
    base, untuned, adapter, merged = folders
    runs = []
    for tuned in (adapter, merged):
        engine = LockstepEngine(
            _models(base, tuned, untuned), search, SAMPLING, max_batch_rows=8, keep_trace=True
        )
        tasks, _ = make_tasks(as_rows(PROMPTS), engine.infos, SAMPLING)
        runs.append(list(in_order(tasks, engine.run(tasks))))
    largest = 0.0
    for shared, apart in zip(*runs, strict=True):
        assert [b.ids for b in shared.beams] == [b.ids for b in apart.beams]
        for one, other in zip(shared.beams, apart.beams, strict=True):
            assert one.value == pytest.approx(other.value, abs=1e-9)
            assert one.log_ratios == pytest.approx(other.log_ratios, abs=1e-9)
            largest = max(largest, *map(abs, (*one.log_ratios, one.value)))
    assert largest > 0.1  # the adapter does something


def test_adapters_over_the_base_share_its_weights(tmp_path: Path) -> None:
    """A self-guided base, by two pairs: one set of weights, and the numbers of merged models apart."""
    base = tiny.save(tmp_path / "base", tiny.causal(2))
    pairs, apart = [], []
    for seed, beta in ((9, 0.7), (10, 0.4)):
        adapter = _adapter(tmp_path / f"adapter{seed}", base, seed=seed)
        merged = _merged(tmp_path / f"merged{seed}", base, adapter)
        for made, tuned in ((pairs, adapter), (apart, merged)):
            pair = PairConfig(tuned=ModelConfig(path=tuned), untuned=ModelConfig(path=base), beta=beta)
            made.append(pair)
    models = load_models(base, pairs=pairs)
    assert len({id(model.module) for model in models.every}) == 1
    parameters = dict(models.base.module.named_parameters())
    own = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters())
    storages = {p.untyped_storage().data_ptr(): p.numel() for p in parameters.values()}
    assert sum(storages.values()) == own + sum(p.numel() for n, p in parameters.items() if "lora_" in n)
    ids = torch.tensor([[1, 2, 3]])  # called as it is, the module is the base
    plain = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    assert torch.equal(models.base.module(ids).logits, plain)
    search = SearchConfig(token_guidance="implicit", chunk_length=4)
    shared = ivg.generate(PROMPTS, models, search=search, sampling=SAMPLING)
    expected = ivg.generate(PROMPTS, load_models(base, pairs=apart), search=search, sampling=SAMPLING)
    assert [r.token_ids for r in shared] == [r.token_ids for r in expected]
    unguided = ivg.generate(PROMPTS, load_models(base), sampling=SAMPLING)
    assert [r.token_ids for r in shared] != [r.token_ids for r in unguided]
    again = ivg.generate(PROMPTS, models, sampling=SAMPLING)
    assert [r.token_ids for r in again] == [r.token_ids for r in unguided]


def test_a_pair_over_the_base_reads_the_bases_own_scores(tmp_path: Path) -> None:
    """The base is the untuned half: fed once, not twice; and the numbers are those of two models apart."""
    base = tiny.save(tmp_path / "base", tiny.causal(2))
    adapter = _adapter(tmp_path / "adapter", base)
    merged = _merged(tmp_path / "merged", base, adapter)
    twin = tiny.save(tmp_path / "twin", tiny.causal(2))  # the base's weights, in another folder
    both = {"token_guidance": "implicit", "chunk_guidance": "implicit", "num_beams": 2, "num_successors": 2}
    search = SearchConfig(**both, chunk_length=3)  # type: ignore[arg-type]
    runs, fed = [], []
    for tuned, untuned in ((adapter, base), (merged, base), (merged, twin)):
        models = _models(base, tuned, untuned, beta=1.5)
        engine = LockstepEngine(models, search, SAMPLING, max_batch_rows=8, keep_trace=True)
        tasks, _ = make_tasks(as_rows(PROMPTS), engine.infos, SAMPLING)
        runs.append(list(in_order(tasks, engine.run(tasks))))
        fed.append(list(engine.tokens_fed.values()))
    for run in runs[:2]:
        for own, apart in zip(run, runs[2], strict=True):
            assert [b.ids for b in own.beams] == [b.ids for b in apart.beams]
            for one, other in zip(own.beams, apart.beams, strict=True):
                assert one.value == pytest.approx(other.value, abs=1e-9)
                assert one.log_ratios == pytest.approx(other.log_ratios, abs=1e-9)
    assert len(fed[2]) == 3  # base, tuned, untuned
    assert fed[0] == fed[1] == fed[2][:2]


def test_a_pair_over_the_base_that_words_prompts_otherwise_is_fed_by_itself(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", tiny.causal(2))
    adapter = _adapter(tmp_path / "adapter", base)
    merged = _merged(tmp_path / "merged", base, adapter)
    twin = tiny.save(tmp_path / "twin", tiny.causal(2))
    search = SearchConfig(token_guidance="implicit")
    runs = []
    for paths in ((adapter, base), (merged, twin)):
        tuned, untuned = (ModelConfig(path=path, template="x{prompt}") for path in paths)
        models = load_models(base, pairs=[PairConfig(tuned=tuned, untuned=untuned)])
        runs.append([r.token_ids for r in ivg.generate(PROMPTS, models, search=search, sampling=SAMPLING)])
    assert runs[0] == runs[1]


def test_packed_layers_serve_both_branches(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", tiny.causal(1, dtype=torch.float32))
    untuned = tiny.save(tmp_path / "untuned", tiny.causal(2, dtype=torch.float32))
    adapter = _adapter(tmp_path / "adapter", untuned)
    merged = _merged(tmp_path / "merged", untuned, adapter)
    pair = _models(base, adapter, untuned).pairs[0]
    (runner,) = pair_runners(pair)
    accelerate([runner], [pair.tuned.module], Accelerations())
    assert any(type(module).__name__ == "PackedLinear" for module in pair.tuned.module.modules())
    logits = runner.prefill([[1, 2, 3], [4]]).last
    for branch, path in enumerate((merged, untuned)):
        plain = AutoModelForCausalLM.from_pretrained(path).double()
        expected = torch.stack([plain(torch.tensor([ids])).logits[0, -1] for ids in ([1, 2, 3], [4])])
        torch.testing.assert_close(logits[branch::2].double(), expected, atol=1e-4, rtol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_a_shared_pair_reads_text_too(tmp_path: Path) -> None:
    base = guides.base(tmp_path / "base")
    untuned = guides.guide(tmp_path / "untuned", 2)
    adapter = _adapter(tmp_path / "adapter", untuned)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(untuned), adapter
    ).merge_and_unload()
    merged = tiny.save(tmp_path / "merged", model, guides.pair_tokenizer())
    search = SearchConfig(chunk_guidance="implicit", num_beams=2, num_successors=2, chunk_length=3)
    runs = []
    for tuned in (adapter, merged):
        models = _models(base, tuned, untuned)
        runs.append(ivg.generate(["ab", "cafe"], models, search=search, sampling=SAMPLING))
    for one, other in zip(*runs, strict=True):
        assert one.token_ids == other.token_ids
        assert one.value == pytest.approx(other.value, abs=1e-9)


def test_an_adapter_over_another_model_is_merged(folders: tuple[str, str, str, str], tmp_path: Path) -> None:
    """Only a LoRA over `untuned` itself can share; anything else is a model of its own."""
    base, _, adapter, merged = folders
    other = tiny.save(tmp_path / "other", tiny.causal(3))
    search = SearchConfig(token_guidance="implicit")
    runs = []
    for tuned in (adapter, merged):
        models = _models(base, tuned, other)
        assert not models.pairs[0].is_shared
        runs.append([r.token_ids for r in ivg.generate(PROMPTS, models, search=search, sampling=SAMPLING)])
    assert runs[0] == runs[1]


def test_adapters_that_cannot_share_a_batch_are_refused(
    folders: tuple[str, str, str, str], tmp_path: Path
) -> None:
    base, untuned, _, _ = folders
    dora = _adapter(tmp_path / "dora", untuned, use_dora=True)
    with pytest.raises(UserError, match=r"cannot share a batch .*; merge the adapter into its base"):
        _models(base, dora, untuned)
