"""Bad inputs to every training command: one line that names what is wrong, exit code 2, no traceback.

Each case spoils one thing: a file of a model, a row's source, or a key. `test_bad_input.py` holds what is
refused from data and settings alone; here are damaged weights, options of transformers and TRL, code of the
user's that fails, and the conversion of value models.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2ForSequenceClassification

from ivg.training.value import convert_command
from tests import tiny
from tests.train.launching import (
    COMPLETIONS,
    PAIRS,
    REWARDED,
    TINY,
    TRL_TINY,
    run_here,
    write_config,
    write_rows,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
]
Spoil = Callable[[Path], object]
ROWS = {"value": REWARDED, "sft": COMPLETIONS}
STAGES = ("sft", "dpo", "reward", "value")
DEEP = 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every case starts from: a model, a reward model, a token-reward checkpoint, rows, functions."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.save(folder / "model", tiny.causal(0, dtype=torch.float32))
    config = tiny.gpt2_config(len(tiny.LETTERS) + 2, num_labels=1)
    tiny.save(folder / "judge", GPT2ForSequenceClassification(config))
    tiny.save(folder / "source", tiny.causal(0, dtype=torch.float32))
    change_weights(
        folder / "source",
        lambda state: {**state, "score_head.weight": torch.zeros(33, 16)},
    )
    for script in (*STAGES, "rollouts"):
        write_rows(folder / f"{script}.jsonl", ROWS.get(script, PAIRS))
    (folder / "badreward.py").write_text(
        "def fails(rows, responses):\n    return [row['absent'] for row in rows]\n\n\n"
        "def leaves(rows, responses):\n    raise SystemExit(0)\n\n\n"
        "def speaks(rows, responses):\n    return ['good' for row in rows]\n\n\n"
        "def drops(rows, responses):\n    return [1.0]\n"
    )
    (folder / "unimportable.py").write_text("1 / 0\n")
    (folder / "leaving.py").write_text("import sys\n\nsys.exit(0)\n")
    return folder


def edit(file: str, **values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def write(file: str, content: bytes) -> Spoil:
    return lambda folder: (folder / file).write_bytes(content)


def change_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    file = folder / "model.safetensors"
    save_file({key: tensor.clone() for key, tensor in change(load_file(file)).items()}, file)


def weights(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Spoil:
    return lambda folder: change_weights(folder / name, change)


def instead(file: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return spoil


def cut(file: str) -> Spoil:
    return lambda folder: os.truncate(folder / file, 1000)


def foreign_checkpoint(folder: Path) -> None:
    (folder / "out" / "checkpoint-500").mkdir(parents=True)
    (folder / "out" / "checkpoint-500" / "model.safetensors").write_bytes(b"a week of work")


def locked_elsewhere(folder: Path) -> None:
    (folder / "out").mkdir()
    holder = {"host": f"not-{socket.gethostname()}", "pid": 7, "started": "9"}
    (folder / "out" / ".lock").write_text(json.dumps(holder))


def nothing(folder: Path) -> None:
    """Spoil nothing: a key is to blame."""


SHAPE = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32}
NEW = {"model_name_or_path": None, "tokenizer_path": "model"}
LORA = {"use_peft": True, "lora_r": 2}
CODE = {"auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}, "model_type": "own"}
CASES: list[tuple[str, str, Spoil, dict[str, Any], str]] = [
    *(
        (s, "cut weights", cut("model/model.safetensors"), {}, "cannot be loaded")
        for s in (*STAGES, "rollouts")
    ),
    *(
        (s, "no weights", lambda f: (f / "model/model.safetensors").unlink(), {}, "cannot be loaded")
        for s in (*STAGES, "rollouts")
    ),
    *(
        (s, "a layer too few", edit("model/config.json", n_layer=3), {}, "12 weights are missing .*h\\.2")
        for s in (*STAGES, "rollouts")
    ),
    (
        "dpo",
        "a size too large",
        edit("model/config.json", n_positions=10**12),
        {},
        r"another shape .*wpe.*\(64, 16",
    ),
    ("value", "a FIFO for weights", instead("model/model.safetensors", os.mkfifo), {}, "is no regular file"),
    (
        "sft",
        "a device for weights",
        instead("model/model.safetensors", lambda path: path.symlink_to("/dev/zero")),
        {},
        "is no regular file",
    ),
    ("reward", "deep JSON", write("model/config.json", b"[" * DEEP), {}, "cannot be read: maximum recursion"),
    ("dpo", "NUL bytes", write("model/config.json", b"\0" * 99), {}, "cannot be read: .*not a valid JSON"),
    (
        "value",
        "a long number",
        edit("model/config.json", n_positions="9" * 5000),
        {},
        "cannot be read: .*n_positions",
    ),
    *(
        (
            s,
            "generation settings that are not saved again",
            edit("model/generation_config.json", output_hidden_states=True),
            {},
            "generation_config.json could not be saved .*`output_hidden_states`",
        )
        for s in ("sft", "dpo")
    ),
    ("dpo", "code", edit("model/config.json", **CODE), {}, "trust_remote_code"),
    ("value", "code", edit("model/config.json", **CODE), {}, "trust_remote_code"),
    ("rollouts", "code", edit("model/config.json", **CODE), {}, "trust_remote_code"),
    (
        "rollouts",
        "a judge without a head",
        weights("judge", lambda s: {k: t for k, t in s.items() if k != "score.weight"}),
        {"reward_function": None, "reward_model": "judge"},
        "1 weights are missing from its checkpoint, such as score.weight",
    ),
    (
        "rollouts",
        "a judge's head by another name",
        weights("judge", lambda s: {k.replace("score", "value_head"): t for k, t in s.items()}),
        {"reward_function": None, "reward_model": "judge"},
        r"such as score.weight \(it has value_head.weight",
    ),
    (
        "rollouts",
        "cut weights of a judge",
        cut("judge/model.safetensors"),
        {"reward_function": None, "reward_model": "judge"},
        "reward model .*judge: cannot be loaded",
    ),
    (
        "dpo",
        "zero accumulation",
        nothing,
        {"gradient_accumulation_steps": 0},
        "gradient_accumulation_steps is 0",
    ),
    ("sft", "zero batch", nothing, {"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
    ("value", "a negative rate", nothing, {"learning_rate": -1.0}, "learning_rate is -1.0"),
    ("value", "NaN", nothing, {"learning_rate": float("nan")}, "learning_rate: a value is NaN"),
    (
        "sft",
        "offloading from no accelerator",
        nothing,
        {"activation_offloading": True},
        "activation_offloading moves",
    ),
    ("sft", "words for a mapping", nothing, {"dataset_kwargs": "no"}, "dataset_kwargs: 'no' is not JSON"),
    (
        "dpo",
        "a list for a mapping",
        nothing,
        {"lr_scheduler_kwargs": "[1]"},
        r"lr_scheduler_kwargs is \[1\]; give a mapping",
    ),
    (
        "dpo",
        "no such architecture",
        edit("model/config.json", architectures=["GPT9"]),
        {},
        "names the architecture 'GPT9', no language model of transformers",
    ),
    (
        "sft",
        "an architecture without words",
        edit("model/config.json", architectures=["GPT2Model"]),
        {},
        "names the architecture 'GPT2Model', no language model",
    ),
    (
        "sft",
        "layers without end",
        edit("model/config.json", n_layer=2**31),
        {},
        "config.json says n_layer 2147483648; give at most 10000",
    ),
    (
        "reward",
        "layers without end",
        edit("model/config.json", n_layer=2**31),
        {},
        "config.json says n_layer 2147483648; give at most 10000",
    ),
    (
        "value",
        "layers without end",
        edit("model/config.json", n_layer=2**31),
        {},
        "config.json says n_layer 2147483648; give at most 10000",
    ),
    ("reward", "no epochs", nothing, {"num_train_epochs": 0}, "num_train_epochs is 0"),
    ("dpo", "no steps", nothing, {"max_steps": 0}, "max_steps is 0"),
    ("sft", "rank 0", nothing, {**LORA, "lora_r": 0}, "lora_r is 0"),
    ("value", "too much dropout", nothing, {**LORA, "lora_dropout": 1.5}, "lora_dropout is 1.5"),
    (
        "dpo",
        "no such modules",
        nothing,
        {**LORA, "lora_target_modules": ["absent"]},
        "lora_target_modules: .*absent",
    ),
    (
        "value",
        "no such modules",
        nothing,
        {**LORA, "lora_target_modules": ["absent"]},
        "lora_target_modules: .*absent",
    ),
    ("sft", "no such optimizer", nothing, {"optim": "best"}, "optim: 'best' is refused: best is not a valid"),
    ("sft", "optimizer's words", nothing, {"optim_args": "fast"}, "optim .* refused"),
    (
        "value",
        "no such schedule",
        nothing,
        {"lr_scheduler_type": "up"},
        "lr_scheduler_type is 'up'|lr_scheduler_type: 'up'",
    ),
    (
        "value",
        "schedule's words",
        nothing,
        {"lr_scheduler_kwargs": {"up": 1}},
        "lr_scheduler_type .* refused",
    ),
    ("reward", "nothing to evaluate", nothing, {"eval_strategy": "steps"}, "eval_strategy: "),
    ("value", "nothing to evaluate", nothing, {"eval_strategy": "steps"}, "eval_strategy: "),
    (
        "dpo",
        "best of what",
        nothing,
        {"load_best_model_at_end": True, "save_strategy": "steps"},
        "load_best_model_at_end: True is refused",
    ),
    ("dpo", "no such loss", nothing, {"loss_type": "magic"}, "loss_type: .*magic"),
    ("sft", "two kinds of half", nothing, {"bf16": True, "fp16": True}, "(bf16|fp16): True.* refused"),
    ("reward", "a negative seed", nothing, {"seed": -1}, "seed is -1"),
    ("reward", "a long seed", nothing, {"seed": 10**30}, "seed: an integer of 3[01] digits"),
    ("dpo", "a negative beta", nothing, {"beta": -0.1}, "beta is -0.1"),
    ("dpo", "NUL in a path", nothing, {"dataset_name": "a\0b"}, "dataset_name: .*NUL"),
    ("sft", "NUL in a path", nothing, {"output_dir": "a\0b"}, "output_dir: .*NUL"),
    ("rollouts", "NUL in a path", nothing, {"model_name_or_path": "a\0b"}, "model_name_or_path: .*NUL"),
    ("dpo", "no such attention", nothing, {"attn_implementation": "best"}, "best"),
    ("sft", "no such type", nothing, {"dtype": "float13"}, "float13"),
    ("value", "unknown words for loading", nothing, {"model_init_kwargs": {"foo": 1}}, "foo"),
    (
        "value",
        "a secret",
        nothing,
        {"model_init_kwargs": {"token": "hf_x"}},
        "model_init_kwargs holds a token",
    ),
    ("sft", "wide", nothing, {**NEW, "model_config": {**SHAPE, "n_embd": 10**9}}, "width 1000000000.* GiB"),
    ("sft", "deep", nothing, {**NEW, "model_config": {**SHAPE, "n_layer": 10**9}}, "1000000000 layers"),
    (
        "sft",
        "odd",
        nothing,
        {**NEW, "model_config": {**SHAPE, "n_embd": 15}},
        "model_config: no gpt2 can be made",
    ),
    ("sft", "small", nothing, {**NEW, "model_config": {**SHAPE, "vocab_size": 5}}, "vocab_size is 5, but"),
    ("sft", "deep words", nothing, {**NEW, "model_config": "[" * DEEP}, "model_config: .* refused"),
    (
        "rollouts",
        "a reward that fails",
        nothing,
        {"reward_function": "badreward.fails"},
        r"badreward.py:2: KeyError: 'absent'",
    ),
    (
        "rollouts",
        "a reward that leaves",
        nothing,
        {"reward_function": "badreward.leaves"},
        "badreward.py:6: SystemExit",
    ),
    (
        "rollouts",
        "a reward of words",
        nothing,
        {"reward_function": "badreward.speaks"},
        "return a list of numbers",
    ),
    ("rollouts", "one for all", nothing, {"reward_function": "badreward.drops"}, "returned 1 scores for"),
    (
        "rollouts",
        "a broken module",
        nothing,
        {"reward_function": "unimportable.f"},
        r"cannot import unimportable \(Zero",
    ),
    (
        "rollouts",
        "a module that leaves",
        nothing,
        {"reward_function": "leaving.f"},
        r"cannot import leaving \(SystemExit",
    ),
    *(
        (
            s,
            "someone's checkpoint",
            foreign_checkpoint,
            {},
            "holds checkpoint-500, which no run of this product",
        )
        for s in (*STAGES, "rollouts")
    ),
    *(
        (s, "another machine's run", locked_elsewhere, {}, "is being written by process 7 on not-")
        for s in (*STAGES, "rollouts")
    ),
]
PATHS = ("dataset_name", "model_name_or_path", "tokenizer_path", "output_dir", "reward_model")


def the_one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error line; there is one, and no traceback."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    # It may stand behind an unfinished progress bar.
    lines = [line[line.index("error: ") :] for line in printed.splitlines() if "error: " in line]
    assert len(lines) == 1, printed
    return lines[0]


def config_of(folder: Path, script: str, keys: dict[str, Any]) -> str:
    common: dict[str, Any] = {
        "model_name_or_path": "model",
        "dataset_name": f"{script}.jsonl",
        "output_dir": "out",
    }
    if script == "rollouts":
        common |= {"reward_function": "tests.train.launching.letters", "max_new_tokens": 4, "num_samples": 2}
    else:
        common |= {**(TINY if script == "value" else TRL_TINY), "max_steps": 1}
    merged = {key: value for key, value in {**common, **keys}.items() if value is not None}
    absolute = {key: str(folder / value) for key, value in merged.items() if key in PATHS}
    return write_config(folder / "config.yaml", **{**merged, **absolute})


@pytest.mark.parametrize(
    ("script", "spoil", "keys", "message"),
    [pytest.param(*case[:1], *case[2:], id=f"{case[0]}-{case[1]}") for case in CASES],
)
def test_refused_in_one_line(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    spoil: Spoil,
    keys: dict[str, Any],
    message: str,
) -> None:
    folder = tmp_path / "case"
    shutil.copytree(whole, folder)
    monkeypatch.syspath_prepend(folder)
    spoil(folder)
    before = sorted((folder / "out").rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        run_here(script, config_of(folder, script, keys), monkeypatch)
    assert exit_.value.code == 2
    assert re.search(message, the_one_line(capsys))
    # What fails before its first step leaves nothing behind, and takes nothing away.
    assert sorted((folder / "out").rglob("*")) == before


FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("a folder", Path.mkdir, "is no regular file"),
    ("binary", lambda path: path.write_bytes(bytes(range(256))), "not valid YAML"),
    ("deep", lambda path: path.write_text("[" * DEEP), "not valid YAML"),
    ("a long number", lambda path: path.write_text("seed: " + "9" * 5000), "not valid YAML|integer of"),
    ("a FIFO", os.mkfifo, "not a regular file"),
    ("a device", lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    ("a list", lambda path: path.write_text("- a"), "expected a mapping"),
    ("tabs", lambda path: path.write_text("a:\n\tb: 1"), "not valid YAML"),
]


@pytest.mark.parametrize(("make", "message"), [pytest.param(*f[1:], id=f[0]) for f in FILES])
def test_configs_that_are_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    message: str,
) -> None:
    make(tmp_path / "config.yaml")
    with pytest.raises(SystemExit, match="2"):
        run_here("dpo", str(tmp_path / "config.yaml"), monkeypatch)
    assert re.search(message, the_one_line(capsys))


INDEX = "source/model.safetensors.index.json"


def index_of(content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "source" / "model.safetensors").rename(folder / "source" / "part.safetensors")
        (folder / INDEX).write_bytes(content)

    return spoil


def pickled(value: object) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "source" / "model.safetensors").unlink()
        torch.save(value, folder / "source" / "pytorch_model.bin")

    return spoil


CONVERSIONS: list[tuple[str, Spoil, tuple[str, str], str]] = [
    ("no source", nothing, ("absent", "value"), "no config.json there"),
    ("a file as source", nothing, ("badreward.py", "value"), "no config.json there"),
    ("NUL in the source", nothing, ("a\0b", "value"), "NUL byte|no config.json there"),
    ("NUL in the destination", nothing, ("source", "a\0b"), "NUL byte"),
    ("a file as destination", nothing, ("source", "badreward.py"), "is a file or holds files"),
    ("a full destination", lambda f: (f / "value/x").mkdir(parents=True), ("source", "value"), "holds files"),
    ("below a file", nothing, ("source", "badreward.py/value"), "not names of folders|cannot be written"),
    ("cut weights", cut("source/model.safetensors"), ("source", "value"), "model.safetensors cannot be read"),
    (
        "no weights",
        lambda f: (f / "source/model.safetensors").unlink(),
        ("source", "value"),
        "no model.safetensors",
    ),
    (
        "a FIFO",
        instead("source/model.safetensors", os.mkfifo),
        ("source", "value"),
        "no regular file",
    ),
    (
        "a config of words",
        write("source/config.json", b"words"),
        ("source", "value"),
        "not a model that can be",
    ),
    (
        "a deep config",
        write("source/config.json", b"[" * DEEP),
        ("source", "value"),
        "not a model that can be",
    ),
    ("an absurd config", edit("source/config.json", n_layer=10**9), ("source", "value"), "1000000000 layers"),
    (
        "a wide config",
        edit("source/config.json", n_embd=10**12),
        ("source", "value"),
        "GiB, and this machine",
    ),
    ("a layer too few", edit("source/config.json", n_layer=3), ("source", "value"), "12 weights do not fit"),
    ("another family", edit("source/config.json", model_type="t5"), ("source", "value"), "error: .*"),
    ("code", edit("source/config.json", **CODE), ("source", "value"), "trust_remote_code"),
    ("an empty index", index_of(b"{}"), ("source", "value"), "index.json cannot be read: KeyError"),
    ("a broken index", index_of(b"{"), ("source", "value"), "index.json cannot be read"),
    (
        "an index that leads away",
        index_of(b'{"weight_map": {"a": "../model/model.safetensors"}}'),
        ("source", "value"),
        "names model.safetensors, which is no file there",
    ),
    (
        "an index of what is not there",
        index_of(b'{"weight_map": {"a": "absent.safetensors"}}'),
        ("source", "value"),
        "names absent.safetensors, which is no file there",
    ),
    ("a list of weights", pickled([1, 2]), ("source", "value"), "holds no weights by name"),
    ("an empty pickle", pickled({}), ("source", "value"), "no model.safetensors or pytorch_model.bin"),
    ("code in a pickle", pickled(Path("x")), ("source", "value"), "pytorch_model.bin cannot be read"),
    (
        "a flat head",
        weights("source", lambda s: {**s, "score_head.weight": torch.zeros(16)}),
        ("source", "value"),
        r"score_head.weight is \(16,\); expected",
    ),
    (
        "a head of whole numbers",
        weights("source", lambda s: {**s, "score_head.weight": torch.zeros(33, 16, dtype=torch.int64)}),
        ("source", "value"),
        "expected",
    ),
    (
        "a broken tokenizer",
        write("source/tokenizer.json", b"{"),
        ("source", "value"),
        "its tokenizer cannot be",
    ),
]


@pytest.mark.parametrize(("spoil", "places", "message"), [pytest.param(*c[1:], id=c[0]) for c in CONVERSIONS])
def test_conversions_are_refused_in_one_line(
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Spoil,
    places: tuple[str, str],
    message: str,
) -> None:
    folder = tmp_path / "case"
    shutil.copytree(whole, folder)
    spoil(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        convert_command.main([f"{folder}/{place}" for place in places])
    assert re.search(message, the_one_line(capsys))
    assert sorted(folder.rglob("*")) == before


def test_what_is_not_spoilt_is_converted(whole: Path, tmp_path: Path) -> None:
    convert_command.main([str(whole / "source"), str(tmp_path / "value")])
    assert (tmp_path / "value" / "model.safetensors").is_file()
