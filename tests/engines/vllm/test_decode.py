"""`ivg-decode` with engine: vllm, from flags and YAML to files: answers, resume, refusals, dead processes."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

import psutil
import yaml

from ivg.run import cli
from tests import tiny
from tests.engines.vllm.models import LETTERS, build, save

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
ROOT = Path(__file__).parents[3]
NUM_PROMPTS = 60
SEARCH = {"chunk_guidance": "explicit", "num_beams": 2, "num_successors": 2, "chunk_length": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    value = build("llama-value", 3, num_labels=1)
    value.config.architectures = ["LlamaForTokenClassification"]
    models = {
        "base": build("llama", 0, layers=3, heads=4),
        "tuned": build("llama", 1),
        "untuned": build("llama", 2),
        "value": value,
    }
    for name, model in models.items():
        save(folder / name, model)
    tiny.save(folder / "narrow", tiny.llama(5).float())  # heads of 8
    prompts = [
        "".join(LETTERS[(3 * i + 5 * k) % len(LETTERS)] for i in range(10 + k)) for k in range(NUM_PROMPTS)
    ]
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    return folder


def write_config(folder: Path, name: str, **keys: Any) -> str:
    models: dict[str, Any] = {
        "base": {"path": str(folder / "base"), "dtype": "float32"},
        "pairs": [
            {m: {"path": str(folder / m), "dtype": "float32"} for m in ("tuned", "untuned")} | {"beta": 0.7}
        ],
        "values": [{"path": str(folder / "value"), "dtype": "float32"}],
        "input": str(folder / "prompts.jsonl"),
        "sampling": {"max_new_tokens": 30},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(models | keys), encoding="utf-8")
    return str(file)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_greedy_responses_are_those_of_lockstep(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {
        "search": {"token_guidance": "implicit"},
        "sampling": {"temperature": 0.0, "max_new_tokens": 24},
        "return_token_ids": True,
        "limit": 32,
    }
    config = write_config(folder, "greedy", **keys)
    outputs = {name: folder / f"{name}.jsonl" for name in ("lockstep", "vllm")}
    assert cli.main(["--config", config, "--output", str(outputs["lockstep"])]) == 0
    capsys.readouterr()
    given = ["vllm.max_num_seqs=16", "--engine", "vllm", "--stream"]
    assert cli.main(["--config", config, *given, "--output", str(outputs["vllm"])]) == 0
    expected, found = (read_lines(outputs[name]) for name in ("lockstep", "vllm"))
    assert len({tuple(line["token_ids"]) for line in expected}) > 16
    assert found == expected
    pieces: dict[str, str] = {}
    for line in capsys.readouterr().out.splitlines():
        piece = json.loads(line)
        pieces[piece["prompt_id"]] = pieces.get(piece["prompt_id"], "") + piece["text"]
    assert sorted(pieces.values()) == sorted(line["response"] for line in found)
    manifest = json.loads((folder / "vllm.jsonl.manifest.json").read_text())
    assert (manifest["settings"]["engine"], manifest["settings"]["vllm"]) == ("vllm", {"max_num_seqs": 16})
    assert manifest["environment"]["packages"]["vllm"][0].isdigit()
    # A second run has nothing to do, and one with other arguments of vLLM is another run.
    before = outputs["vllm"].read_bytes()
    assert cli.main(["--config", config, *given[:-1], "--output", str(outputs["vllm"])]) == 0
    assert outputs["vllm"].read_bytes() == before
    assert refusal_of(capsys, config, "--engine", "vllm", output=outputs["vllm"]).startswith(
        f"error: output {outputs['vllm']}"
    )


def prefer_short(record: dict[str, Any], responses: list[str]) -> list[float]:
    return [-1000.0 * len(response) for response in responses]


def test_search_with_a_function_a_trace_and_stop_strings(folder: Path) -> None:
    name = f"{__name__}.{prefer_short.__name__}"
    values = [{"path": str(folder / "value"), "dtype": "float32"}, {"function": name}]
    config = write_config(
        folder,
        "search",
        engine="vllm",
        search=SEARCH,
        values=values,
        sampling={"max_new_tokens": 18, "stop": [LETTERS[3], LETTERS[60]], "seed": 2},
        return_beams=True,
        limit=20,
    )
    output, trace = folder / "search.jsonl", folder / "trace.jsonl"
    assert cli.main(["--config", config, "--output", str(output), "--trace", str(trace)]) == 0
    reasons = set()
    for line, traced in zip(read_lines(output), read_lines(trace), strict=True):
        assert not {LETTERS[3], LETTERS[60]} & set(line["response"])
        values_of = [beam["value"] for beam in line["beams"]]
        assert len(values_of) == 2
        assert values_of == sorted(values_of, reverse=True)
        assert all(abs(beam["value"] + 1000 * len(beam["text"])) < 100 for beam in line["beams"])
        last = traced["chunks"][-1]["candidates"]
        kept = sorted((c for c in last if c["kept"] is not None), key=lambda c: c["kept"])
        assert [c["value"] for c in kept] == values_of
        assert traced["token_logratios"] == [0.0] * line["num_tokens"]
        reasons.add(line["finish_reason"])
    assert "stop" in reasons


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return vLLM's workers."""
    return [p for p in psutil.Process(process.pid).children() if "VLLM::" in " ".join(p.cmdline())]


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process is there and not merely waiting to be reaped."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_and_wait(arguments: list[str], is_far_enough: Callable[[], bool]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "ivg.run.cli", *arguments],
        cwd=ROOT,
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not is_far_enough():
        time.sleep(0.005)
    return process


