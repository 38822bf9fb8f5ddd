"""The benchmark's rungs do the same work: the yardstick decodes what the engine decodes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.acceleration import Accelerations
from ivg.engines.lockstep.loop import Loop
from ivg.evaluation.benchmark import naive
from ivg.evaluation.benchmark.ablation import measure_ablation
from ivg.evaluation.benchmark.floor import Floor, bytes_per_prompt
from ivg.evaluation.benchmark.gpu import measure_on_gpu, rows_that_fit
from ivg.evaluation.benchmark.measure import RUNGS, measure
from ivg.evaluation.benchmark.workloads import WORKLOADS, Shape, Workload, build_models, build_rows
from tests.eval.scripts import load
from tests.tiny import scale_up

NUM_ROWS, NUM_NEW, LENGTH = 4, 9, 3


def workload(architecture: str) -> Workload:
    shape = Shape(layers=2, hidden=16, heads=2, intermediate=24)
    return Workload(
        name="tiny",
        architecture=architecture,  # type: ignore[arg-type]
        base=shape,
        guide=shape,
        vocab_size=40,
        num_prompts=3,
        prompt_lengths=(4, 7),
        new_tokens=NUM_NEW,
        search=dataclasses.replace(
            WORKLOADS["short"].search, num_beams=2, num_successors=2, chunk_length=LENGTH
        ),
        temperature=1e-5,  # every draw is the likeliest token
    )


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_yardstick_decodes_what_the_engine_does(architecture: str) -> None:
    work = workload(architecture)
    models = build_models(work, torch.float64, "cpu")
    for i, model in enumerate((models.base, models.tuned, models.untuned, models.value)):
        scale_up(model, factor=10.0, seed=i)
    plain = [naive.decode(models, work, prompt) for prompt in work.prompts()]
    rows = build_rows(models, work)
    stop_checker = StopChecker([], [], lambda ids: "")
    loop = Loop(rows, work.search, work.sampling, stop_checker, max_rows=100)
    found = {done.task.index: done.beams[0].ids for done in loop.run(work.tasks())}
    assert [found[i] for i in range(3)] == [tuple(ids.tolist()) for _, ids in plain]
    assert len({token for ids in found.values() for token in ids}) > 5

    # The yardstick's guides: the pair reads the prompt in every row and then each token, the value model
    # the whole text at each of three boundaries.
    prompt = len(work.prompts()[0])
    text = sum(prompt + end for end in (LENGTH, 2 * LENGTH, 3 * LENGTH))
    assert plain[0][0] == NUM_ROWS * (2 * prompt + 2 * NUM_NEW + text)
    # The engine's runners read each prompt once, then all sampled tokens but those at a chunk's end: these
    # are scored from the state before them, and read by the rows that live on.
    prompts, sampled = sum(map(len, work.prompts())), 3 * NUM_ROWS * NUM_NEW
    lived_on = 3 * 2 * (NUM_NEW // LENGTH - 1)  # a boundary's last tokens, fed once for each kept beam
    inside = sampled - 3 * NUM_ROWS * (NUM_NEW // LENGTH)
    assert [runner.tokens_fed for runner in rows.runners] == [prompts + inside + lived_on] * 4


def test_what_must_be_read_by_hand() -> None:
    work = workload("gpt2")
    rows = build_rows(build_models(work, torch.float32, "cpu"), work)
    layers = 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64)  # attention in and out, MLP in and out
    weights = (
        NUM_NEW * 3 * (layers + 40 * 16) + NUM_NEW / LENGTH * layers
    )  # three with an output layer; value
    columns = (4 + 7) / 2 + NUM_NEW / 2
    states = (NUM_NEW * 3 + NUM_NEW / LENGTH) * columns * 2 * 2 * 16  # keys and values of two layers
    assert bytes_per_prompt(work, rows, 1, 4) == 4 * (weights + states)
    assert bytes_per_prompt(work, rows, 2, 2) == 2 * (weights / 2 + states)


def test_the_floor_is_the_larger_bound() -> None:
    assert Floor(memory_seconds=2.0, arithmetic_seconds=1.0).seconds == 2.0
    assert Floor(memory_seconds=0.5, arithmetic_seconds=1.0).seconds == 1.0


def test_every_rung_can_be_measured() -> None:
    for rung in RUNGS:
        found = measure(
            workload("gpt2"), rung, dtype=torch.float32, device="cpu", num_prompts=2, max_batch_rows=8
        )
        assert found["seconds_per_prompt"] > 0
        assert found["guide_tokens_per_prompt"] > 0
        assert ("share_of_floor" in found) == (rung != "naive")
        if rung != "naive":
            floor = max(found["floor_memory_seconds"], found["floor_arithmetic_seconds"])
            assert found["share_of_floor"] == pytest.approx(floor / found["seconds_per_prompt"])
            assert 0 < found["share_of_floor"] < 1


def test_the_ladder_takes_medians_of_runs_in_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    seconds = {
        "naive": [8.0, 7.0, 12.0],
        "kept caches": [4.0, 5.0, 3.0],
        "batched prompts": [1.0, 2.0, 9.0],
        "continuous batching": [2.5, 1.5, 1.6],
    }
    measured: list[str] = []

    def measured_before(workload: str, rung: str, options: object) -> dict[str, object]:
        measured.append(rung)
        return {
            "seconds_per_prompt": seconds[rung][measured.count(rung) - 1],
            "returned_tokens_per_second": 1.0,
            "sampled_tokens_per_second": 4.0,
            "guide_tokens_per_prompt": 10,
            "peak_memory_mib": 100.0,
            "matmul_gflops": [1.0, 1.0],
        }

    bench, path = load("bench"), tmp_path / "found.json"
    monkeypatch.setattr(bench, "in_fresh_process", measured_before)
    flags = ["--workloads", "short", "--runs", "3", "--device", "cpu", "--output", str(path)]
    monkeypatch.setattr("sys.argv", ["bench.py", *flags])
    bench.main()
    assert measured == list(seconds) * 3
    assert "medians of 3 runs" in capsys.readouterr().out
    found = json.loads(path.read_text())["results"]["short"]
    assert {rung: result["seconds_per_prompt"] for rung, result in found.items()} == {
        "naive": 8.0,
        "kept caches": 4.0,
        "batched prompts": 2.0,
        "continuous batching": 1.6,
    }
    assert found["continuous batching"]["ratio_to_naive"] == 5
    assert found["kept caches"]["seconds_per_prompt_of_runs"] == [4, 5, 3]


def test_the_ablation_switches_each_off_alone() -> None:
    found = measure_ablation(workload("gpt2"), dtype=torch.float32, num_prompts=2, max_batch_rows=8, runs=3)
    without = {f"without {name}" for name in Accelerations.names()}
    assert set(found) == {"all", "none"} | without
    assert found["all"]["ratios"] == [1.0] * 3
    for result in found.values():
        assert len(result["seconds_per_prompt"]) == len(result["ratios"]) == 3
        assert result["median_ratio"] == sorted(result["ratios"])[1] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs", "0"], "runs is 0; give an odd number"),
        (["--runs", "2"], "runs is 2; give an odd number"),
        (["--runs", "5", "--lengths", "6", "9"], "--lengths takes three runs"),
        (["--lengths", "9", "6"], "lengths are [9, 6]; give a short and a longer one"),
        (["--max_batch_rows", "8"], "max_batch_rows is 8; the workloads need at least 16"),
    ],
)
def test_bad_options_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.py", *flags])
    with pytest.raises(SystemExit) as ended:
        load("bench").main()
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_the_command_measures_one_rung(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(WORKLOADS, "short", workload("gpt2"))
    monkeypatch.setattr("sys.argv", ["bench.py", "--one", "short", "batched prompts", "--prompts", "2"])
    load("bench").main()
    assert json.loads(capsys.readouterr().out)["num_prompts"] == 2


def test_the_rungs_of_the_gpu_check_run_where_there_is_no_gpu() -> None:
    work = workload("llama")
    found = dict(measure_on_gpu(work, dtype=torch.float32, device="cpu"))
    assert list(found) == ["naive", "kept caches", "continuous batching", "base alone, as many rows"]
    assert [figures["rows"] for figures in found.values()] == [4, 4, 12, 12]
    for figures in found.values():
        assert figures["milliseconds_per_step"] > 0


def test_rows_that_fit_the_card_are_whole_prompts() -> None:
    work = WORKLOADS["chat-7b"]
    # Four Llamas of 7 billion weights in two bytes take 50.2 GiB; 632 columns of 4 x 32 layers of 2 x 4,096
    # numbers, with 1.4 times the room, take 1.73 GiB a row.
    assert rows_that_fit(work, 2, 80 * 2**30) == 12
    assert rows_that_fit(work, 2, 40 * 2**30) < 4
    assert rows_that_fit(work, 2, 10**15) == 128
