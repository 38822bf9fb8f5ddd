"""Lockstep on a GPU: the contract of all engines, and in float64 the CPU's responses."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.decoding.engine import PrefixScorer
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.async_engine import AsyncLockstep
from ivg.engines.lockstep.model_runner import ModelRunner, Part
from ivg.models.loading import load_models
from ivg.run.api import generate
from ivg.run.cli import main
from tests import tiny
from tests.engines.contract import EngineContract
from tests.engines.lockstep.test_contract import LoopEngine, build_loop
from tests.engines.lockstep.test_kv_cache import BUILDERS, PROMPTS, V, build
from tests.engines.lockstep.test_lora_pair import _adapter
from tests.engines.worlds import World
from tests.models import tiny as vocabularies

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
GPU = "cuda"
GUIDANCE = ("none", "implicit", "explicit")
TEXTS = ["ab", "hello there.", "f", "what a day", "so, a long one it is", "z"]


class TestLockstepOnGpu(EngineContract):
    def build(
        self,
        world: World,
        search: SearchConfig,
        sampling: SamplingConfig,
        stop_checker: StopChecker,
        scorer: PrefixScorer | None = None,
    ) -> LoopEngine:
        return LoopEngine(build_loop(world, search, sampling, stop_checker, scorer, GPU))

    def build_async(
        self, world: World, search: SearchConfig, sampling: SamplingConfig, stop_checker: StopChecker
    ) -> AsyncLockstep:
        return AsyncLockstep(build_loop(world, search, sampling, stop_checker, None, GPU))


EXPERTS = ("mixtral", "deepseek")  # a router's choice may flip where numbers are rounded to eight bits


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_kept_caches_equal_recomputation_on_the_cpu(name: str, dtype: torch.dtype, exact: float) -> None:
    """Prefill, feed, reorder, repeat, join and trim; errors in standard deviations of the logits."""
    if dtype == torch.bfloat16 and name in EXPERTS:
        pytest.skip("a mixture of experts is compared in float32 alone")
    plain = build(name).to(dtype).float()  # the reference has the weights that the GPU rounds to
    with torch.inference_mode():
        error = _error_after_everything(plain, copy.deepcopy(plain).to(GPU, dtype))
    assert error < exact


def _error_after_everything(plain: PreTrainedModel, on_gpu: PreTrainedModel) -> float:
    runner = ModelRunner(on_gpu, name="model", has_logits=True, num_ids=V, max_length=64)
    rows = [list(prompt) for prompt in PROMPTS]
    state = runner.prefill(rows)
    runner.feed(state, torch.tensor([[1, 2], [4, 5], [7, 8]]))
    rows = [rows[0] + [1, 2], rows[1] + [4, 5], rows[2] + [7, 8]]
    runner.select(state, torch.tensor([2, 0, 0, 1]))
    rows = [list(rows[i]) for i in (2, 0, 0, 1)]
    runner.feed(state, torch.tensor([[1], [2], [3], [4]]))
    rows = [[*row, i + 1] for i, row in enumerate(rows)]
    fresh = Part(runner.prefill([[3, 3, 4], list(range(2, 24))]), torch.tensor([1, 0]))
    state = runner.rebuild([Part(state, torch.tensor([3, 1])), fresh])
    rows = [rows[3], rows[1], list(range(2, 24)), [3, 3, 4]]
    runner.feed(state, torch.tensor([[9, 1], [8, 2], [7, 3], [6, 4]]))
    rows = [row + new for row, new in zip(rows, [[9, 1], [8, 2], [7, 3], [6, 4]], strict=True)]
    alone = torch.stack([plain(input_ids=torch.tensor([ids])).logits[0, -1] for ids in rows])
    return float((state.last.cpu().float() - alone).abs().max() / alone.std())


@pytest.mark.parametrize(("token", "chunk"), list(itertools.product(GUIDANCE, GUIDANCE)))
def test_cpu_and_gpu_give_the_same_responses_in_float64(tmp_path: Path, token: str, chunk: str) -> None:
    base, tuned, untuned = (
        tiny.save(tmp_path / str(seed), tiny.causal(seed, vocab_size=len(tiny.LETTERS) + 2))
        for seed in (1, 2, 3)
    )
    value = tiny.save(tmp_path / "value", tiny.value(4, num_labels=len(tiny.LETTERS) + 2))
    is_search = chunk != "none"
    search = SearchConfig(
        token_guidance=token,
        chunk_guidance=chunk,
        num_beams=2 if is_search else 1,
        num_successors=2 if is_search else 1,
        chunk_length=3,
    )
    answers = {}
    for device in ("cpu", GPU):
        place = {"device": device, "dtype": "float64"}
        models = load_models(
            ModelConfig(path=base, **place),
            pairs=[
                PairConfig(tuned=ModelConfig(path=tuned, **place), untuned=ModelConfig(path=untuned, **place))
            ],
            values=[ValueConfig(model=ModelConfig(path=value, **place))],
        )
        answers[device] = [
            (r.token_ids, r.finish_reason, None if r.value is None else pytest.approx(r.value, abs=1e-8))
            for r in generate(
                TEXTS, models, search=search, sampling=SamplingConfig(max_new_tokens=17, seed=3)
            )
        ]
    assert answers[GPU] == [
        (ids, reason, None if value is None else value.expected) for ids, reason, value in answers["cpu"]
    ]


def test_a_lora_pair_runs_as_one_model(tmp_path: Path) -> None:
    base, untuned = (tiny.save(tmp_path / str(seed), tiny.causal(seed)) for seed in (1, 2))
    adapter = _adapter(tmp_path / "adapter", untuned)
    search = SearchConfig(
        token_guidance="implicit", chunk_guidance="implicit", num_beams=2, num_successors=2, chunk_length=3
    )
    answers = []
    for device in ("cpu", GPU):
        place = {"device": device, "dtype": "float64"}
        pair = PairConfig(
            tuned=ModelConfig(path=adapter, **place), untuned=ModelConfig(path=untuned, **place)
        )
        models = load_models(ModelConfig(path=base, **place), pairs=[pair])
        assert models.pairs[0].is_shared
        done = generate(TEXTS, models, search=search, sampling=SamplingConfig(max_new_tokens=17, seed=3))
        answers.append([r.token_ids for r in done])
    assert answers[0] == answers[1]


def test_a_pair_of_another_vocabulary(tmp_path: Path) -> None:
    base = tiny.save(
        tmp_path / "base",
        tiny.llama(1, vocab_size=len(vocabularies.base_tokenizer())),
        vocabularies.base_tokenizer(),
    )
    tuned, untuned = (
        tiny.save(
            tmp_path / str(seed),
            tiny.llama(seed, vocab_size=len(vocabularies.pair_tokenizer())),
            vocabularies.pair_tokenizer(),
        )
        for seed in (2, 3)
    )
    answers = []
    for device in ("cpu", GPU):
        place = {"device": device, "dtype": "float64"}
        pair = PairConfig(
            tuned=ModelConfig(path=tuned, **place),
            untuned=ModelConfig(path=untuned, **place),
            vocab_mapping="shared-strings",
        )
        models = load_models(ModelConfig(path=base, **place), pairs=[pair])
        done = generate(
            ["ab", "fade", "c"],
            models,
            search=SearchConfig(token_guidance="implicit"),
            sampling=SamplingConfig(max_new_tokens=12, seed=3),
        )
        answers.append([r.token_ids for r in done])
    assert answers[0] == answers[1]


def test_the_command_decodes_on_the_gpu_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned, untuned = (tiny.save(tmp_path / str(seed), tiny.causal(seed)) for seed in (1, 2, 3))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    files = []
    for device in ([], ["--device", "cpu"]):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = tmp_path / f"{len(files)}.jsonl"
        flags = ["--tuned", tuned, "--untuned", untuned, "--token_guidance", "implicit", "--dtype", "float64"]
        flags += ["--max_new_tokens", "12", "--seed", "5", *device]
        assert main(["--base", base, "--input", str(prompts), "--output", str(output), *flags]) == 0
        files.append([json.loads(line)["response"] for line in output.read_text().splitlines()])
        assert (torch.cuda.max_memory_allocated() > before) == (not device)
    assert files[0] == files[1]
