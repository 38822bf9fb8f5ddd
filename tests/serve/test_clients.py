"""Clients of others against a running `ivg serve`: alpaca_eval's own and lm-evaluation-harness.

`make serve-check` runs them all, on both engines; `make test` runs alpaca_eval's on lockstep. The models are
folders made on the spot.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engines.vllm.models import LETTERS, build, save
from tests.serve.server import IVG

ROOT = Path(__file__).parents[2]
PYTHONS = {"lockstep": sys.executable, "vllm": str(ROOT / ".venv-vllm" / "bin" / "python")}
LM_EVAL = ROOT / ".venv-lm-eval" / "bin" / "lm_eval"
IS_WHOLE = os.environ.get("IVG_SERVE_CHECK") == "1"  # set by `make serve-check`, which installs everything
BETA = 1.5
PRESETS = [
    {"name": "ivg", **IVG},
    {"name": "eft", "token_guidance": "implicit", "beta": BETA},
    {"name": "base"},
]
DOCS = [
    {
        "context": LETTERS[i : i + 12],
        "choices": [LETTERS[i + 12 : i + 15], LETTERS[60 - i : 66 - i], LETTERS[100 + i]],
        "answer": i % 3,
    }
    for i in range(6)
]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of other people's packages


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("models")
    value = build("llama-value", 3, num_labels=1)
    value.config.architectures = ["LlamaForTokenClassification"]
    models = {
        "base": build("llama", 0),
        "tuned": build("llama", 1),
        "untuned": build("llama", 2),
        "value": value,
    }
    return {name: save(root / name, model) for name, model in models.items()}


@pytest.fixture(scope="module", params=list(PYTHONS))
def url(
    request: pytest.FixtureRequest, folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Start `ivg serve` as anyone would, and stop it in the end."""
    engine = request.param
    if engine == "vllm" and not IS_WHOLE:
        pytest.skip("starts vLLM; run: make serve-check")
    exact = {name: {"path": path, "dtype": "float32"} for name, path in folders.items()}
    config: Path = tmp_path_factory.mktemp("config") / "serve.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "base": exact["base"],
                "pairs": [{"tuned": exact["tuned"], "untuned": exact["untuned"]}],
                "values": [exact["value"]],
                "engine": engine,
                "guidance": PRESETS,
                "serve": {"port": 0, "api_key": "secret"},
            }
        )
    )
    process = subprocess.Popen(
        [PYTHONS[engine], "-m", "ivg", "serve", "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert process.stderr is not None
    found = None
    for line in iter(process.stderr.readline, ""):
        if found := re.search(r"serving ivg, eft, base on (\S+)", line):
            break
    assert found is not None, "the server did not start"
    yield found[1]
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said


@pytest.mark.parametrize("preset", ["ivg", "eft", "base"])
@pytest.mark.parametrize("is_chat", [True, False])
def test_alpaca_eval_s_own_client(url: str, tmp_path: Path, preset: str, is_chat: bool) -> None:
    pytest.importorskip("alpaca_eval", reason="run: make serve-check")
    from alpaca_eval.decoders.openai import openai_completions

    clients = tmp_path / "clients.yaml"
    clients.write_text(yaml.safe_dump({"default": [{"api_key": "secret", "base_url": url}]}))
    texts = [LETTERS[i : i + 8] for i in range(5)]
    prompts = [f"<|im_start|>user\n{text}<|im_end|>" for text in texts] if is_chat else texts
    found = openai_completions(
        prompts,
        model_name=preset,
        max_tokens=10,
        temperature=0.7,
        seed=1,  # an answer may rightly be empty where its first token ends it; with this seed none does
        requires_chatml=is_chat,
        client_config_path=clients,
        num_procs=2,
        batch_size=1 if is_chat else 3,
        price_per_token=0.0,
    )
    assert len(found["completions"]) == 5
    assert all(isinstance(text, str) and text for text in found["completions"])
    # Too long for the contexts of 160: this client lowers max_tokens by itself, as it does for OpenAI.
    long = openai_completions(
        prompts[:1],
        model_name=preset,
        max_tokens=200,
        requires_chatml=is_chat,
        client_config_path=clients,
        num_procs=1,
        price_per_token=0.0,
    )
    assert len(long["completions"]) == 1


def lm_eval(
    url: str, folder: Path, tokenizer: str, task: str, preset: str, *, num_concurrent: int = 3
) -> subprocess.CompletedProcess[str]:
    if not IS_WHOLE:
        pytest.skip("needs lm-evaluation-harness; run: make serve-check")
    lines = "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in DOCS)
    (folder / "docs.jsonl").write_text(lines, encoding="utf-8")
    arguments = {
        "model": preset,
        "base_url": f"{url}/completions",
        "tokenizer": tokenizer,
        "tokenizer_backend": "huggingface",
        "num_concurrent": num_concurrent,
        "max_retries": 1,
        "max_length": 160,
    }
    return subprocess.run(
        [
            str(LM_EVAL),
            *("run", "--model", "local-completions", "--tasks", task),
            *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
            *("--include_path", str(Path(__file__).parent / "lm_eval")),
            *("--output_path", str(folder / "out"), "--log_samples"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **os.environ,
            "OPENAI_API_KEY": "secret",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
        },
    )


def samples(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("out/**/samples_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("preset", ["ivg", "eft", "base"])
def test_lm_eval_generates_on_every_preset(
    url: str, folders: dict[str, str], tmp_path: Path, preset: str
) -> None:
    done = lm_eval(url, tmp_path, folders["base"], "ivg_generate", preset)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [sample["resps"][0][0] for sample in samples(tmp_path)]
    assert len(found) == len(DOCS)
    assert all(isinstance(text, str) and "Ą" not in text for text in found)
    assert any(found)


@pytest.mark.parametrize(("preset", "beta"), [("eft", BETA), ("base", 0.0)])
def test_lm_eval_gets_log_likelihoods_of_the_guided_distribution(
    url: str, folders: dict[str, str], tmp_path: Path, preset: str, beta: float
) -> None:
    done = lm_eval(url, tmp_path, folders["base"], "ivg_choice", preset)
    assert done.returncode == 0, done.stderr[-2000:]
    tok = AutoTokenizer.from_pretrained(folders["base"])
    models = [
        AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
        for name in ("base", "tuned", "untuned")
    ]
    for sample in samples(tmp_path):
        doc = sample["doc"]
        context = tok(doc["context"])["input_ids"]
        for choice, resps in zip(doc["choices"], sample["resps"], strict=True):
            ids = context + tok(choice)["input_ids"]
            with torch.no_grad():
                logps = [model(torch.tensor([ids])).logits[0].double().log_softmax(-1) for model in models]
            guided = (logps[0] + beta * (logps[1] - logps[2])).log_softmax(-1)
            places = range(len(context) - 1, len(ids) - 1)
            expected = sum(float(guided[t, ids[t + 1]]) for t in places)
            is_greedy = all(int(guided[t].argmax()) == ids[t + 1] for t in places)
            log_likelihood, greedy = resps[0]
            assert float(log_likelihood) == pytest.approx(expected, abs=2e-3)
            assert str(greedy) == str(is_greedy)


def test_lm_eval_is_told_why_chunk_search_has_no_log_likelihoods(
    url: str, folders: dict[str, str], tmp_path: Path
) -> None:
    done = lm_eval(url, tmp_path, folders["base"], "ivg_choice", "ivg", num_concurrent=1)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "400" in said
    assert "searches over chunks" in said, said