def test_killed_it_goes_on_with_nothing_lost_or_doubled(folder: Path) -> None:
    """First vLLM's worker is killed, which ends the run in one line; then the whole process."""
    config = write_config(
        folder,
        "killed",
        engine="vllm",
        search=SEARCH | {"token_guidance": "implicit"},
        sampling={"max_new_tokens": 48},
        block_size=6,
    )
    output = folder / "killed.jsonl"
    arguments = ["--config", config, "--output", str(output)]

    def num_lines() -> int:
        return output.read_text(encoding="utf-8").count("\n") if output.exists() else 0

    process = start_and_wait(arguments, lambda: num_lines() >= 8)
    (worker,) = children_of(process)
    worker.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors[-2000:]
    assert f"the same command goes on from {output}\n" in errors
    assert "Traceback" not in errors.partition("error: vLLM has ended")[2]

    first = output.read_bytes()
    process = start_and_wait(arguments, lambda: num_lines() >= first.count(b"\n") + 8)
    workers = children_of(process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert workers
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
    second = output.read_bytes()
    assert 8 <= first.count(b"\n") < second.count(b"\n") < NUM_PROMPTS

    assert cli.main(arguments) == 0
    final = output.read_bytes()
    for earlier in (first, second):
        assert final.startswith(earlier[: earlier.rfind(b"\n") + 1])
    assert [line["prompt"] for line in read_lines(output)] == [
        line["prompt"] for line in read_lines(folder / "prompts.jsonl")
    ]


def refusal_of(
    capsys: pytest.CaptureFixture[str], config: str, *arguments: str, output: Path | None = None
) -> str:
    capsys.readouterr()  # what earlier runs said
    with pytest.raises(SystemExit) as stop:
        cli.main(["--config", config, *arguments, "--output", str(output or Path(config + ".jsonl"))])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "vllm.gpu_memory_utilisation=0.5",
            "vllm.gpu_memory_utilisation: vLLM has no such argument; did you",
        ),
        ("vllm.max_num_seqs=many", "engine vllm: vLLM refuses this run: "),
        ("vllm.enable_chunked_prefill=true", "enable_chunked_prefill: on a CPU"),
        (
            "vllm.speculative_config={model: tuned, num_speculative_tokens: 2}",
            "vllm.speculative_config.model tuned: no pair takes part",
        ),
        (
            "vllm.speculative_config={model: base, num_speculative_tokens: 2}",
            "vLLM's CPU build judges drafts by another temperature",
        ),
        ("vllm.max_model_len=40", "exceed vllm.max_model_len 40"),
        ("base.path=narrow", "attention heads of size 8: on CPUs vLLM takes 32, 64"),
    ],
)
def test_what_vllm_cannot_do_here_is_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    config = write_config(folder, "refused", engine="vllm", limit=4)
    assert message in refusal_of(capsys, config, override)


def test_the_second_model_runner_is_refused_without_triton(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    config = write_config(folder, "second_runner", engine="vllm")
    assert "model runner V2 needs Triton, which this machine has not; unset it" in refusal_of(capsys, config)


def test_a_dry_run_lists_every_refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(folder, "dry", engine="vllm")
    assert cli.main(["--config", config, "--dry_run"]) == 0
    assert "engine: vllm 0." in capsys.readouterr().out
    overrides = ["sampling.temperature=0.005", "vllm.nothing=1", "vllm.dtype=float16", "max_batch_rows=8"]
    assert cli.main(["--config", config, *overrides, "--dry_run"]) == 2
    told = " ".join(capsys.readouterr().out.split())
    for asked in ("temperature 0.005", "vllm.nothing", "vllm.dtype", "max_batch_rows 8"):
        assert f"problem: engine vllm: {asked}: " in told


def test_vllm_that_cannot_start_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "")
    config = write_config(folder, "memory", engine="vllm", vllm={"kv_cache_memory_bytes": 2**50})
    output = folder / "memory.jsonl"
    assert cli.main(["--config", config, "--output", str(output)]) == 1
    gc.collect()  # what was half started ends now, not while another test's engine runs
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: vLLM could not start: Available memory on node")
    assert last.endswith(f"; the same command goes on from {output}")
