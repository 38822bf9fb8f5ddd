"""Random `kill -9` on every job that promises to go on where it was: nothing lost, doubled or changed.

    make chaos KILLS=200            # or: python -m tests.chaos --kills 200 --only dpo judge

Each job runs once undisturbed; then it is started, killed at a random moment of its work, started again, and
so on, until it ends; what it left is compared with the undisturbed run. Every event is a line of
FOLDER/log.jsonl, so a session that was cut short goes on where it stopped. A kill that came when the work was
already done is written down, but does not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from tests import tiny
from tests.eval.judge_server import ReplayJudge
from tests.train.launching import (
    COMPLETIONS,
    PAIRS,
    REWARDED,
    ROOT,
    TINY,
    TRL_TINY,
    environment,
    launch_config,
    losses,
    path,
    write_config,
    write_rows,
)

MAX_KILLS_OF_A_RUN = 4  # then it is left to end, or a slow start would never be passed
PATIENCE = 900  # seconds for one start
RUNNING = "running.json"
TRAINING = ("sft", "dpo", "reward", "value")
JOBS = ("decode", "decode-2", *TRAINING, "zero2", "rollouts", "judge")


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that resumes.

    Attributes:
        command: from the folder of one run's outputs.
        result: what the run is judged by, from the same folder; raises OSError where it is not all there.
    """

    command: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, Any]]


class Log:
    """Events of all jobs, one a line, kept on disk."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.events: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]

    def add(self, job: str, what: str, **more: Any) -> None:
        event = {"job": job, "event": what, "time": round(time.time(), 1), **more}
        self.events.append(event)
        with self.file.open("a") as file:
            file.write(json.dumps(event) + "\n")

    def count(self, job: str, what: str) -> int:
        return sum(event["job"] == job and event["event"] == what for event in self.events)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def trained(folder: Path) -> dict[str, Any]:
    """Weights, every logged loss and the final evaluation."""
    out = folder / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    return {
        "weights": digest(out / "model.safetensors"),
        "losses": losses(out),
        "eval_loss": metrics["eval_loss"],
    }


def judged(folder: Path) -> dict[str, Any]:
    """Every preference, and how many answers are kept: none twice."""
    rows = json.loads((folder / "out" / "mine" / "annotations.json").read_text())
    return {
        "preferences": sorted([row["instruction"], row["preference"]] for row in rows),
        "answers": len((folder / "out" / "judge_answers.jsonl").read_text().splitlines()),
    }


def files(*names: str) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {name: digest(folder / name) for name in names}


def two_processes(folder: Path, name: str, script: Sequence[str]) -> list[str]:
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        launch_config(folder, name),
    ]
    return [*launcher, "--main_process_port", "0", *script]


def make_job(name: str, inputs: Path, judge: ReplayJudge) -> Job:
    """Write a job's inputs, the same ones at every start of this script."""
    inputs.mkdir(parents=True, exist_ok=True)
    model = str(inputs / "model")
    if not (inputs / "model").exists():
        tiny.save(inputs / "model", tiny.causal(0, dtype=torch.float32))
    train = str(ROOT / "train")
    if name in (*TRAINING, "zero2"):
        script = "dpo" if name == "zero2" else name
        source = {"value": REWARDED, "sft": COMPLETIONS}.get(script, PAIRS)
        rows = write_rows(inputs / "rows.jsonl", source)
        steps = 24 if name == "zero2" else 60
        keys = {
            **(TINY if script == "value" else TRL_TINY),
            **{"model_name_or_path": model, "dataset_name": rows, "eval_dataset_name": rows},
            **{"max_steps": steps, "save_strategy": "steps", "save_steps": steps // 6, "save_total_limit": 2},
            **({"per_device_train_batch_size": 2} if name == "zero2" else {}),
        }

        def command(folder: Path) -> list[str]:
            config = write_config(inputs / f"{folder.name}.yaml", **keys, output_dir=str(folder / "out"))
            words = [f"{train}/{script}.py", "--config", config]
            return two_processes(inputs, "zero2", words) if name == "zero2" else [sys.executable, *words]

        return Job(command, trained)
    prompts = [{"prompt": f"{a}{b}"} for a in "abcdefgh" for b in "abcdefghijkl"]
    if name == "rollouts":
        keys = {
            **{"model_name_or_path": model, "dataset_name": write_rows(inputs / "prompts.jsonl", prompts)},
            **{"reward_function": "tests.train.launching.letters", "max_new_tokens": 40},
            **{"num_samples": 4, "block_size": 4},
        }

        def command(folder: Path) -> list[str]:
            config = write_config(inputs / f"{folder.name}.yaml", **keys, output_dir=str(folder / "out"))
            return [sys.executable, f"{train}/rollouts.py", "--config", config]

        names = ("completions.jsonl", "preferences.jsonl", "statistics.json")
        return Job(command, files(*(f"out/{file}" for file in names)))
    if name == "judge":
        for author in ("reference", "mine"):
            answers = [
                {"instruction": row["prompt"], "output": f"{author} {row['prompt']}", "generator": author}
                for row in prompts
            ]
            (inputs / f"{author}.json").write_text(json.dumps(answers))

        def command(folder: Path) -> list[str]:
            words = ["--outputs", f"{inputs}/mine.json", "--reference", f"{inputs}/reference.json"]
            words += ["--endpoint", judge.url, "--output", f"{folder}/out", "--yes"]
            words += ["--judge_model", "small-judge"]
            return [sys.executable, str(ROOT / "eval" / "alpaca.py"), *words]

        return Job(command, judged)
    tiny.save(inputs / "value", tiny.value(4, num_labels=1, dtype=torch.float32))
    words = ["--base", model, "--value", str(inputs / "value"), "--chunk_guidance", "explicit"]
    words += ["--num_beams", "2", "--num_successors", "2", "--chunk_length", "4", "--max_new_tokens", "48"]
    words += ["--block_size", "6", "--max_batch_rows", "16", "--return_token_ids", "--device", "cpu"]
    words += ["--input", write_rows(inputs / "prompts.jsonl", prompts)]

    def command(folder: Path) -> list[str]:
        own = ["-m", "ivg.run.cli", *words, "--output", str(folder / "out.jsonl")]
        if name == "decode":
            return [sys.executable, *own]
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *own]

    return Job(command, files("out.jsonl"))


