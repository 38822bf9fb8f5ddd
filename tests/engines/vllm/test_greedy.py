"""Greedy token guidance gives the ids that lockstep gives, whatever the batch, the cache and the prefill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig
from ivg.decoding.engine import Engine, in_order
from ivg.decoding.sequences import Task
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.vllm.engine import VllmEngine, prepare, start
from ivg.models.loading import load_inspected
from ivg.models.plan import inspect_models
from ivg.run.tasks import make_tasks
from tests.engines.vllm.models import CONTEXT, LETTERS, build, save

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
NUM_PROMPTS, NUM_TOKENS = 64, 32


def ids_of(engine: Engine, tasks: Sequence[Task]) -> list[tuple[int, ...]]:
    return [finished.beams[0].ids for finished in in_order(tasks, engine.run(tasks))]


def prompts() -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(3, CONTEXT - NUM_TOKENS, (NUM_PROMPTS,), generator=generator).tolist()
    draws = [torch.randint(0, len(LETTERS), (n,), generator=generator).tolist() for n in lengths]
    return [{"prompt": "".join(LETTERS[i] for i in draw)} for draw in draws]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "gpt2"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    base = save(folder / "base", build(request.param, 0, layers=3, heads=4))
    tuned = save(folder / "tuned", build(request.param, 1))
    untuned = save(folder / "untuned", build(request.param, 2))
    search = SearchConfig(token_guidance="implicit", chunk_length=NUM_TOKENS)
    sampling = SamplingConfig(max_new_tokens=NUM_TOKENS, temperature=0.0)
    pair = PairConfig(
        tuned=ModelConfig(path=tuned, dtype="float32"),
        untuned=ModelConfig(path=untuned, dtype="float32"),
        beta=0.7,
    )
    infos = inspect_models(ModelConfig(path=base, dtype="float32"), [pair])
    lockstep = LockstepEngine(load_inspected(infos), search, sampling)
    tasks, _ = make_tasks(prompts(), lockstep.infos, sampling)
    expected = ids_of(lockstep, tasks)
    # Prompts of up to 128 tokens in steps of 64: prefill comes in pieces, beside rows that decode.
    args = {"enforce_eager": True, "max_num_batched_tokens": 64, "max_num_seqs": 16, "block_size": 32}
    engine = start(prepare(infos, search, sampling, engine_args=args))
    yield engine, tasks, expected
    engine.close()


def count_equal(engine: VllmEngine, tasks: Sequence[Task], expected: Sequence[tuple[int, ...]]) -> int:
    return sum(ids == wanted for ids, wanted in zip(ids_of(engine, tasks), expected, strict=True))


def test_batched_cold_then_warm_then_alone(engines: tuple) -> None:
    engine, tasks, expected = engines
    assert len(set(expected)) > NUM_PROMPTS // 2
    cold = count_equal(engine, tasks, expected)
    warm = count_equal(engine, tasks[::-1], expected[::-1])
    some = list(zip(tasks, expected, strict=True))[::4]
    alone = sum(count_equal(engine, [task], [wanted]) for task, wanted in some)
    print(f"equal: cold {cold}, warm {warm} of {NUM_PROMPTS}, alone {alone} of {len(some)}")
    assert min(cold, warm) >= NUM_PROMPTS - 1
    assert alone >= len(some) - 1
