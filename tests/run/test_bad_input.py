"""What a user can get wrong: one clear line, exit code 2, and no weights loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ivg.models import loading
from ivg.run import cli
from tests.run.conftest import Folders

SHORT = ("--max_new_tokens", "5")  # so that prompts fit the tiny models' context


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "the movie"}\n{"prompt": "a film"}\n')
    return path


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(info: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(loading, "_load_module", refuse)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run ivg-decode, which must leave with code 2 and one line on stderr; return the line."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_missing_input_file(capsys, folders: Folders, tmp_path: Path) -> None:
    line = refusal(
        capsys, "--base", folders.base, "--input", tmp_path / "no.jsonl", "--output", tmp_path / "o"
    )
    assert "no.jsonl: No such file" in line


def test_input_that_is_a_folder(capsys, folders: Folders, tmp_path: Path) -> None:
    line = refusal(capsys, "--base", folders.base, "--input", tmp_path, "--output", tmp_path / "o")
    assert "Is a directory" in line


def test_input_that_is_not_text(capsys, folders: Folders, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(capsys, "--base", folders.base, "--input", path, "--output", tmp_path / "o")


def test_empty_input(capsys, folders: Folders, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n\n")
    assert "holds no prompts" in refusal(
        capsys, "--base", folders.base, "--input", path, "--output", tmp_path / "o"
    )


def test_all_bad_rows_are_named_with_their_lines(capsys, folders: Folders, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = ['{"prompt": "fine"}', '{"text": "no prompt"}', "{not json", '{"prompt": ""}', "[1]"]
    path.write_text("\n".join(rows))
    line = refusal(capsys, "--base", folders.base, "--input", path, "--output", tmp_path / "o", *SHORT)
    assert "4 of 5 rows" in line
    assert "line 2: expected one of prompt, messages, instruction; found text" in line
    assert "line 3: not valid JSON" in line
    assert "line 4: prompt must be a non-empty string" in line
    assert "line 5: expected a JSON object" in line
    assert not (tmp_path / "o").exists()


def test_prompt_longer_than_the_context(capsys, folders: Folders, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("short\n" + "long " * 20 + "\n")
    line = refusal(
        capsys, "--base", folders.base, "--input", path, "--output", tmp_path / "o", "--max_new_tokens", 20
    )
    assert "line 2" in line
    assert "exceeds its context of 64" in line


def test_duplicate_ids(capsys, folders: Folders, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n')
    line = refusal(
        capsys, "--base", folders.base, "--input", path, "--output", tmp_path / "o", "--max_new_tokens", 5
    )
    assert "1 of 2 rows" in line
    assert "line 2: id '1' stands on line 1 already; ids must be unique" in line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--beta", "-1"], "beta is -1.0; give a finite number >= 0"),
        (["--beta", "nan"], "beta is nan"),
        (["--num_beams", "0"], "num_beams is 0; give an integer >= 1"),
        (["--num_successors", "0"], "num_successors is 0"),
        (["--chunk_length", "0"], "chunk_length is 0; give an integer >= 1"),
        (["--temperature", "-0.5"], "temperature is -0.5"),
        (["--temperature", "0", "--num_beams", "2"], "temperature 0 is greedy"),
        (["--top_p", "0"], "top_p is 0.0"),
        (["--top_k", "-1"], "top_k is -1"),
        (["--max_new_tokens", "0"], "max_new_tokens is 0"),
        (["--num_samples", "0"], "num_samples is 0"),
        (["--num_samples", "2"], "with chunk guidance use return_beams"),
        (["--num_beams", "9", "--num_successors", "9"], "one prompt needs num_beams x num_successors = 81"),
        (["--stop", ""], "stop holds an empty string"),
        (["--num_beams", "two"], "invalid int value: 'two'"),
        (["--token_guidance", "implicite"], "invalid choice: 'implicite'"),
        (["--num_beam", "2"], "unknown argument '--num_beam'; did you mean '--num_beams'?"),
        (["--prompt_template", "no place"], "has no '{prompt}'"),
        (["stray"], "unexpected argument 'stray'"),
        (["=3"], "unexpected argument '=3'"),
        (["--device", "gpu"], "device 'gpu' is none; give cpu, cuda or cuda:N"),
        (["--device", "meta"], "device meta holds no numbers"),
        (["--device", "cuda:99"], "device cuda:99 asked for, but "),
        (["--stop", "bye<eos>"], "stop 'bye<eos>' holds the special token '<eos>'"),
        (
            ["--dataset_split", "train"],
            "--dataset_config and --dataset_split belong to a dataset; give --dataset",
        ),
    ],
)
def test_flag_out_of_range(
    capsys, folders: Folders, prompts: Path, tmp_path: Path, flags: list[str], expected: str
) -> None:
    pair = ["--tuned", folders.tuned, "--untuned", folders.untuned, "--value", folders.value]
    guided = ["--token_guidance", "implicit", "--chunk_guidance", "explicit"]
    common = ["--base", folders.base, *pair, "--input", prompts, "--output", tmp_path / "o.jsonl"]
    given = guided if "--token_guidance" not in flags else guided[2:]
    assert expected in refusal(capsys, *common, *given, *flags)
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "no base model"),
        (["--base", "{base}"], "no output"),
        (["--base", "{base}", "--output", "o"], "no input"),
        (["--base", "{base}", "--tuned", "{tuned}"], "a pair needs both tuned and untuned; give --untuned"),
        (["--base", "{base}", "--beta", "1"], "--beta weighs a guide"),
        (["--base", "{base}", "--token_guidance", "implicit"], "token_guidance implicit needs a pair"),
        (["--base", "{base}", "--chunk_guidance", "explicit"], "chunk_guidance explicit needs a value model"),
        (["--base", "{base}", "--num_beams", "2"], "chunk_guidance none ranks nothing"),
        (["--base", "{base}", "search.num_beams=2"], "needs --config"),
        (["--base", "{base}", "--vocab_mapping", "refuse"], "--vocab_mapping belongs to a pair"),
        (
            ["--base", "{base}", "--static_steps"],
            "static_steps is true, but lockstep has no CUDA graphs any more; leave it out (vLLM has them: "
            "engine: vllm)",
        ),
    ],
)
def test_incomplete_command_line(capsys, folders: Folders, flags: list[str], expected: str) -> None:
    filled = [flag.format(**folders._asdict()) for flag in flags]
    assert expected in refusal(capsys, *filled)


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("base: x\nstatic_steps: true\n", "static_steps is true, but lockstep has no CUDA graphs any more"),
        ("base: {path: x}\nserach: {}\n", "unknown key 'serach'; did you mean 'search'?"),
        ("base: {pth: x}\n", "model: unknown key 'pth'; did you mean 'path'?"),
        ("base: x\nsearch: {num_beam: 2}\n", "search: unknown key 'num_beam'; did you mean 'num_beams'?"),
        ("base: x\nsampling: {temprature: 1}\n", "did you mean 'temperature'?"),
        ("base: x\nsearch: {num_beams: true}\n", "found true where a number belongs"),
        ("base: x\npairs: [{tuned: a, untuned: b, beta: yes}]\n", "found true where a number belongs"),
        (
            "base: x\npairs: [{tuned: a, untuned: b, bta: 1}]\n",
            "pairs: unknown key 'bta'; did you mean 'beta'?",
        ),
        ("base: x\npairs: [{tuned: a}]\n", "untuned is missing"),
        ("base: x\nvalues: [{path: a, wieght: 1}]\n", "unknown key 'wieght'"),
        ("base: x\nsearch: {num_beams: two}\n", "search.num_beams is 'two'; give an integer"),
        ("base: x\nsearch: 3\n", "search is 3; give keys, such as token_guidance"),
        ("base: x\npairs: [3]\n", "pairs is (3,); give a list, each of its entries keys, such as tuned"),
        ("base: x\non_overflow: end\n", "on_overflow is 'end'; give one of error, stop"),
        (
            "base: {path: x, quantization: 3bit}\n",
            "base.quantization is '3bit'; give one of 4bit, 8bit or null",
        ),
        ("base: x\nmax_batch_rows: ${nope}\n", "Interpolation key 'nope' not found"),
        ("base: [x\n", "not valid YAML"),
        ("- base\n", "config"),
    ],
)
def test_bad_yaml(capsys, prompts: Path, tmp_path: Path, yaml: str, expected: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml)
    assert expected in refusal(capsys, "--config", path, "--input", prompts, "--output", tmp_path / "o")


def test_missing_yaml(capsys, tmp_path: Path) -> None:
    assert "No such file" in refusal(capsys, "--config", tmp_path / "no.yaml")


def test_one_thing_as_flag_and_in_yaml(capsys, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("base: x\nsearch: {chunk_length: 3}\n")
    line = refusal(capsys, "--config", path, "--chunk_length", 4)
    assert "search.chunk_length is given both" in line


def test_folder_that_is_no_model(capsys, folders: Folders, prompts: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    common = ["--input", prompts, "--output", tmp_path / "o"]
    assert "has no config.json" in refusal(capsys, "--base", empty, *common)
    assert "no such folder" in refusal(capsys, "--base", tmp_path / "nothing", *common)
    assert "expected a causal language model" in refusal(capsys, "--base", folders.value, *common)
    value = ["--value", folders.tuned, "--chunk_guidance", "explicit"]
    assert "expected a token classifier" in refusal(capsys, "--base", folders.base, *value, *common)


def test_vocabulary_head_that_does_not_fit(capsys, folders: Folders, prompts: Path, tmp_path: Path) -> None:
    common = ["--base", folders.base, "--input", prompts, "--output", tmp_path / "o", "--max_new_tokens", 5]
    narrow = ["--value", folders.narrow_value, "--chunk_guidance", "explicit"]
    assert "its vocabulary head has 30 outputs" in refusal(capsys, *common, *narrow)
    scalar = ["--value", folders.scalar, "--token_guidance", "explicit"]
    assert "explicit token guidance needs a vocabulary head" in refusal(capsys, *common, *scalar)


def test_pair_with_another_vocabulary(capsys, folders: Folders, prompts: Path, tmp_path: Path) -> None:
    pair = ["--tuned", folders.other_vocabulary, "--untuned", folders.other_vocabulary]
    common = ["--base", folders.base, "--input", prompts, "--output", tmp_path / "o", "--max_new_tokens", 5]
    line = refusal(capsys, *common, *pair, "--token_guidance", "implicit")
    # 31 letters reversed: the middle one keeps its id, as do EOS and PAD.
    assert "33 of the base's 33 token strings are shared, 3 under the same id" in line


def test_output_that_cannot_be_written(capsys, folders: Folders, prompts: Path) -> None:
    output = prompts / "inside-a-file" / "o.jsonl"
    line = refusal(
        capsys, "--base", folders.base, "--input", prompts, "--output", output, "--max_new_tokens", 5
    )
    assert "Not a directory" in line


def test_output_of_other_origin_is_kept(capsys, folders: Folders, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    output.write_text("precious\n")
    line = refusal(
        capsys, "--base", folders.base, "--input", prompts, "--output", output, "--max_new_tokens", 5
    )
    assert "exists without a manifest" in line
    assert output.read_text() == "precious\n"


def test_the_installed_command_leaves_with_code_2(folders: Folders, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ivg.run.cli",
        "--base",
        folders.base,
        "--beta",
        "-1",
        "--value",
        folders.value,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: beta is -1.0; give a finite number >= 0\n"
    assert json.dumps(done.stdout) == '""'
