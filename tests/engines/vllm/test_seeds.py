"""The same seed gives the same responses: batched, turned around, alone, with the cache cold and warm."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.decoding.engine import in_order
from ivg.engines.vllm.engine import VllmEngine, prepare, start
from ivg.models.plan import inspect_models, plan_guides, reading_models
from ivg.run.tasks import make_tasks
from tests.engines.vllm.models import build, save
from tests.engines.vllm.test_greedy import prompts

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


def test_company_order_and_cache_change_nothing(tmp_path: Path) -> None:
    value = build("llama-value", 3, num_labels=1)
    value.config.architectures = ["LlamaForTokenClassification"]
    models = {
        "base": build("llama", 0, layers=3, heads=4),
        "tuned": build("llama", 1),
        "untuned": build("llama", 2),
        "value": value,
    }
    base, tuned, untuned, scorer = (
        ModelConfig(path=save(tmp_path / name, model), dtype="float32") for name, model in models.items()
    )
    search = SearchConfig(
        token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=2, chunk_length=6
    )
    sampling = SamplingConfig(max_new_tokens=18, seed=5)
    pair, scores = PairConfig(tuned=tuned, untuned=untuned, beta=0.7), ValueConfig(model=scorer)
    infos = inspect_models(base, [pair], [scores])
    readers = reading_models(infos.base, plan_guides(infos, search))
    tasks, _ = make_tasks(prompts()[:32], readers, sampling)
    prepared = prepare(infos, search, sampling, engine_args={"enforce_eager": True, "block_size": 32})
    engine: VllmEngine = start(prepared)

    def decode(some: list) -> list:
        return [(f.beams[0].ids, f.beams[0].finish_reason) for f in in_order(some, engine.run(some))]

    cold = decode(tasks)
    assert len(set(cold)) == len(cold)
    assert decode(tasks) == cold
    assert decode(tasks[::-1])[::-1] == cold
    assert [decode([task])[0] for task in tasks[:8]] == cold[:8]

    # A caller that stops asking leaves nothing running.
    run = engine.run(tasks)
    next(run)
    assert engine.num_requests > 0
    run.close()
    assert engine.num_requests == 0
    engine.close()
