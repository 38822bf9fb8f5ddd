"""Every block of code in the documentation and the README works, as far as that shows without real models.

Python is run on tiny models (what talks to a server is compiled); YAML goes through our own strict readers;
of every command, the verb, the flags, the make target, the extra and the files of the repository exist.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import GPT2ForTokenClassification
from trl import DPOConfig, RewardConfig

from docs.generate.commands import help_text, load_evaluation, options_of
from ivg.__main__ import EVALUATIONS, STAGES, VERBS
from ivg.config.yaml_file import config_from_dict, read_yaml
from ivg.evaluation.sweep.grid import read_grid
from ivg.run.command_line import flag_parser, parse
from ivg.serve.settings import settings_from_dict
from ivg.training.arguments import DataArguments, ModelArguments, parse_arguments
from ivg.training.merging import SFTArguments
from ivg.training.rollouts.arguments import RolloutArguments
from ivg.training.value.arguments import ValueTrainingArguments
from tests import tiny
from tests.docs.pages import PAGES, ROOT, Snippet, fenced, indented, snippets

STAGE_CLASSES: dict[str, tuple[type, ...]] = {
    "sft": (DataArguments, SFTArguments, ModelArguments),
    "dpo": (DataArguments, DPOConfig, ModelArguments),
    "reward": (DataArguments, RewardConfig, ModelArguments),
    "rollouts": (RolloutArguments,),
    "value": (DataArguments, ValueTrainingArguments, ModelArguments),
}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_pages_have_fenced_blocks_alone() -> None:
    assert [block.name for page in PAGES for block in indented(page)] == []
    languages = {
        block.language for language in ("python", "yaml", "bash", "text") for block in snippets(language)
    }
    assert languages == {"python", "yaml", "bash", "text"}


# Python


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny models where `make quickstart` leaves its own."""
    folder = tmp_path_factory.mktemp("quickstart")
    runs = folder / "runs" / "quickstart"
    models = {
        "base": tiny.llama(0, max_position_embeddings=256),
        "tuned": tiny.llama(1, max_position_embeddings=256),
        "untuned": tiny.llama(2, max_position_embeddings=256),
        "value": GPT2ForTokenClassification(
            tiny.gpt2_config(len(tiny.LETTERS) + 2, num_labels=1, n_positions=256)
        ),
    }
    for name, model in models.items():
        tiny.save(runs / name, model)
    return folder


@pytest.mark.parametrize("snippet", snippets("python"), ids=lambda snippet: snippet.name)
def test_python_runs(snippet: Snippet, quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(snippet.text, snippet.name, "exec")
    if "openai" not in snippet.text:  # tests/serve talks to a server
        monkeypatch.chdir(quickstart)
        exec(code, {"__name__": "snippet"})


# YAML


def read_stage(stage: str) -> Callable[[Path], object]:
    flags = [] if stage == "rollouts" else ["--use_cpu", "true"]
    return lambda path: parse_arguments(STAGE_CLASSES[stage], ["--config", str(path), *flags])


READERS: dict[str, Callable[[Path], object]] = {
    "run.yaml": lambda path: config_from_dict(read_yaml(str(path))),
    "serve.yaml": lambda path: settings_from_dict(read_yaml(str(path))),
    "sweep.yaml": lambda path: read_grid(str(path)),
    **{f"{stage}.yaml": read_stage(stage) for stage in STAGE_CLASSES},
}


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=lambda snippet: snippet.name)
def test_yaml_is_read_by_our_own_readers(snippet: Snippet, tmp_path: Path) -> None:
    path = tmp_path / snippet.title
    path.write_text(snippet.text)
    READERS[snippet.title](path)


# Commands

# Other people's programs, whose arguments are not ours to check.
FOREIGN = ("python3", "export", "hf", "vllm", "lm-eval", ".", "git")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(snippet: Snippet) -> list[list[str]]:
    """Return the words of each command of a block."""
    text = snippet.text.replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        # In YAML's braces a blank may follow a colon or comma, which a shell would split at.
        line = re.sub(r"=(\{.*?\})", lambda braces: "=" + shlex.quote(braces[1]), line)
        for part in shlex.split(line, comments=True) and re.split(r" && ", line):
            found.append(shlex.split(part, comments=True))
    return found