def start(job: Job, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    more = {"DS_ACCELERATOR": "cpu", "PATH": path(), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    with (folder.parent / f"{folder.name}.txt").open("ab") as printed:
        process = subprocess.Popen(
            job.command(folder), env={**environment(), **more}, cwd=ROOT, stdout=printed, stderr=printed
        )
    signature = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
    (folder.parent / RUNNING).write_text(json.dumps(signature))
    return process


def end_leftover(folder: Path) -> None:
    """Kill the run that an earlier session started in a job's folder, if that session was itself killed."""
    if not (folder / RUNNING).exists():
        return
    signature = json.loads((folder / RUNNING).read_text())
    try:
        parent = psutil.Process(signature["pid"])
        if parent.create_time() == signature["created"]:
            kill_tree(parent)
            parent.wait()
    except psutil.NoSuchProcess:
        pass
    (folder / RUNNING).unlink()


def state_of(folder: Path) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of what a run has written up to now."""
    found = []
    for file in folder.rglob("*"):
        try:
            status = file.stat()
        except OSError:  # gone in the meantime
            continue
        found.append((str(file), status.st_size, status.st_mtime_ns))
    return sorted(found)


def wait_for_work(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until a run writes something, or ends."""
    before, deadline = state_of(folder), time.monotonic() + PATIENCE
    while process.poll() is None and state_of(folder) == before:
        if time.monotonic() > deadline:
            kill(process)
            raise SystemExit(f"{folder}: nothing written in {PATIENCE} s; see {folder}.txt")
        time.sleep(0.01)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a run's processes, and no others."""
    kill_tree(psutil.Process(process.pid))
    process.wait()


def kill_tree(parent: psutil.Process) -> None:
    """Kill a process and what it started: launchers give every rank a session of its own."""
    for one in (*parent.children(recursive=True), parent):
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def run_whole(name: str, job: Job, folder: Path, log: Log) -> float:
    """Run a job undisturbed, once; returns how many seconds it worked."""
    known = [e["seconds"] for e in log.events if e["job"] == name and "seconds" in e]
    if known and folder.exists():
        return float(min(known))
    shutil.rmtree(folder, ignore_errors=True)
    process = start(job, folder)
    wait_for_work(process, folder)
    begun = time.monotonic()
    if process.wait(PATIENCE) != 0:
        raise SystemExit(f"{name}: failed undisturbed; see {folder}.txt")
    seconds = time.monotonic() - begun
    log.add(name, "whole", seconds=round(seconds, 2), result=job.result(folder))
    return seconds


def is_done(job: Job, folder: Path, expected: dict[str, Any]) -> bool:
    """Tell whether the work was done, whatever became of the process."""
    try:
        return json.loads(json.dumps(job.result(folder))) == expected
    except (OSError, ValueError, KeyError):
        return False


def torment(name: str, job: Job, folder: Path, log: Log, wanted: int, chance: random.Random) -> None:
    """Kill runs of a job until enough kills are counted, and compare what each run leaves in the end."""
    seconds = run_whole(name, job, folder / "whole", log)
    expected = json.loads(json.dumps(job.result(folder / "whole")))
    killed = folder / "killed"
    while log.count(name, "kill") < wanted:
        since_end = 0
        for event in log.events:
            if event["job"] == name:
                since_end = (
                    0 if event["event"] in ("same", "different") else since_end + (event["event"] == "kill")
                )
        is_new = not killed.exists()
        process = start(job, killed)
        wait_for_work(process, killed)
        begun = time.monotonic()
        if since_end < MAX_KILLS_OF_A_RUN:
            moment = chance.uniform(0, seconds)
            deadline = begun + moment
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
        else:
            process.wait(PATIENCE)
        if process.poll() is None:
            kill(process)
            done = is_done(job, killed, expected)
            log.add(name, "late" if done else "kill", after=round(moment, 3))
            if not done:
                continue
        elif process.returncode != 0:
            log.add(name, "different", why=f"exit code {process.returncode}; see {killed}.txt")
            killed.rename(folder / f"failed-{int(time.time())}")
            continue
        elif is_new:  # undisturbed; the first time may have compiled something
            seconds = min(seconds, time.monotonic() - begun)
            log.add(name, "ended", seconds=round(seconds, 2))
        same = is_done(job, killed, expected)
        log.add(name, "same" if same else "different")
        if same:
            shutil.rmtree(killed)
        else:
            killed.rename(folder / f"different-{int(time.time())}")
    finish(name, job, killed, expected, log)


def finish(name: str, job: Job, killed: Path, expected: dict[str, Any], log: Log) -> None:
    """Let the last run end, undisturbed, and compare."""
    if not killed.exists():
        return
    process = start(job, killed)
    code = process.wait(PATIENCE)
    same = code == 0 and is_done(job, killed, expected)
    log.add(name, "same" if same else "different", **({} if same else {"why": f"exit code {code}"}))
    if same:
        shutil.rmtree(killed)


def show(log: Log, jobs: Sequence[str]) -> bool:
    """Print the table; tells whether every run came out the same."""
    table = Table("job", "kills", "too late", "runs compared", "different", title="kill -9 at random moments")
    total: Counter[str] = Counter()
    for job in jobs:
        row = {what: log.count(job, what) for what in ("kill", "late", "same", "different")}
        total.update(row)
        compared = row["same"] + row["different"]
        table.add_row(job, *map(str, (row["kill"], row["late"], compared, row["different"])))
    compared = total["same"] + total["different"]
    table.add_row("all", *map(str, (total["kill"], total["late"], compared, total["different"])))
    Console().print(table)
    return total["different"] == 0


def slow_judge() -> ReplayJudge:
    """A judge that needs a moment for each answer, so that there is something to interrupt."""
    tops = [{"token": "m", "bytes": None, "logprob": -1.6}, {"token": "M", "bytes": None, "logprob": -0.2}]
    choice = {
        **{"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "M"}},
        "logprobs": {"content": [{**tops[1], "top_logprobs": tops}]},
    }
    names = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefghijkl"]
    judge = ReplayJudge(dict.fromkeys(names, choice))
    pause = threading.Event()
    judge.on_answer = lambda count: pause.wait(0.05) and None
    return judge


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills that count, over all jobs")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), help="jobs; default: all")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "chaos", help="inputs, outputs and log"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of the moments; default: new ones at every start"
    )
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    log, chance = Log(folder / "log.jsonl"), random.Random(given.seed)
    share = -(-given.kills // len(given.only))
    with slow_judge() as judge:
        # Its address is another one at every start, and part of the judged run's settings.
        shutil.rmtree(folder / "judge" / "killed", ignore_errors=True)
        for name in given.only:
            end_leftover(folder / name)
            job = make_job(name, folder / name / "inputs", judge)
            torment(name, job, folder / name, log, share, chance)
    sys.exit(0 if show(log, given.only) else 1)


if __name__ == "__main__":
    main()
