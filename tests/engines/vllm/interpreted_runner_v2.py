# ruff: noqa: E402
"""Model runner V2 on a CPU: its Triton kernels by Triton's interpreter, which is slow and needs no compiler.

    python -m tests.engines.vllm.interpreted_runner_v2 RESULT.json

A process of its own: what it sets must stand before vLLM is imported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

os.environ |= {
    "TRITON_INTERPRET": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",  # the worker inherits what is set here
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}

import triton.backends

# On CPUs vLLM uses Triton where that has a backend of this name; the interpreter never asks it for anything.
triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))

import numpy as np
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.decoding.engine import Engine, in_order
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.engines.vllm.description import Description, GuideDescription, Member
from ivg.engines.vllm.engine import VllmEngine, guided_model_args, prepare, start
from ivg.engines.vllm.plugin import register
from ivg.engines.vllm.prompt_search import SearchSettings
from ivg.engines.vllm.row_settings import RowSettings
from ivg.models.loading import load_inspected
from ivg.models.plan import ModelInfos, inspect_models
from ivg.run.tasks import make_tasks
from tests.engines.contract import answers, make_stop_checker
from tests.engines.contract import make_tasks as make_world_tasks
from tests.engines.vllm.models import EOS, LETTERS, build, save, table_gpt2
from tests.engines.vllm.test_greedy import prompts
from tests.engines.worlds import LENGTH, build_world, enumerate_sequences, next_probs, p_value

OPTIONS = {"max_num_seqs": 6, "kv_cache_memory_bytes": 2**26, "max_num_batched_tokens": 256}
NUM_TOKENS = 12


def search_beside_lockstep(folder: Path) -> dict[str, object]:
    """Greedy token guidance ranked by a scalar value: ids, and the differences of values."""
    value = build("llama-value", 3, num_labels=1)
    value.config.architectures = ["LlamaForTokenClassification"]
    models = {
        "base": build("llama", 0, layers=3, heads=4),
        "tuned": build("llama", 1),
        "untuned": build("llama", 2),
        "value": value,
    }
    base, tuned, untuned, scorer = (
        ModelConfig(path=save(folder / name, model), dtype="float32") for name, model in models.items()
    )
    pair = PairConfig(tuned=tuned, untuned=untuned, beta=0.7)
    infos = inspect_models(base, [pair], [ValueConfig(model=scorer)])
    search = SearchConfig(token_guidance="implicit", chunk_guidance="explicit", chunk_length=6)
    sampling = SamplingConfig(max_new_tokens=NUM_TOKENS, temperature=0.0)
    lockstep = LockstepEngine(load_inspected(infos), search, sampling)
    tasks, _ = make_tasks(prompts()[:8], lockstep.infos, sampling)
    engine = start(prepare(infos, search, sampling, engine_args=OPTIONS))

    def beams(some: Engine) -> list:
        return [done.beams[0] for done in in_order(tasks, some.run(tasks))]

    expected, found = beams(lockstep), beams(engine)
    engine.close()
    return {
        "equal": sum(one.ids == other.ids for one, other in zip(expected, found, strict=True)),
        "distinct": len({one.ids for one in expected}),
        "worst_value": max(abs(a.value - b.value) for a, b in zip(expected, found, strict=True)),
    }


def betas_beside_a_draft_model(folder: Path) -> dict[str, object]:
    """Greedy requests of one batch with betas of their own, alone, beside a draft model, and by lockstep."""
    base, tuned, untuned = (
        ModelConfig(path=str(folder / name), dtype="float32") for name in ("base", "tuned", "untuned")
    )
    search = SearchConfig(token_guidance="implicit", chunk_length=NUM_TOKENS)
    greedy = SamplingConfig(max_new_tokens=NUM_TOKENS, temperature=0.0)
    betas = [0.5 * (i % 5) for i in range(8)]  # more requests than places
    record, found = prompts()[0], {}

    def infos_with(beta: float) -> ModelInfos:
        return inspect_models(base, [PairConfig(tuned=tuned, untuned=untuned, beta=beta)])

    def by_lockstep(beta: float) -> list[int]:
        engine = LockstepEngine(load_inspected(infos_with(beta)), search, greedy)
        tasks, _ = make_tasks([record], engine.infos, greedy)
        (done,) = engine.run(tasks)
        return list(done.beams[0].ids)

    found["lockstep"] = [by_lockstep(beta) for beta in betas]
    draft = {"model": "tuned", "num_speculative_tokens": 2}
    for name, args in (("alone", {}), ("drafted", {"speculative_config": draft})):
        prepared = prepare(infos_with(0.7), search, greedy, engine_args=OPTIONS | args)
        engine = LLMEngine.from_engine_args(EngineArgs(**prepared.engine_args))
        assert engine.vllm_config.use_v2_model_runner
        for i, beta in enumerate(betas):
            params = SamplingParams(
                temperature=0.0,
                max_tokens=NUM_TOKENS,
                stop_token_ids=[EOS],
                detokenize=False,
                extra_args=RowSettings((beta,)).to_extra_args(),
            )
            ids = [LETTERS.index(letter) for letter in str(record["prompt"])]
            engine.add_request(str(i), {"prompt_token_ids": ids}, params)
        ids_of = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    ids_of[int(output.request_id)] = list(output.outputs[0].token_ids)
        engine.engine_core.shutdown()
        found[name] = [ids_of[i] for i in range(len(betas))]
    return found


def distribution(folder: Path, num_samples: int) -> dict[str, float]:
    """Samples beside a draft model, against the enumeration of all sequences."""
    world, prompt = build_world(0, 4), (0, 0, 0)
    members = {}
    for name in ("base", "tuned", "untuned"):
        table = getattr(world, name)
        positions = np.concatenate([table[:1]] * (len(prompt) - 1) + [table] + [table[-1:]] * 5)
        table_gpt2(positions).save_pretrained(folder / f"world-{name}")
        members[name] = Member(path=str(folder / f"world-{name}"))
    guide = GuideDescription(members=(members["tuned"], members["untuned"]), num_shared=world.size, beta=1.0)
    description = Description(base=members["base"], guides=(guide,), num_base=world.size)
    register()
    source = ModelConfig(path=members["base"].path, dtype="float32")
    args = guided_model_args(source, description, context=len(prompt) + LENGTH + 3)
    draft = {"method": "draft_model", "model": members["tuned"].path, "num_speculative_tokens": 2}
    args |= OPTIONS | {"max_num_seqs": 128, "enforce_eager": True, "block_size": 32}
    settings = SearchSettings(
        description=description,
        rows=RowSettings((1.0,)),
        search=SearchConfig(token_guidance="implicit", chunk_length=LENGTH),
        sampling=SamplingConfig(max_new_tokens=LENGTH, temperature=0.8, seed=5),
        stop_checker=make_stop_checker((3,)),
    )
    engine = VllmEngine(LLMEngine.from_engine_args(EngineArgs(**args, speculative_config=draft)), settings)
    tasks = [
        dataclasses.replace(task, prompt_ids=dict.fromkeys(task.prompt_ids, prompt))
        for task in make_world_tasks(num_samples)
    ]
    counts = Counter(ids for ids, _ in answers(engine, tasks))
    engine.close()

    def p(beta: float) -> float:
        probs = next_probs(world.base, world.tuned, world.untuned, beta=beta, temperature=0.8)
        return p_value(counts, enumerate_sequences(probs, eos=3))

    return {"guided": p(1.0), "base": p(0.0)}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {
            "search": search_beside_lockstep(folder),
            "betas": betas_beside_a_draft_model(folder),
            "distribution": distribution(folder, 500),
        }
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