@pytest.mark.parametrize("snippet", snippets("bash"), ids=lambda snippet: snippet.name)
def test_commands_exist(snippet: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert commands(snippet)
    for words in commands(snippet):
        check_command(words)


@pytest.mark.parametrize("snippet", snippets("bash"), ids=lambda snippet: snippet.name)
def test_flags_go_with_the_run_that_the_page_shows(snippet: Snippet, tmp_path: Path) -> None:
    shown = [block for block in fenced(snippet.page) if block.title == "run.yaml"]
    for words in commands(snippet):
        rest = words[words.index("decode") + 1 :] if "decode" in words else []
        if shown and rest[:2] == ["--config", "run.yaml"]:
            path = tmp_path / "run.yaml"
            path.write_text(shown[0].text)
            parse(["--config", str(path), *rest[2:]])


def check_command(words: list[str]) -> None:
    while re.match(r"^[A-Z_]+=", words[0]):
        words = words[1:]
    name, rest = Path(words[0]).name if words[0] != "." else ".", words[1:]
    check_files(rest)
    if name in ("ivg", "ivg-decode", "ivg-convert-value"):
        assert name in PROJECT["scripts"]
        check_ivg(rest if name == "ivg" else [name.removeprefix("ivg-"), *rest])
    elif name == "make":
        assert rest[0] in TARGETS
    elif name == "python" and rest[0].startswith("eval/"):
        check_evaluation(Path(rest[0]).stem.replace("_", "-"), rest[1:])
    elif name == "python":  # a script of a recipe or a notebook
        text = (ROOT / rest[0]).read_text(encoding="utf-8")
        assert all(f'"{flag}"' in text for flag in rest[1:] if flag.startswith("--"))
    elif name == "accelerate":
        check_launch(rest)
    elif name == "pip":
        for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(rest)):
            assert set(extra.split(",")) <= set(PROJECT["optional-dependencies"])
    else:
        assert name in FOREIGN, f"{name} is unknown"


def check_files(words: list[str]) -> None:
    """Files of the repository that a command names are there."""
    for word in words:
        path = word.partition("=")[2] or word
        if re.match(r"(recipes|train|eval|docs|ivg|notebooks)/|constraints", path):
            assert (ROOT / path).exists(), path


def check_ivg(words: list[str]) -> None:
    verb, *rest = words
    if verb == "--help":
        return
    assert verb in VERBS
    if verb == "decode":
        known = {option for action in flag_parser()._actions for option in action.option_strings}
        assert flags_of(rest) <= known
        if "--config" not in rest and "..." not in rest:
            parse(rest)
    elif verb == "train":
        place = next(i for i, word in enumerate(rest) if word in STAGES)  # the launcher's flags stand before
        check_stage(rest[place], rest[place + 1 :])
    elif verb == "eval":
        check_evaluation(rest[0], rest[1:])
    else:
        known_words = help_text(verb)
        assert all(flag in known_words for flag in flags_of(rest))


def flags_of(words: list[str]) -> set[str]:
    return {
        word.partition("=")[0].replace("-", "_").replace("__", "--", 1)
        for word in words
        if word.startswith("--")
    }


def check_stage(stage: str, words: list[str]) -> None:
    fields = {field.name for cls in STAGE_CLASSES[stage] for field in dataclasses.fields(cls)}
    assert stage in STAGES
    assert flags_of(words) <= {f"--{name}" for name in (*fields, "config", "help_all")}


def check_evaluation(name: str, words: list[str]) -> None:
    assert name in EVALUATIONS
    options = options_of(load_evaluation(name))
    fields = [] if options is None else [field.name for field in dataclasses.fields(options)]
    assert flags_of(words) <= {f"--{field}" for field in (*fields, "config")}
    if options is None:
        config = words[words.index("--config") + 1]
        if config.startswith("recipes/"):
            read_grid(config)


def check_launch(words: list[str]) -> None:
    """Check what follows `accelerate launch` and its own flags."""
    if "-m" in words:
        check_ivg(words[words.index("-m") + 2 :])
        return
    script = next(word for word in words if word.startswith("train/"))
    rest = words[words.index(script) + 1 :]
    stage = Path(script).stem
    check_stage(stage, rest)
    if rest[1].startswith("recipes/"):
        assert yaml.safe_load((ROOT / rest[1]).read_text())
