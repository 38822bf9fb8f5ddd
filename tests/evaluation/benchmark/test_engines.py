"""Engines side by side: all arms do the same work, and what it costs at the least is counted right."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ivg.evaluation.benchmark.model_folders import (
    StepCost,
    cost_ratio,
    inspect_folders,
    save_models,
    step_cost,
)
from ivg.evaluation.benchmark.workloads import WORKLOADS, Shape, Workload, model_config
from tests import tiny
from tests.eval.scripts import load

H, M, V, LAYERS = 32, 48, 40, 2


def workload(architecture: str, heads: int = 2) -> Workload:
    shape = Shape(layers=LAYERS, hidden=H, heads=heads, kv_heads=1, intermediate=M)
    return Workload(
        name="tiny",
        architecture=architecture,  # type: ignore[arg-type]
        base=shape,
        guide=dataclasses.replace(shape, layers=1),
        vocab_size=V,
        num_prompts=3,
        prompt_lengths=(4, 7),
        new_tokens=9,
        search=dataclasses.replace(WORKLOADS["short"].search, num_beams=2, num_successors=2, chunk_length=3),
    )


def test_a_step_s_least_cost_by_hand() -> None:
    work = workload("llama")
    kv = H // 2  # one head of two
    attention_weights = 2 * H * H + 2 * H * kv  # queries and output, keys and values
    weights = LAYERS * (attention_weights + 3 * H * M) + V * H
    found = step_cost(model_config(work, work.base), num_rows=5, columns=10, itemsize=2)
    assert found.flops == 2 * weights + LAYERS * 4 * 10 * H
    assert found.bytes == 2 * (weights + 5 * LAYERS * 2 * 10 * kv)
    gpt2 = step_cost(model_config(workload("gpt2"), work.base), num_rows=1, columns=0, itemsize=4)
    assert gpt2.bytes == 4 * (LAYERS * (4 * H * H + 8 * H * H) + V * H)


def test_base_and_guides_cost_their_sum() -> None:
    found = cost_ratio(StepCost(100, 10), [StepCost(20, 5), StepCost(30, 5)])
    assert found == StepCost(1.5, 2)


def test_both_kinds_of_guidance_sample_as_many_tokens() -> None:
    bench = load("bench_engines")
    work = workload("gpt2")
    token, ivg = (bench.Case(work, guidance, 3) for guidance in ("token", "ivg"))
    assert token.num_rows == ivg.num_rows == 3 * 4
    tasks = token.tasks(["base", "tuned"])
    assert [(task.index, task.prompt_id, task.sample) for task in tasks[:5]] == [
        *((i, "0", i) for i in range(4)),
        (4, "1", 0),
    ]
    assert {task.max_tokens for task in tasks} == {9}
    assert [task.prompt_id for task in ivg.tasks(["base"])] == ["0", "1", "2"]
    assert (ivg.search.rows_per_prompt, token.search.rows_per_prompt) == (4, 1)


@pytest.mark.parametrize("guidance", ["token", "ivg"])
def test_lockstep_s_arm_runs_to_the_last_token(tmp_path: Path, guidance: str) -> None:
    bench = load("bench_engines")
    work = workload("gpt2")
    save_models(work, tmp_path)
    case = bench.Case(work, guidance, 2)
    infos = inspect_folders(tmp_path, "float32")
    assert infos.values[0].model.kind == "scalar"
    found = bench.run_arm(case, bench.LOCKSTEP, infos)
    assert found["seconds"] > 0


def test_a_base_of_the_user_s_brings_its_vocabulary(tmp_path: Path) -> None:
    from ivg.errors import UserError

    given = tmp_path / "given"
    tiny.save(given, tiny.llama(0))
    size = len(tiny.LETTERS) + 2
    work = dataclasses.replace(workload("llama"), vocab_size=size)
    models = tmp_path / "models"
    models.mkdir()
    save_models(work, models, given)
    infos = inspect_folders(models, "float32")
    assert infos.values[0].model.tokenizer.get_vocab() == infos.base.tokenizer.get_vocab()
    assert infos.base.config.num_hidden_layers == 2
    with pytest.raises(UserError, match=f"has {size} token ids, and the guides of tiny 40"):
        save_models(workload("llama"), tmp_path, given)
    with pytest.raises(UserError, match="reads 64 tokens, and tiny needs 77"):
        save_models(dataclasses.replace(work, new_tokens=70), tmp_path, given)


def test_arms_run_in_turns_and_ratios_are_those_of_a_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = load("bench_engines")
    seconds = {
        bench.LOCKSTEP: [9.0, 30.0, 12.0],
        bench.NO_LOOP: [10.0, 20.0, 30.0],
        bench.VLLM: [6.0, 10.0, 4.0],
        bench.UNGUIDED: [4.0, 5.0, 2.0],
    }
    measured: list[str] = []

    def ran(case: object, arm: str, models: Path, dtype: str) -> dict[str, float]:
        measured.append(arm)
        cache = {"prefix_cache_hit_rate": 0.5, "recomputed_tokens_per_request": 3.0}
        return {"seconds": seconds[arm][measured.count(arm) - 1], **cache}

    path = tmp_path / "engines.json"
    monkeypatch.setattr(bench, "run_in_fresh_process", ran)
    monkeypatch.setattr(bench, "refuse_absence", lambda: ())
    monkeypatch.setitem(WORKLOADS, "long", workload("llama"))
    flags = ["--workloads", "long", "--guidance", "token", "--runs", "3", "--output", str(path)]
    monkeypatch.setattr("sys.argv", ["bench_engines.py", *flags])
    bench.main()
    assert measured == list(seconds) * 3
    found = json.loads(path.read_text())["results"]["long, token"]
    guided = found["arms"][bench.VLLM]
    assert guided["ratios_to_base_alone"] == [1.5, 2.0, 2.0]
    assert guided["seconds_per_prompt"] == 2.0
    assert guided["sampled_tokens_per_second"] == 3 * 4 * 9 / 6
    assert guided["beyond_the_least"] == 2.0 / max(found["flops_ratio"], found["bytes_ratio"])
    assert found["arms"][bench.LOCKSTEP]["ratio_to_base_alone"] == 6.0
    told = capsys.readouterr().out
    assert "medians of 3 runs in turns" in told
    assert f"within {bench.MAX_RATIO}" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs", "2"], "runs is 2; give an odd number"),
        (["--runs", "-1"], "runs is -1; give an integer >= 1"),
        (["--prompts", "0"], "prompts is 0; give an integer >= 1"),
        (["--base", "nowhere"], "base nowhere has no config.json"),
    ],
)
def test_bad_options_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_engines.py", *flags])
    with pytest.raises(SystemExit) as ended:
        load("bench_engines").main()
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_the_shape_of_smollm2_has_135_million_weights() -> None:
    from transformers import AutoModelForCausalLM

    work = WORKLOADS["smollm2"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(work, work.base))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 135
