"""What needs no model answers within a second, and imports neither torch nor transformers."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ivg.__main__ import EVALUATIONS, STAGES, VERBS, main, own_keys

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
# Runs a command's `main` and tells, on the last line, how it ended, what it imported and how long it took.
PROBE = """
import json, os, sys
sys.argv[0] = "probe"
from importlib import import_module
try:
    code = import_module(sys.argv.pop(1)).main(sys.argv[1:])
except SystemExit as left:
    code = left.code
times = os.times()
heavy = [name for name in {heavy} if name in sys.modules]
print(json.dumps([code, heavy, times.user + times.system]))
"""


def probe(module: str, *arguments: str) -> tuple[int, list[str], float, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY), module, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    code, heavy, seconds = json.loads(done.stdout.splitlines()[-1])
    return code or 0, heavy, seconds, done.stdout + done.stderr


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "typo.yaml").write_text("base: x\nserach: {}\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "serve.yaml").write_text("base: x\nserve: {max_token: 1}\n")
    (tmp_path / "missing.yaml").write_text(f"base: {tmp_path / 'none'}\n")
    (tmp_path / "empty").mkdir()
    names = ("typo.yaml", "serve.yaml", "missing.yaml", "prompts.jsonl", "empty", "none", "out")
    return {name: str(tmp_path / name) for name in names}


DECODE = [
    ("--help", 0, "exit codes"),
    ("--version", 0, "ivg "),
    ("--num_beam 2", 2, "did you mean '--num_beams'?"),
    ("--config {typo.yaml}", 2, "did you mean 'search'?"),
    ("--config {none}", 2, "No such file"),
    ("--base x --beta -1 --value y", 2, "beta is -1.0"),
    ("--base x --output {out}", 2, "no input"),
    ("--base x --output {out} --input {none}", 2, "none: No such file"),
    ("--base {none} --output {out} --input {prompts.jsonl}", 2, "no such folder"),
    ("--base {empty} --output {out} --input {prompts.jsonl}", 2, "has no config.json"),
    ("--base {empty} --output {prompts.jsonl} --input {prompts.jsonl}", 2, "are the same file"),
]


@pytest.mark.parametrize(("line", "code", "expected"), DECODE, ids=[line for line, _, _ in DECODE])
def test_decode_answers_at_once(files: dict[str, str], line: str, code: int, expected: str) -> None:
    for name, path in files.items():
        line = line.replace(f"{{{name}}}", path)
    found, heavy, seconds, said = probe("ivg.run.cli", *line.split())
    assert (found, heavy) == (code, [])
    assert expected in said
    assert seconds < 1


IVG = [
    ("", 0, "convert-value"),
    ("--help", 0, "ivg-decode"),
    ("--version", 0, "ivg "),
    ("dekode", 2, "'dekode' is no verb; give one of decode, train, eval"),
    ("decode --help", 0, "exit codes"),
    ("train --help", 0, "rollouts"),
    ("train", 2, "is missing; give one of sft"),
    ("train dpo --help", 0, "--help_all"),
    ("eval --help", 0, "gold-reward"),
    ("eval golden", 2, "'golden' is none; give one of gold-reward"),
    ("view --help", 0, "--output FILE.html"),
    ("view none.jsonl", 2, "none.jsonl: No such file or directory; give a trace of ivg-decode"),
    ("convert-gguf --help", 0, "folder to write"),
    ("convert-gguf nowhere.gguf out", 2, "nowhere.gguf: no such file; give a GGUF file"),
    ("env now", 2, "env takes no arguments"),
    ("recipes list", 0, "quickstart"),
    ("recipes show qwen3", 0, "ivg train dpo --config recipes/qwen3/dpo.yaml"),
    ("recipes show nosuch", 2, "'nosuch' is no recipe"),
    ("recipes copy", 2, "required: NAME"),
    ("convert-value --help", 0, "score_head.weight"),
    ("convert-value none x", 2, "no config.json there"),
]


SERVE = [
    ("--help", 0, "--api_key"),
    ("--version", 0, "ivg "),
    ("", 2, "give --config FILE.yaml"),
    ("--prot 1", 2, "did you mean '--port'?"),
    ("--port x", 2, "invalid int value"),
    ("--config {none}", 2, "No such file"),
    ("--config {typo.yaml}", 2, "did you mean 'search'?"),
    ("--config {serve.yaml}", 2, "did you mean 'max_tokens'?"),
    ("--config {serve.yaml} serve.max_token=null", 2, "unknown key 'max_token'"),
    ("--config {missing.yaml}", 2, "no such folder"),
]


@pytest.mark.parametrize(("line", "code", "expected"), SERVE, ids=[line for line, _, _ in SERVE])
def test_serve_answers_at_once(files: dict[str, str], line: str, code: int, expected: str) -> None:
    for name, path in files.items():
        line = line.replace(f"{{{name}}}", path)
    found, heavy, seconds, said = probe("ivg.serve.cli", *line.split())
    assert (found, heavy) == (code, [])
    assert expected in said
    assert seconds < 1


@pytest.mark.parametrize(("line", "code", "expected"), IVG, ids=[line for line, _, _ in IVG])
def test_the_one_command_answers_at_once(line: str, code: int, expected: str) -> None:
    found, heavy, seconds, said = probe("ivg.__main__", *line.split())
    assert (found, heavy) == (code, [])
    assert expected in said
    assert seconds < 1


def test_importing_the_package_imports_nothing_heavy_until_it_is_used() -> None:
    code = f"""
