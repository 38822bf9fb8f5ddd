"""The same server over vLLM, asked by the same client; references are plain transformers models."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")
os.environ |= {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # compiling a helper of the sampler takes half a minute
}

import openai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engines.vllm.models import LETTERS, build, save
from tests.serve.load import check_that_nothing_stays, metrics, wait_until
from tests.serve.server import IVG, Running, serving

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
PROMPT = LETTERS[:7]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("vllm")
    value = build("llama-value", 3, num_labels=1)
    value.config.architectures = ["LlamaForTokenClassification"]
    models = {
        "base": build("llama", 0, layers=3, heads=4),
        "tuned": build("llama", 1),
        "untuned": build("llama", 2),
        "value": value,
    }
    return {name: save(root / name, model) for name, model in models.items()}


@pytest.fixture(scope="module")
def server(folders: dict[str, str]) -> Iterator[Running]:
    exact = {name: {"path": path, "dtype": "float32"} for name, path in folders.items()}
    config = {
        "base": exact["base"],
        "pairs": [{"tuned": exact["tuned"], "untuned": exact["untuned"]}],
        "values": [exact["value"]],
        "engine": "vllm",
        # Small, so that its blocks have soon all been touched, and keys and values take no more memory.
        "vllm": {"max_num_seqs": 64, "kv_cache_memory_bytes": 64 * 2**20},
        "guidance": [
            {"name": "ivg", **IVG},
            {"name": "eft", "token_guidance": "implicit", "beta": 1.5},
            {"name": "base"},
        ],
        "sampling": {"max_new_tokens": 40},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)  # it would overrule kv_cache_memory_bytes
        with serving(config) as running:
            yield running


def reference(folders: dict[str, str], beta: float, ids: list[int]) -> torch.Tensor:
    """The formula for one sequence: (T, V) log-probs of what follows each token."""
    logps = []
    for name in ("base", "tuned", "untuned"):
        model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
        with torch.no_grad():
            logps.append(model(torch.tensor([ids])).logits[0].double().log_softmax(-1))
    base, tuned, untuned = logps
    return (base + beta * (tuned - untuned)).log_softmax(-1)


def ids_of(folders: dict[str, str], text: str) -> list[int]:
    return list(AutoTokenizer.from_pretrained(folders["base"])(text)["input_ids"])


@pytest.mark.parametrize(("preset", "beta"), [("base", 0.0), ("eft", 1.5)])
def test_echoed_log_probs_are_those_of_the_guided_distribution(
    server: Running, folders: Any, preset: str, beta: float
) -> None:
    text = LETTERS[:40]
    ids = ids_of(folders, text)
    (choice,) = (
        server.client()
        .completions.create(
            model=preset, prompt=[ids], max_tokens=1, temperature=0, logprobs=2, echo=True, seed=1
        )
        .choices
    )
    expected = reference(folders, beta, ids)
    own = choice.logprobs.token_logprobs
    assert own[0] is None
    assert own[1:-1] == pytest.approx([float(expected[t, i]) for t, i in enumerate(ids[1:])], abs=1e-3)
    assert own[-1] == pytest.approx(float(expected[-1].max()), abs=1e-3)
    top = choice.logprobs.top_logprobs[5]
    assert max(top.values()) == pytest.approx(float(expected[4].max()), abs=1e-3)
    assert choice.text[:-1] == text


def test_prompts_of_different_betas_can_be_scored_at_once(server: Running, folders: Any) -> None:
    ids = ids_of(folders, LETTERS[:20])
    betas = [0.0, 0.5, 1.0, 2.0] * 4

    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.completions.create(
                    model="eft",
                    prompt=[ids],
                    max_tokens=0,
                    logprobs=0,
                    echo=True,
                    extra_body={"guidance": {"beta": beta}},
                )
                for beta in betas
            ]
            return await asyncio.gather(*asked)

    found = asyncio.run(ask_all())
    references = {beta: reference(folders, beta, ids) for beta in set(betas)}
    for beta, answer in zip(betas, found, strict=True):
        expected = references[beta]
        own = answer.choices[0].logprobs.token_logprobs
        assert own[1:] == pytest.approx([float(expected[t, i]) for t, i in enumerate(ids[1:])], abs=1e-3)


@pytest.mark.parametrize(("preset", "beta"), [("base", 0.0), ("eft", 1.5)])
def test_greedy_answers_follow_the_formula(server: Running, folders: Any, preset: str, beta: float) -> None:
    ids = ids_of(folders, PROMPT)
    found = server.client().completions.create(model=preset, prompt=[ids], max_tokens=12, temperature=0)
    expected = list(ids)
    while len(expected) < len(ids) + 12:
        expected.append(int(reference(folders, beta, expected)[-1].argmax()))
    tok = AutoTokenizer.from_pretrained(folders["base"])
    text = tok.decode(expected[len(ids) :], skip_special_tokens=True)
    assert found.choices[0].text == text[: len(found.choices[0].text)]
    assert found.usage.completion_tokens == 12 or found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("preset", ["ivg", "eft", "base"])
def test_streamed_pieces_add_up_and_seeds_decide(server: Running, preset: str) -> None:
    client, asked = server.client(), {"model": preset, "prompt": PROMPT, "seed": 3, "max_tokens": 40}
    whole = client.completions.create(**asked).choices[0]
    chunks = list(client.completions.create(**asked, stream=True))
    texts = [chunk.choices[0].text for chunk in chunks]
    assert "".join(texts) == whole.text
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    assert len([text for text in texts if text]) > 1 or whole.finish_reason == "stop"
    other = client.completions.create(**{**asked, "seed": 4}).choices[0]
    assert other.text != whole.text


def test_requests_bring_their_own_guidance(server: Running) -> None:
    client = server.client()

    def ask(preset: str, **guidance: Any) -> str:
        found = client.completions.create(
            model=preset, prompt=PROMPT, temperature=0, max_tokens=20, extra_body={"guidance": guidance}
        )
        return str(found.choices[0].text)

    assert ask("eft", beta=0.0) == ask("base") != ask("eft")
    wide = client.completions.create(
        model="ivg", prompt=PROMPT, seed=1, extra_body={"guidance": {"num_beams": 1, "chunk_length": 8}}
    )
    assert wide.choices[0].text


def test_what_vllm_cannot_do_is_a_400(server: Running) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError, match=r"temperature 0.005: vLLM would raise it"):
        client.completions.create(model="base", prompt=PROMPT, temperature=0.005)
    with pytest.raises(openai.BadRequestError, match="searches over chunks"):
        client.completions.create(model="ivg", prompt=PROMPT, logprobs=1)


def test_chats_need_a_template_or_one_turn(server: Running) -> None:
    client = server.client()
    turn = {"role": "user", "content": PROMPT}
    assert client.chat.completions.create(model="ivg", messages=[turn], max_tokens=4).choices
    with pytest.raises(openai.BadRequestError, match="a conversation of 2 messages needs a chat template"):
        client.chat.completions.create(model="ivg", messages=[turn, turn])


def count(server: Running, name: str) -> float:
    lines = metrics(server).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.mark.slow
def test_hundreds_of_clients_of_whom_a_third_hangs_up(server: Running) -> None:
    check_that_nothing_stays(server, LETTERS)
    # vLLM's own count of candidates, under its own name.
    wait_until(lambda: count(server, "vllm:num_requests_running") == 0)
    wait_until(lambda: count(server, "vllm:num_requests_waiting") == 0)
    assert count(server, "vllm:generation_tokens_total") > 0
    assert count(server, "ivg:request_success_total") >= 3 * 133
