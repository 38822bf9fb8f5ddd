"""`ivg export-vllm` without vLLM: what stands in the folder, and what is refused. vLLM's own part of the test
is in tests/engines/vllm/test_export.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivg.__main__ import main
from ivg.engines.vllm.description import Description, this_plugin
from tests import tiny

V = len(tiny.LETTERS) + 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "tuned", "untuned")):
        tiny.save(folder / name, tiny.causal(seed))
    short = tiny.llama(3, max_position_embeddings=40)
    tiny.save(folder / "short", short)
    tiny.save(folder / "windowed", tiny.mistral(4))
    return folder


def flags(folder: Path, output: Path, *, tuned: str = "tuned", beta: str = "0.7") -> list[str]:
    untuned = "untuned" if tuned == "tuned" else tuned
    models = {"base": "base", "tuned": tuned, "untuned": untuned}
    given = [text for role, name in models.items() for text in (f"--{role}", str(folder / name))]
    return [*given, "--beta", beta, "--token_guidance", "implicit", "--output", str(output)]


def test_the_folder_names_base_guides_and_betas(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "guided"
    assert main(["export-vllm", *flags(folder, output), "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.endswith(f"serve it with: vllm serve {output} --dtype float32\n")
    config = json.loads((output / "config.json").read_text())
    own = json.loads((folder / "base" / "config.json").read_text())
    assert config["architectures"] == ["IvgForCausalLM"]
    assert config["vocab_size"] == V
    assert config["n_positions"] == own["n_positions"]
    assert config["dtype"] == "float32"
    assert config["ivg"]["exported_by"] == this_plugin()
    description = Description.from_dict(config["ivg"])
    (guide,) = description.guides
    assert guide.beta == 0.7
    located = description.located(str(output))
    members = [located.base, *located.guides[0].members]
    assert [Path(member.path).resolve() for member in members] == [
        (folder / name).resolve() for name in ("base", "tuned", "untuned")
    ]
    # Weights and tokenizer are the base's own, not copies; nothing unfinished is left beside the folder.
    for name in ("model.safetensors", "tokenizer.json"):
        assert (output / name).is_symlink()
        assert (output / name).read_bytes() == (folder / "base" / name).read_bytes()
    assert list(output.parent.iterdir()) == [output]


def test_a_guide_s_shorter_context_is_the_folder_s(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "guided"
    assert main(["export-vllm", *flags(folder, output, tuned="short")]) == 0
    assert json.loads((output / "config.json").read_text())["n_positions"] == 40


def test_a_folder_of_another_version_is_refused(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "guided"
    assert main(["export-vllm", *flags(folder, output)]) == 0
    entry = json.loads((output / "config.json").read_text())["ivg"] | {"exported_by": "ivg==0.0.1"}
    with pytest.raises(ValueError, match=r"was exported by ivg==0\.0\.1, and this is ivg=="):
        Description.from_dict(entry).located(str(output))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--token_guidance": "none"}, "token_guidance is none"),
        ({"--tuned": "windowed", "--untuned": "windowed"}, "sliding-window attention"),
        ({"--tuned": "nowhere/at/all"}, "no such folder"),
        ({"--output": None}, "no folder to write: give --output FOLDER"),
        ({"--output": "."}, "exists; give a new folder"),
        ({"--output": "base/config.json"}, "exists; give a new folder"),
        ({"--output": "base/config.json/guided"}, "cannot be written: File exists"),
        ({"--beta": "-1"}, "beta is -1"),
        ({"--dtype": "float64"}, "dtype float64"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str | None],
    message: str,
) -> None:
    given = flags(folder, tmp_path / "guided")
    options: dict[str, str | None] = dict(zip(given[::2], given[1::2], strict=True))
    for name, value in changed.items():
        is_path = value is not None and name in ("--tuned", "--untuned", "--output")
        options[name] = str(folder / str(value)) if is_path else value
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(["export-vllm", *(text for pair in options.items() if pair[1] is not None for text in pair)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "guided").exists()
