"""`engine: vllm` in an environment without vLLM, and what both engines' settings are; nothing is loaded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from ivg.config import DecodeConfig, ModelConfig, SearchConfig, ValueConfig
from ivg.config.yaml_file import config_from_dict
from ivg.errors import UserError
from ivg.run import cli
from ivg.run.command_line import parse
from tests.run.conftest import Folders

without_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)


def flags(folders: Folders, tmp_path: Path) -> list[str]:
    (tmp_path / "prompts.txt").write_text("ab\n")
    return [
        *("--base", folders.base, "--engine", "vllm", "--max_new_tokens", "9"),
        *("--input", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "out.jsonl")),
    ]


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_engine_is_a_key_and_a_flag() -> None:
    assert parse(["--base", "a"]).config.engine == "lockstep"
    assert parse(["--base", "a", "--engine", "vllm"]).config.engine == "vllm"
    config = config_from_dict({"base": "a", "engine": "vllm", "vllm": {"tensor_parallel_size": 2, "x": [1]}})
    assert config.vllm == {"tensor_parallel_size": 2, "x": [1]}
    with pytest.raises(UserError, match="engine is 'vllms'; give one of lockstep, vllm"):
        config_from_dict({"base": "a", "engine": "vllms"})
    with pytest.raises(UserError, match="vllm is 3; give keys with their values"):
        config_from_dict({"base": "a", "engine": "vllm", "vllm": 3})
    with pytest.raises(UserError, match="engine is 'tgi'"):
        DecodeConfig(base=ModelConfig(path="a"), engine="tgi")  # type: ignore[arg-type]


def test_vllm_lets_rows_wait() -> None:
    base, value = ModelConfig(path="a"), ValueConfig(model=ModelConfig(path="b"))
    search = SearchConfig(chunk_guidance="explicit", num_beams=10, num_successors=10)
    DecodeConfig(base=base, values=(value,), search=search, engine="vllm")
    with pytest.raises(UserError, match="max_batch_rows is 64, but one prompt needs"):
        DecodeConfig(base=base, values=(value,), search=search)


@without_vllm
def test_without_vllm_one_line_says_how_to_install_it(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(capsys, flags(folders, tmp_path))
    assert line.startswith(
        "error: engine vllm: this environment: vLLM is not installed in it; run: make vllm"
    )
    assert "with CUDA: pip install vllm==" in line
    assert line.endswith("or set engine: lockstep")
    assert not (tmp_path / "out.jsonl").exists()


@without_vllm
def test_a_dry_run_lists_every_refusal(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = ["--dtype", "float64", "--max_batch_rows", "8", "--max_batch_tokens", "900", "--temperature"]
    assert cli.main([*flags(folders, tmp_path), *asked, "0.003", "--dry_run"]) == 2
    told = " ".join(capsys.readouterr().out.split())
    assert "engine: vllm (not installed)" in told
    for part in (
        "this environment: vLLM is not installed",
        "dtype float64: vLLM has no kernels for it",
        "max_batch_rows 8: vLLM batches by itself; set vllm.max_num_seqs",
        "max_batch_tokens 900: vLLM batches by itself; set vllm.max_num_batched_tokens",
        "temperature 0.003",
        "several processes: vLLM starts the processes that it needs",
    ):
        assert f"{part}" in told
    assert told.count("problem: engine vllm: ") == 6
    assert "keys and values fill what vLLM's own arguments leave them" in told


def test_settings_of_vllm_belong_to_its_runs_alone(folders: Folders, tmp_path: Path) -> None:
    from ivg.run.job import prepare, settings

    config = parse(flags(folders, tmp_path)).config
    found = [
        settings(
            prepare(DecodeConfig(base=config.base, input=config.input, output="-", **more)),
            several_processes=False,
        )
        for more in (
            {"sampling": config.sampling},
            {"sampling": config.sampling, "vllm": {"max_num_seqs": 2}},
        )
    ]
    assert found[0] == found[1]
    assert json.loads(json.dumps(found[0]))["engine"] == "lockstep"