import sys, ivg
assert not [name for name in {HEAVY} if name in sys.modules]
assert ivg.SearchConfig(token_guidance="none").num_beams == 1
assert not [name for name in {HEAVY} if name in sys.modules]
assert all(getattr(ivg, name) is not None for name in ivg.__all__)
assert "torch" in sys.modules and "generate" in dir(ivg)
assert ivg.hf.Guidance and ivg.rewards.RewardConfig and ivg.config.DecodeConfig and ivg.errors.UserError
try:
    ivg.absent
except AttributeError as error:
    assert str(error) == "module 'ivg' has no attribute 'absent'"
from ivg import *
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_every_name_has_a_module_and_a_launcher() -> None:
    for folder, commands in (("train", STAGES), ("eval", EVALUATIONS)):
        launchers = {path.stem.replace("_", "-") for path in (ROOT / folder).glob("*.py")}
        assert launchers - {"gpu-check"} == set(commands)  # which runs tests of this checkout
        for name, command in commands.items():
            assert command.module == f"ivg.commands.{folder}.{name.replace('-', '_')}"
            assert (ROOT / f"{command.module.replace('.', '/')}.py").is_file()
    assert [*VERBS] == [
        "decode",
        "train",
        "eval",
        "serve",
        "view",
        "export-vllm",
        "convert-value",
        "convert-gguf",
        "recipes",
        "env",
    ]


def test_own_keys_are_those_of_the_dataclasses() -> None:
    """They are read from the source, so they are compared with what the classes really have."""
    import dataclasses

    import trl
    from transformers import TrainingArguments

    from ivg.training.arguments import DataArguments, ModelArguments
    from ivg.training.rollouts.arguments import RolloutArguments
    from ivg.training.value.arguments import ValueTrainingArguments

    def added(cls: type, under: type | None = None) -> dict[str, str]:
        below = set() if under is None else {field.name for field in dataclasses.fields(under)}
        names = [field for field in dataclasses.fields(cls) if field.init and field.name not in below]
        return {field.name: field.metadata["help"] for field in names}

    shared = added(DataArguments) | added(ModelArguments, trl.ModelConfig)
    value = added(ValueTrainingArguments, TrainingArguments)
    assert dict(own_keys(STAGES["rollouts"])) == added(RolloutArguments)
    assert shared.items() <= dict(own_keys(STAGES["dpo"])).items()
    assert (shared | value).items() <= dict(own_keys(STAGES["value"])).items()


def test_flags_before_the_stage_are_for_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append([program, *command]))
    main(["train", "--config_file", "zero2.yaml", "--num_processes", "2", "dpo", "--config", "a.yaml"])
    launcher = [sys.executable, sys.executable, "-m", "accelerate.commands.launch"]
    flags = ["--config_file", "zero2.yaml", "--num_processes", "2"]
    assert started == [[*launcher, *flags, "--module", "ivg.commands.train.dpo", "--config", "a.yaml"]]


def test_whoever_reads_may_stop() -> None:
    command = f"{sys.executable} -m ivg recipes show quickstart | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    assert (done.returncode, done.stderr) in [(1, ""), (0, "")]  # 0 where all was written before


def test_what_libraries_say_of_each_other_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    """Only their two known lines: everything else of theirs is heard."""
    line = "Failed to load CPU gemm_4bit_forward from kernels-community: %s"
    installed = importlib.util.find_spec("bitsandbytes")
    if installed is not None:
        assert installed.origin is not None
        source = Path(installed.origin).parent / "backends" / "cpu" / "ops.py"
        assert line in source.read_text(encoding="utf-8")
    place = logging.getLogger("bitsandbytes.backends.cpu.ops")
    place.warning(line, "no kernels")
    place.warning("Failed to load the library")
    assert [record.getMessage() for record in caplog.records] == ["Failed to load the library"]


@pytest.mark.slow
def test_a_lora_is_made_without_a_word() -> None:
    code = (
        "import ivg, logging, peft, transformers; logging.basicConfig(); "
        "shape = dict(n_layer=1, n_embd=8, n_head=1, vocab_size=8, bos_token_id=1, eos_token_id=2); "
        "config = transformers.GPT2Config(**shape); "
        "peft.get_peft_model(transformers.GPT2LMHeadModel(config), peft.LoraConfig(fan_in_fan_out=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stderr == ""


@pytest.mark.parametrize("how", ["one", "several GPUs", "accelerate config"])
def test_the_launcher_is_asked_where_there_is_something_to_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    import torch
    from accelerate.commands.config import config_args

    config = tmp_path / "default_config.yaml"
    if how == "accelerate config":
        config.write_text("")
    monkeypatch.setattr(config_args, "default_config_file", str(config))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2 if how == "several GPUs" else 1)
    started: list[str] = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append("launcher"))
    monkeypatch.setattr("ivg.__main__.run_here", lambda verb, name, rest: started.append(name) or 0)
    main(["train", "dpo", "--config", "a.yaml"])
    assert started == (["dpo"] if how == "one" else ["launcher"])


@pytest.mark.slow
def test_a_mistake_in_a_stage_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("modle_name_or_path: x\n")
    done = subprocess.run(
        [sys.executable, "-m", "ivg", "train", "rollouts", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert "unknown key 'modle_name_or_path'; did you mean 'model_name_or_path'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 2
