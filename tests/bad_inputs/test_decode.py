"""Bad inputs of `ivg-decode`: each ends in one line and exit code 2, before any weights are loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ivg.models import loading
from ivg.run import cli
from tests import tiny
from tests.bad_inputs.table import Case, copied, refusal

HUGE = "9" * 5000
DEEP = "[" * 100_000


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "model"
    tiny.save(folder, tiny.causal(0))
    return folder


def flags(*more: object) -> Callable[[Path], Sequence[object]]:
    return lambda folder: ["--base", "{model}", "--input", "{prompts}", "--output", folder / "o", *more]


def config(text: str) -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        (folder / "c.yaml").write_text(text)
        return ["--config", folder / "c.yaml", "--input", "{prompts}", "--output", folder / "o"]

    return make


def prompts(content: bytes, name: str = "p.jsonl") -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        (folder / name).write_bytes(content)
        return ["--base", "{model}", "--input", folder / name, "--output", folder / "o"]

    return make


def damaged(harm: Callable[[Path], object]) -> Callable[[Path], Sequence[object]]:
    """Give a copy of the model with which something is wrong."""

    def make(folder: Path) -> Sequence[object]:
        harm(folder / "base")
        return ["--base", folder / "base", "--input", "{prompts}", "--output", folder / "o"]

    return make


def edited(file: str, **keys: Any) -> Callable[[Path], Sequence[object]]:
    def harm(base: Path) -> None:
        path = base / file
        data = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**data, **keys}))

    return damaged(harm)


def replaced(file: str, content: str | bytes) -> Callable[[Path], Sequence[object]]:
    data = content if isinstance(content, bytes) else content.encode()
    return damaged(lambda base: (base / file).write_bytes(data))


def piped(file: str) -> Callable[[Path], Sequence[object]]:
    def harm(base: Path) -> None:
        (base / file).unlink(missing_ok=True)
        os.mkfifo(base / file)

    return damaged(harm)


def pipe_as_input(folder: Path) -> Sequence[object]:
    os.mkfifo(folder / "pipe.jsonl")
    return ["--base", "{model}", "--input", folder / "pipe.jsonl", "--output", folder / "o"]


def value_function(name: str, *more: object) -> Callable[[Path], Sequence[object]]:
    keys = f"values: [{{function: {name}}}]\nsearch: {{chunk_guidance: explicit, num_successors: 2}}\n"

    def make(folder: Path) -> Sequence[object]:
        (folder / "c.yaml").write_text(f"base: {folder / 'base'}\nsampling: {{max_new_tokens: 5}}\n{keys}")
        return ["--config", folder / "c.yaml", "--input", "{prompts}", "--output", folder / "o", *more]

    return make


def pipe_as_config(folder: Path) -> Sequence[object]:
    os.mkfifo(folder / "c.yaml")
    return ["--config", folder / "c.yaml"]


CASES = [
    # Numbers
    Case("seed of 5,000 digits as a flag", flags("--seed", HUGE), "invalid int value"),
    Case("seed of 4,000 digits", flags("--seed", "9" * 4000), "seed is a number of 13288 bits"),
    Case("limit beyond 64 bits", flags("--limit", "9" * 30), "limit is a number of 100 bits"),
    Case("top_k beyond 64 bits", flags("--top_k", "9" * 30), "top_k is a number of"),
    Case("block_size beyond 64 bits", flags("--block_size", 2**64), "block_size is a number of 65 bits"),
    Case("temperature infinite", flags("--temperature", "inf"), "temperature is inf"),
    Case("top_p not a number", flags("--top_p", "nan"), "top_p is nan"),
    Case("more tokens than the context", flags("--max_new_tokens", 10**15), "exceeds its context of 64"),
    # Value functions
    Case(
        "reward as a value function",
        value_function("ivg.rewards.vader"),
        "value function ivg.rewards.vader: takes (rows, responses), so it is a reward; give a function of "
        "(record, responses) that asks it about ([record] * len(responses), responses)",
    ),
    Case(
        "function of one argument",
        value_function("ivg.rewards.sentiment"),
        "value function ivg.rewards.sentiment: takes (text); give a function of (record, responses)",
    ),
    # YAML
    Case(
        "number of 5,000 digits in YAML", config(f"base: x\nsampling: {{seed: {HUGE}}}\n"), "not valid YAML"
    ),
    Case(
        "hexadecimal number of 40,000 bits",
        config(f"base: x\nsampling: {{seed: 0x{'f' * 10_000}}}\n"),
        "seed is a number of 40000 bits",
    ),
    Case(
        "the same as a real number",
        config(f"base: x\nsampling: {{temperature: 0x{'f' * 10_000}}}\n"),
        "whole number beyond every other",
    ),
    Case("null character in YAML", config("base: x\0\n"), "not valid YAML"),
    Case("deep YAML", config(f"base: {DEEP}\n"), "not valid YAML"),
    Case("alias to itself", config("base: &a [*a]\n"), "c.yaml"),
    Case("environment variable that is not set", config("base: ${oc.env:IVG_NOT_SET}\n"), "IVG_NOT_SET"),
    Case("YAML that is a folder", lambda folder: ["--config", folder], "is no regular file"),
    Case("YAML that is a pipe", pipe_as_config, "is no regular file"),
    Case("YAML that is a device", lambda _: ["--config", "/dev/zero"], "is no regular file"),
    Case("YAML that is not UTF-8", lambda f: _written(f, b"base: \xff\n"), "not valid YAML"),
    Case("null character in the YAML's path", lambda _: ["--config", "a\0b"], "not valid YAML"),
    Case("keys that are no text", config("base: x\n3: y\n"), "unknown key '3'"),
    Case(
        "value weight twice",
        config("base: x\nvalues: [{path: v, weight: 1, chunk_weight: 1}]\n"),
        "two names",
    ),
    Case(
        "value weight of text",
        config("base: x\nvalues: [{path: v, weight: much}]\n"),
        "chunk_weight is 'much'",
    ),
    Case("override of a list by a word", lambda f: _override(f, "pairs.first.beta=1"), "c.yaml"),
    # Paths
    Case("null character in the base", flags("--tuned", "a\0b", "--untuned", "c"), "holds a null character"),
    Case(
        "null character in the input",
        lambda folder: ["--base", "{model}", "--input", "a\0b", "--output", folder / "o"],
        "input 'a\\x00b': holds a null character",
    ),
    Case(
        "null character in the output", flags("--output", "a\0b"), "output 'a\\x00b': holds a null character"
    ),
    Case("null character in the trace", flags("--trace", "a\0b"), "trace 'a\\x00b': holds a null character"),
    Case("name that is too long", flags("--output", "o" * 300), "File name too long"),
    Case("base whose name is too long", flags("--value", "./" + "v" * 300), "File name too long"),
    Case("pipe as input", pipe_as_input, "is a pipe or a device; send what it holds to standard input"),
    Case(
        "device as input",
        lambda folder: ["--base", "{model}", "--input", "/dev/zero", "--output", folder / "o"],
        "input /dev/zero: is a pipe or a device",
    ),
    # Records
    Case(
        "number of 5,000 digits in a record",
        prompts(b'{"prompt": "a", "n": ' + HUGE.encode() + b"}\n"),
        "line 1",
    ),
    Case("deep record", prompts(b'{"prompt": "a", "n": ' + DEEP.encode() + b"\n"), "line 1: not valid JSON"),
    Case("deep list", prompts(DEEP.encode(), "p.json"), "not valid JSON"),
    Case("prompt of null characters' kind", prompts(b'{"prompt": "\\ud800"}\n'), "half a surrogate pair"),
    Case("field that is not a number", prompts(b'{"prompt": "a", "x": NaN}\n'), "cannot be written as JSON"),
    Case("list that is an object", prompts(b'{"prompt": "a"}', "p.json"), "expected a JSON list"),
    Case("only a byte order mark", prompts(b"\xef\xbb\xbf"), "holds no prompts"),
    Case("UTF-16", prompts('{"prompt": "a"}'.encode("utf-16")), "not UTF-8"),
    # Models
    Case(
        "weights that are a pipe",
        piped("model.safetensors"),
        "model.safetensors in its folder is no regular file",
    ),
    Case("config.json that is a pipe", piped("config.json"), "config.json in its folder is no regular file"),
    Case(
        "tokenizer that is a pipe", piped("tokenizer.json"), "tokenizer.json in its folder is no regular file"
    ),
    Case(
        "adapter that is a pipe", piped("adapter_config.json"), "adapter_config.json in its folder is no reg"
    ),
    Case("deep config.json", replaced("config.json", DEEP), "base ("),
    Case("config.json of null characters", replaced("config.json", b"\0" * 50), "base ("),
    Case("config.json that is a list", replaced("config.json", "[]"), "base ("),
    Case(
        "vocab_size of 5,000 digits",
        replaced("config.json", f'{{"model_type": "gpt2", "vocab_size": {HUGE}}}'),
        "base (",
    ),
    Case(
        "vocabulary beyond memory",
        edited("config.json", vocab_size=10**13),
        "its configuration asks for at least",
    ),
    Case(
        "layers beyond memory", edited("config.json", n_layer=10**12), "its configuration asks for at least"
    ),
    Case("width beyond memory", edited("config.json", n_embd=10**10), "its configuration asks for at least"),
    Case("deep tokenizer.json", replaced("tokenizer.json", DEEP), "its tokenizer cannot be read"),
    Case(
        "EOS ids that are text",
        edited("generation_config.json", eos_token_id="</s>"),
        "eos_token_id is '</s>'",
    ),
    Case(
        "list of EOS ids with text",
        edited("generation_config.json", eos_token_id=[1, "a"]),
        "eos_token_id is [1, 'a']",
    ),
    Case(
        "EOS id that is a fraction", edited("generation_config.json", eos_token_id=1.5), "eos_token_id is 1.5"
    ),
    Case(
        "broken generation_config.json",
        replaced("generation_config.json", "{"),
        "generation_config.json cannot be read",
    ),
    Case(
        "deep generation_config.json",
        replaced("generation_config.json", DEEP),
        "generation_config.json cannot be read",
    ),
    Case(
        "generation_config.json that is a list",
        replaced("generation_config.json", "[]"),
        "generation_config.json",
    ),
    Case("empty chat template", replaced("chat_template.jinja", "{% for"), "refuses the messages"),
    Case("adapter without a base", replaced("adapter_config.json", "{}"), "adapter_config.json"),
    Case(
        "adapter over nothing", replaced("adapter_config.json", '{"base_model_name_or_path": null}'), "base ("
    ),
]


def _written(folder: Path, content: bytes) -> Sequence[object]:
    (folder / "c.yaml").write_bytes(content)
    return ["--config", folder / "c.yaml"]


def _override(folder: Path, text: str) -> Sequence[object]:
    (folder / "c.yaml").write_text("base: x\npairs: [{tuned: a, untuned: b}]\n")
    return ["--config", folder / "c.yaml", text]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input(
    case: Case,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "_load_module", lambda info: pytest.fail("weights were loaded"))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the movie"}\n')
    copied(str(model), tmp_path / "base")
    given = {"{model}": model, "{prompts}": tmp_path / "prompts.jsonl"}
    argv = [given.get(str(argument), argument) for argument in case.make(tmp_path)]
    if argv[0] == "--base" and "--max_new_tokens" not in argv:
        argv += ["--max_new_tokens", 5]
    assert case.expected in refusal(cli.main, argv, capsys)
    assert not (tmp_path / "o").exists()
