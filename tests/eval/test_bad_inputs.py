"""Bad inputs to every evaluation command: one line that names what is wrong, exit code 2, no traceback."""

# ruff: noqa: E501 - a line of the table is a case

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from ivg.__main__ import EVALUATIONS
from ivg.run.lock import hold_lock, lock_path
from tests.eval import scripts
from tests.evaluation import tiny

COMMANDS = {
    name: scripts.load(name)
    for name in (
        "alpaca",
        "bench",
        "boards",
        "gold_reward",
        "gpu_check",
        "ifeval",
        "judge",
        "report",
        "reward_accuracy",
        "reproducibility",
        "speed",
        "sweep",
    )
}
DEEP, DIGITS = b"[" * 100_000, b"9" * 5_000
FUNCTIONS = {
    "good": "def reward(rows, responses):\n    return [float(len(text)) for text in responses]\n",
    "syntax": "def reward(rows, responses:\n",
    "import_error": "raise RuntimeError('no such GPU')\n",
    "leaves": "import sys\nsys.exit(0)\n",
    "raising": "def reward(rows, responses):\n    return 1 / 0\n",
    "endless": "def reward(rows, responses):\n    return [float('inf') for _ in responses]\n",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What every case starts from: models, decoded files, a grid, AlpacaEval's files, results."""
    folder = tmp_path_factory.mktemp("whole")
    for name, seed in {"base": 0, "tuned": 1, "untuned": 2}.items():
        tiny.model(seed).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    for name in ("one", "two"):
        rows = [{"id": i, "prompt": f"w{i}", "response": f"w{i} w3", "num_tokens": 2} for i in range(2)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in FUNCTIONS.items():
        (folder / f"function_{name}.py").write_text(text)
    (folder / "prompts.jsonl").write_text('{"prompt": "w1 w2"}\n')
    for name in ("reference", "mine"):
        outputs = [{"instruction": n, "output": f"{name} {n}", "generator": name} for n in ("a", "b")]
        (folder / f"{name}.json").write_text(json.dumps(outputs))
    (folder / "decode.yaml").write_text("base: base\n")
    write_judged(folder)
    write_grid(folder)
    return folder


def write_judged(folder):
    """Write what is judged or checked: recordings, preferences, boards' questions, IFEval's prompts."""
    texts = {"instruction": "a", "output_1": "x", "output_2": "y", "generator_2": "mine"}
    write("recorded.json", [{**texts, "preference": 2}])(folder)
    write("preferences.jsonl", {"prompt": "w1", "chosen": "w3", "rejected": "w4"})(folder)
    write("arena.jsonl", {"uid": "u", "prompt": "w1", "response": "w3", "num_tokens": 1})(folder)
    write("questions.jsonl", {"question_id": 81, "turns": ["w1", "w2"]})(folder)
    prompt = {"key": 1, "prompt": "w0", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write("ifeval.jsonl", prompt)(folder)


def write_grid(folder, **changes):
    data = {
        "base": "base",
        "pairs": [{"tuned": "tuned", "untuned": "untuned"}],
        "input": "prompts.jsonl",
        "sampling": {"max_new_tokens": 4},
        "reward": {"function": "function_good.reward"},
        "output": "out",
        "grid": [{"method": "guided", "token_guidance": "implicit", "beta": 1}],
        **changes,
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(data))


def write(name, content):
    """Return what spoils a folder by writing a file."""

    def spoil(folder):
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return spoil


def truncate(name, size=1000):
    return lambda folder: os.truncate(folder / name, size)


def remove(name):
    return lambda folder: (folder / name).unlink()


def pipe(name):
    def spoil(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def grid(**changes):
    return lambda folder: write_grid(folder, **changes)


def ship_code(folder):
    """Make the base a model that only code in its own folder can load."""
    config = json.loads((folder / "base" / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    (folder / "base" / "own.py").write_text("open('ran', 'w')\n")


def row(**changes):
    return write("one.jsonl", {"id": 0, "prompt": "w0", "response": "w3", **changes})


GOLD = ["--files", "a=one.jsonl", "b=two.jsonl", "--function", "function_good.reward"]
KL = [*GOLD, "--base", "base", "--kl_of", "a", "--tuned", "tuned", "--untuned", "untuned"]
KL += ["--beta", "1", "--temperature", "1"]
GRID = ["--config", "grid.yaml"]
ALPACA = ["--outputs", "mine.json", "--reference", "reference.json", "--output", "out", "--yes"]
ALPACA += ["--endpoint", "http://127.0.0.1:9/v1"]
REPORT = ["--folder", "results"]
DIRECT = [*ALPACA, "--direct"]
JUDGE = ["--recordings", "recorded.json", "--output", "out", "--endpoint", "http://127.0.0.1:9/v1"]
ARENA = ["--board", "arena-hard", "--first", "arena.jsonl", "--own_token_counts", "--output", "out"]
BENCH = ["--board", "mt-bench", "--questions", "questions.jsonl", "--output", "out"]
IFEVAL = ["--prompts", "ifeval.jsonl", "--files", "one=one.jsonl"]
ACCURACY = ["--data", "preferences.jsonl", "--output", "out", "--tuned", "tuned", "--untuned", "untuned"]
SPEED = ["--output", "bench.json"]
SPEED_RUN = {
    "method": "m", "setting": "", "max_new_tokens": 4, "num_tokens": 3, "seconds_per_prompt": 1,
    "peak_memory_mib": None, "base_tokens_fed": 1, "guide_tokens_fed": 1, "num_prompts": 1,
    "gold_reward": {"mean": 1, "ci95": [0, 2], "n": 1}, "token_guidance": "none", "chunk_guidance": "none",
}  # fmt: skip
TRACE = {"id": "0", "sample": 0, "tokens": ["a"], "token_logratios": [1.0], "chunks": []}
RESULTS = {"kind": "speed", "machine": "m", "repeats": 1, "findings": [], "reward": "r"}


def nothing(folder):
    pass


# command, what is wrong, how it is made so, the command line, and what the line must say
CASES = [
    ("gold_reward", "weights cut off", truncate("base/model.safetensors"), [*GOLD, "--base", "base"], "base (base): cannot be loaded"),
    ("gold_reward", "output of a NUL byte", nothing, [*GOLD, "--output", "\0"], "output is '\\x00', which holds a NUL byte"),
    ("gold_reward", "no weights", remove("base/model.safetensors"), [*GOLD, "--base", "base"], "base (base): cannot be loaded"),
    ("gold_reward", "config no JSON", write("base/config.json", b"{"), [*GOLD, "--base", "base"], "base (base)"),
    ("gold_reward", "model brings code", ship_code, [*GOLD, "--base", "base"], "ships code of its own"),
    ("gold_reward", "guide cut off", truncate("untuned/model.safetensors"), KL, "untuned (untuned): cannot be loaded"),
    ("gold_reward", "beta is NaN", nothing, [*KL, "--beta", "nan"], "beta nan; expected"),
    ("gold_reward", "function with a syntax error", nothing, [*GOLD[:-1], "function_syntax.reward"], "cannot import function_syntax"),
    ("gold_reward", "function that fails to import", nothing, [*GOLD[:-1], "function_import_error.reward"], "no such GPU"),
    ("gold_reward", "function that ends the process", nothing, [*GOLD[:-1], "function_leaves.reward"], "cannot import function_leaves"),
    ("gold_reward", "function that raises", nothing, [*GOLD[:-1], "function_raising.reward"], "division by zero"),
    ("gold_reward", "infinite reward", nothing, [*GOLD[:-1], "function_endless.reward"], "gold reward of prompt '0' is infinite"),
    ("gold_reward", "a pipe", pipe("one.jsonl"), GOLD, "one.jsonl: no regular file; give"),
    ("gold_reward", "a device", nothing, ["--files", "a=/dev/zero"], "/dev/zero: no regular file; give"),
    ("gold_reward", "NUL in a path", nothing, ["--files", "a=x\0y"], "which holds a NUL byte"),
    ("gold_reward", "NUL bytes", write("one.jsonl", b"\0\0\n"), GOLD, "one.jsonl, line 1: not JSON"),
    ("gold_reward", "deep JSON", write("one.jsonl", DEEP), GOLD, "line 1: nested too deep"),
    ("gold_reward", "5,000 digits", write("one.jsonl", b'{"id": ' + DIGITS + b"}"), GOLD, "line 1: not JSON"),
    ("gold_reward", "half a surrogate", write("one.jsonl", b'{"prompt": "w0", "response": "\\ud800"}'), GOLD, "half a surrogate"),
    ("gold_reward", "value is text", row(value="high"), GOLD, "value is 'high'; expected a number"),
    ("gold_reward", "token ids too large", row(token_ids=[2**70]), GOLD, "token_ids is"),
    ("gold_reward", "output is an input", nothing, [*GOLD, "--output", "one.jsonl"], "is one of the files to judge"),
    ("gold_reward", "output is another's", nothing, [*GOLD, "--output", "mine.json"], "no evaluation wrote it"),
    ("gold_reward", "N is no digit", nothing, [*GOLD, "--best_of", "a=²"], "best_of: got 'a=²'; expected NAME=N"),
    ("gold_reward", "N of 5,000 digits", nothing, [*GOLD, "--best_of", "a=" + "9" * 5_000], "expected NAME=N"),
    ("gold_reward", "max_tokens is 0", nothing, [*GOLD, "--max_tokens", "0"], "max_tokens is 0"),
    ("sweep", "guide cut off", truncate("tuned/model.safetensors"), GRID, "tuned (tuned): cannot be loaded"),
    ("sweep", "method leads out", grid(grid=[{"method": "../../x"}]), GRID, "method '../../x' cannot name a file"),
    ("sweep", "method with an escape", grid(grid=[{"method": "\x1b[2J"}]), GRID, "cannot name a file"),
    ("sweep", "method too long", grid(grid=[{"method": "m" * 300}]), GRID, "cannot name a file"),
    ("sweep", "another's file in the way", write("out/guided-beta1.jsonl", b"mine"), GRID, "no evaluation wrote it"),
    ("sweep", "function that raises", grid(reward={"function": "function_raising.reward"}), GRID, "division by zero"),
    ("speed", "function that fails to import", grid(reward={"function": "function_import_error.reward"}), GRID, "no such GPU"),
    ("speed", "base cut off", truncate("base/model.safetensors"), GRID, "base (base): cannot be loaded"),
    ("alpaca", "generator leads out", write("mine.json", [{"instruction": "a", "output": "x", "generator": "../../x"}]), ALPACA, "generator '../../x' cannot name a file"),
    ("alpaca", "generator is a file of ours", write("mine.json", [{"instruction": "a", "output": "x", "generator": "alpaca.json"}]), ALPACA, "cannot name a file"),
    ("alpaca", "name leads out", nothing, ["--decode", "decode.yaml", "--output", "out", "--name", "../x"], "--name '../x' cannot name a file"),
    ("alpaca", "reference is a pipe", pipe("reference.json"), ALPACA, "reference.json: no regular file"),
    ("alpaca", "outputs nested too deep", write("mine.json", DEEP), ALPACA, "mine.json: nested too deep"),
    ("alpaca", "patience is NaN", nothing, [*ALPACA, "--patience", "nan"], "patience is nan; give a finite number"),
    ("alpaca", "price is NaN", nothing, [*ALPACA, "--price", "nan"], "price is nan; give a finite number"),
    ("alpaca", "endpoint is none", nothing, [*ALPACA, "--endpoint", "u:pass-word@x"], "endpoint is no URL"),
    ("alpaca", "answers are a folder", lambda folder: (folder / "out/judge_answers.jsonl").mkdir(parents=True), ALPACA, "judge_answers.jsonl: no regular file"),
    ("alpaca", "direct with one generator", nothing, DIRECT, "--direct compares two generators; give two files"),
    ("alpaca", "direct with one name twice", nothing, ["--outputs", "mine.json", *DIRECT[1:]], "two of mine.json, mine.json name the same generator"),
    ("alpaca", "direct with other instructions", write("other.json", [{"instruction": "c", "output": "x", "generator": "o"}]), ["--outputs", "other.json", *DIRECT[1:]], "2 of the reference's 2 instructions are missing"),
    ("alpaca", "quality of another judge", write("judge.json", {"judge": {"annotator": "a", "model": "m"}, "verdict": "v"}), [*DIRECT[:2], *DIRECT[2:-1], "--judge_quality", "judge.json"], "is about annotator a with model m"),
    ("judge", "recordings nested too deep", write("recorded.json", DEEP), JUDGE, "recorded.json: nested too deep"),
    ("judge", "recordings are a pipe", pipe("recorded.json"), JUDGE, "recorded.json: no regular file"),
    ("judge", "system leads out", write("recorded.json", [{"instruction": "a", "output_1": "x", "output_2": "y", "generator_2": "../x", "preference": 1}]), JUDGE, "generator_2 '../x' cannot name a file"),
    ("judge", "preference is true", write("recorded.json", [{"instruction": "a", "output_1": "x", "output_2": "y", "generator_2": "m", "preference": True}]), JUDGE, "preference is True; expected a number from 1 to 2"),
    ("judge", "preference of 400 digits", write("recorded.json", b'[{"preference": ' + b"9" * 400 + b"}]"), JUDGE, "is too large a number"),
    ("judge", "repeats without end", nothing, [*JUDGE, "--repeats", "2147483648"], "give an integer from 0 to 100"),
    ("judge", "nobody agreed to pay", nothing, JUDGE, "3 judge calls cost money; add --yes"),
    ("judge", "annotator too long for a file", nothing, [*JUDGE, "--annotator", "é" * 300], "unknown annotator 'é"),
    ("judge", "variable of half a character", nothing, [*JUDGE, "--api_key_env", "\ud800"], "api_key_env is '\\ud800', which holds half a character"),
    ("judge", "no key", nothing, [*JUDGE, "--yes", "--api_key_env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set; set it"),
    ("boards", "no such board", nothing, ["--board", "chess"], "board is 'chess'; give one of"),
    ("boards", "name leads out", nothing, [*ARENA, "--name", "../x"], "name '../x' cannot name a file"),
    ("boards", "answers without uid", write("arena.jsonl", {"prompt": "w1", "response": "w3", "num_tokens": 1}), [*ARENA, "--name", "m"], "arena.jsonl, row 1: no text 'uid'"),
    ("boards", "answers without a length", write("arena.jsonl", {"uid": "u", "prompt": "w1", "response": "w3"}), [*ARENA, "--name", "m"], "a row has no num_tokens; leave out --own_token_counts"),
    ("boards", "one turn", write("questions.jsonl", {"question_id": 81, "turns": ["w1"]}), BENCH, "line 1: expected question_id and 2 turns"),
    ("boards", "questions of bytes", write("questions.jsonl", b"\xff\xfe"), BENCH, "questions.jsonl: not UTF-8 text"),
    ("boards", "question without an answer", nothing, [*BENCH, "--first", "one.jsonl"], "a row has no question_id; decode the prompts"),
    ("boards", "another's file in the way", write("out/turn_1_prompts.jsonl", b"mine"), BENCH, "no evaluation wrote it"),
    ("ifeval", "no prompts", nothing, IFEVAL[2:], "no prompts; give --prompts"),
    ("ifeval", "prompts are a device", nothing, ["--prompts", "/dev/zero", *IFEVAL[2:]], "/dev/zero: no regular file"),
    ("ifeval", "instruction is a number", write("ifeval.jsonl", {"key": 1, "prompt": "w0", "instruction_id_list": [7], "kwargs": [{}]}), IFEVAL, "line 1: no prompt with its instructions"),
    ("ifeval", "kwargs are text", write("ifeval.jsonl", {"key": 1, "prompt": "w0", "instruction_id_list": ["a"], "kwargs": ["x"]}), IFEVAL, "line 1: no prompt with its instructions"),
    ("ifeval", "output is another's", nothing, [*IFEVAL, "--output", "mine.json"], "no evaluation wrote it"),
    ("reward_accuracy", "pair cut off", truncate("tuned/model.safetensors"), ACCURACY, "tuned (tuned): cannot be loaded"),
    ("reward_accuracy", "half a pair", nothing, ACCURACY[:-2], "a pair needs --tuned and --untuned"),
    ("reward_accuracy", "a base as a value", nothing, [*ACCURACY, "--value", "base"], "expected a token classifier"),
    ("reward_accuracy", "equal rewards", write("preferences.jsonl", {"prompt": "w1", "response": "w3", "reward": 1}), ACCURACY, "there is nothing to rank"),
    ("reward_accuracy", "reward of 400 digits", write("preferences.jsonl", b'{"prompt": "w1", "response": "w3", "reward": ' + b"9" * 400 + b"}"), ACCURACY, "is too large a number"),
    ("reward_accuracy", "function that raises", nothing, [*ACCURACY, "--function", "function_raising.reward"], "division by zero"),
    ("reward_accuracy", "other conversations", write("preferences.jsonl", {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}), ACCURACY, "answer different conversations"),
    ("bench", "unknown workload", nothing, [*SPEED, "--workloads", "huge"], "invalid choice: 'huge'"),
    ("bench", "unknown flag", nothing, [*SPEED, "--run", "3"], "unrecognized arguments: --run 3"),
    ("bench", "no prompts", nothing, [*SPEED, "--prompts", "0"], "prompts is 0; give an integer >= 1"),
    ("bench", "no such device", nothing, [*SPEED, "--device", "abacus"], "device is 'abacus'; give cpu, or cuda"),
    ("bench", "lengths the wrong way round", nothing, [*SPEED, "--lengths", "300", "60"], "give a short and a longer one"),
    ("bench", "output is another's", nothing, ["--output", "mine.json"], "no evaluation wrote it"),
    ("bench", "output is a folder", nothing, ["--output", "base"], "output base: is no regular file"),
    ("gpu_check", "shorter than a chunk", nothing, ["--new_tokens", "3"], "new_tokens is 3; give at least a chunk's 30"),
    ("gpu_check", "tokens are text", nothing, ["--new_tokens", "x"], "argument --new_tokens: invalid int value: 'x'"),
    ("report", "result is a pipe", pipe("results/report.json"), REPORT, "report.json: no regular file"),
    ("report", "result nested too deep", write("results/sweep.json", DEEP), REPORT, "sweep.json: nested too deep"),
    ("report", "result of 5,000 digits", write("results/alpaca.json", DIGITS), REPORT, "alpaca.json: not JSON"),
    ("report", "result holds NaN", write("results/speed.json", b'{"runs": [NaN]}'), REPORT, "NaN is no number"),
    ("report", "a number that is text", write("results/speed.json", {**RESULTS, "runs": [{**SPEED_RUN, "num_tokens": "x"}]}), REPORT, "speed.json: not what an evaluation writes"),
    ("report", "findings are numbers", write("results/speed.json", {**RESULTS, "findings": [1], "runs": [SPEED_RUN]}), REPORT, "speed.json: not what an evaluation writes"),
    ("report", "trace of another shape", lambda folder: [write("results/one.jsonl", {"id": 0, "prompt": "x", "response": "y"})(folder), write("results/one.trace.jsonl", {**TRACE, "token_logratios": ["x"]})(folder)], REPORT, "one.trace.jsonl, line 1: not a row"),
    ("report", "another's page", lambda folder: [write("results/one.jsonl", {"id": 0, "prompt": "x", "response": "y"})(folder), write("results/report.html", b"my own page")(folder)], REPORT, "report.html: lies there, and no evaluation wrote it"),
    ("reproducibility", "unknown dtype", nothing, ["--dtypes", "float8"], "dtypes holds 'float8'"),
    ("reproducibility", "absurd size", nothing, ["--num_prompts", "1000000000000"], "num_prompts is [1000000000000]"),
    ("reproducibility", "too long", nothing, ["--max_new_tokens", "100000"], "give integers from 1 to 480"),
    ("reproducibility", "NaN", nothing, ["--logit_std", "nan"], "logit_std is nan"),
]  # fmt: skip


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "here")
    (tmp_path / "here" / "results").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("command", "spoil", "argv", "message"),
    [(command, *rest) for command, _, *rest in CASES],
    ids=[f"{command}: {name}" for command, name, *_ in CASES],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, command, spoil, argv, message):
    spoil(folder)
    line = scripts.refused(capsys, COMMANDS[command].main, argv)
    assert message in line
    assert "pass-word" not in line
    assert not list(folder.parent.glob("x*")), "something was written outside the output"
    assert not (folder / "ran").exists(), "a model's code ran"


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("alpaca", ALPACA),
        ("boards", BENCH),
        ("gpu_check", ["--output", "out", "--skip_tests"]),
        ("judge", JUDGE),
        ("report", [*REPORT, "--output", "out"]),
        ("reward_accuracy", ACCURACY),
        ("sweep", GRID),
        ("speed", GRID),
    ],
)
def test_two_evaluations_do_not_share_an_output(folder, monkeypatch, capsys, command, argv):
    write("results/one.jsonl", {"id": 0, "prompt": "x", "response": "y"})(folder)
    (folder / "out").mkdir()
    monkeypatch.setattr("torch.cuda.is_available", lambda: command == "gpu_check")
    with hold_lock(lock_path(folder / "out"), "output"):
        assert "output out: is being written by" in scripts.refused(capsys, COMMANDS[command].main, argv)


@pytest.mark.parametrize(
    ("command", "argv"), [("bench", SPEED), ("ifeval", [*IFEVAL, "--output", "bench.json"])]
)
def test_two_evaluations_do_not_share_an_output_file(folder, capsys, command, argv):
    with hold_lock(lock_path(folder / "bench.json"), "output"):
        line = scripts.refused(capsys, COMMANDS[command].main, argv)
        assert "output bench.json: is being written by" in line


def test_every_evaluation_is_tried():
    """`bench-engines` runs in vLLM's environment alone."""
    modules = {command.module.rpartition(".")[2] for command in EVALUATIONS.values()} - {"bench_engines"}
    assert set(COMMANDS) == modules | {"gpu_check"}
    assert {command for command, *_ in CASES} == COMMANDS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_real_process_leaves_with_code_2(folder, command):
    """The first case of each command, started as people start it."""
    _, _, spoil, argv, message = next(case for case in CASES if case[0] == command)
    spoil(folder)
    script = scripts.ROOT / "eval" / f"{command}.py"
    done = subprocess.run(
        [sys.executable, script, *argv],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(scripts.ROOT), str(folder)])},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr.splitlines()[-1]
