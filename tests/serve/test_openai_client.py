"""An unmodified openai client gets what `ivg.generate` gives for the same prompts, seeds and settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ivg
from ivg.config import SamplingConfig, SearchConfig
from ivg.models.loading import load_models
from tests.serve.server import IVG, Running

MESSAGES = [{"role": "user", "content": "hello there"}]
SEARCHES = {
    "ivg": SearchConfig(**IVG),
    "eft": SearchConfig(token_guidance="implicit"),
    "base": SearchConfig(),
}


@pytest.fixture(scope="module")
def loaded(models: dict[str, Any]) -> ivg.models.loading.Models:
    from ivg.config.yaml_file import config_from_dict

    config = config_from_dict(models)
    pairs = [dataclasses.replace(config.pairs[0], beta=1.0)]
    return load_models(config.base, pairs=pairs, values=config.values)


def generate(
    loaded: Any, models: dict[str, Any], record: Any, preset: str, *, beta: float | None = None, **kwargs: Any
) -> list[ivg.Response]:
    search = SEARCHES[preset]
    overrides = {key: kwargs.pop(key) for key in ("num_beams", "chunk_length") if key in kwargs}
    search = dataclasses.replace(search, **overrides)
    beta = {"eft": 1.5}.get(preset, 1.0) if beta is None else beta
    pairs = tuple(
        dataclasses.replace(
            pair, info=dataclasses.replace(pair.info, config=dataclasses.replace(pair.info.config, beta=beta))
        )
        for pair in loaded.pairs
    )
    infos = dataclasses.replace(loaded.infos, pairs=tuple(pair.info for pair in pairs))
    return ivg.generate(
        [record],
        dataclasses.replace(loaded, pairs=pairs, infos=infos),
        search=search,
        sampling=SamplingConfig(**{"max_new_tokens": 16, **kwargs}),
    )


def test_presets_are_the_models(server: Running) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["ivg", "eft", "base"]
    assert client.models.retrieve("eft").owned_by == "ivg"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.models.retrieve("gpt")


@pytest.mark.parametrize("preset", SEARCHES)
def test_chat_is_the_command_line_s_answer(server: Running, loaded: Any, models: Any, preset: str) -> None:
    (expected,) = generate(loaded, models, {"messages": MESSAGES}, preset, seed=7)
    found = server.client().chat.completions.create(model=preset, messages=MESSAGES, seed=7)
    (choice,) = found.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == ("length" if expected.finish_reason == "length" else "stop")
    # The template writes "u.hello there a.", one token a character.
    assert found.usage.prompt_tokens == len("u.hello there a.")
    assert found.usage.completion_tokens == expected.num_tokens
    assert found.usage.total_tokens == found.usage.prompt_tokens + expected.num_tokens
    assert found.model == preset


@pytest.mark.parametrize("preset", SEARCHES)
def test_completions_read_texts_and_ids_as_they_are(server: Running, models: Any, preset: str) -> None:
    """No template is put around a completion's prompt, for any model: it is the conversation as written."""
    client, tok = server.client(), AutoTokenizer.from_pretrained(models["base"])
    text = "u.hello there a."
    ids = tok(text)["input_ids"]
    prompts: list[Any] = [text, ids, [text], [ids]]
    found = [client.completions.create(model=preset, prompt=p, seed=7).choices[0].text for p in prompts]
    assert len(set(found)) == 1
    both = client.completions.create(model=preset, prompt=[text, "hi"], seed=7)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == found[0]
    twice = client.completions.create(model=preset, prompt=[text, text], seed=7)
    assert twice.choices[0].text == found[0] != twice.choices[1].text
    assert both.usage.prompt_tokens == len(text) + len("hi")


@pytest.mark.parametrize("preset", SEARCHES)
def test_streamed_pieces_add_up(server: Running, preset: str) -> None:
    client = server.client()
    asked = {"model": preset, "messages": MESSAGES, "seed": 3, "max_tokens": 30}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    *pieces, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert pieces[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in pieces]
    assert "".join(texts) == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert [chunk.choices[0].finish_reason for chunk in pieces[:-1]] == [None] * (len(pieces) - 1)


def test_text_is_streamed_before_the_end(server: Running) -> None:
    chunks = server.client().completions.create(
        model="base", prompt="hello", seed=1, max_tokens=40, stream=True, logit_bias={}
    )
    texts = [chunk.choices[0].text for chunk in chunks]
    assert len([text for text in texts if text]) > 1


def test_streamed_completions_can_be_several(server: Running) -> None:
    client, asked = server.client(), {"model": "base", "prompt": ["ab", "cd"], "n": 2, "seed": 5}
    whole = client.completions.create(**asked)
    texts, reasons = [""] * 4, [None] * 4
    for chunk in client.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = reasons[choice.index] or choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert len(set(texts)) > 2


def test_several_responses_are_independent_samples(server: Running, loaded: Any, models: Any) -> None:
    expected = generate(loaded, models, {"messages": MESSAGES}, "eft", seed=2, num_samples=3)
    found = server.client().chat.completions.create(model="eft", messages=MESSAGES, seed=2, n=3)
    assert [choice.message.content for choice in found.choices] == [r.text for r in expected]
    assert found.usage.prompt_tokens == len("u.hello there a.")


def test_requests_bring_their_own_guidance(server: Running, loaded: Any, models: Any) -> None:
    client = server.client()

    def ask(preset: str, **guidance: Any) -> str:
        found = client.chat.completions.create(
            model=preset, messages=MESSAGES, seed=4, extra_body={"guidance": guidance}
        )
        return str(found.choices[0].message.content)

    record = {"messages": MESSAGES}
    assert ask("eft", beta=0.0) == ask("base") == generate(loaded, models, record, "base", seed=4)[0].text
    assert ask("eft", beta=3) == generate(loaded, models, record, "eft", beta=3.0, seed=4)[0].text
    assert ask("eft", beta=3) != ask("eft")
    wider = generate(loaded, models, record, "ivg", beta=0.5, num_beams=4, chunk_length=2, seed=4)
    assert ask("ivg", beta=0.5, num_beams=4, chunk_length=2) == wider[0].text


def test_requests_bring_their_own_sampling(server: Running, loaded: Any, models: Any) -> None:
    sampling = {"temperature": 0.7, "top_p": 0.9, "seed": 11}
    found = server.client().chat.completions.create(
        model="eft", messages=MESSAGES, stop=["e", "zz"], extra_body={"top_k": 5}, max_tokens=30, **sampling
    )
    expected = generate(
        loaded,
        models,
        {"messages": MESSAGES},
        "eft",
        stop=("e", "zz"),
        top_k=5,
        max_new_tokens=30,
        **sampling,
    )
    assert found.choices[0].message.content == expected[0].text
    assert "e" not in expected[0].text


def test_without_a_seed_answers_differ(server: Running) -> None:
    client = server.client()
    found = [client.completions.create(model="base", prompt="hello").choices[0].text for _ in range(5)]
    texts = [text for text in found if text]  # an answer may end at once, and two may
    assert len(set(texts)) == len(texts) > 1


# ----- log-probs


def reference(models: dict[str, Any], beta: float, ids: list[int]) -> torch.Tensor:
    """The formula for one sequence without any cache: (T, V) log-probs of what follows each token."""
    pair = models["pairs"][0]
    logps = []
    for path in (models["base"], pair["tuned"], pair["untuned"]):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        with torch.no_grad():
            logps.append(model(torch.tensor([ids])).logits[0].log_softmax(-1))
    base, tuned, untuned = logps
    return (base + beta * (tuned - untuned)).log_softmax(-1)


@pytest.mark.parametrize(("preset", "beta"), [("base", 0.0), ("eft", 1.5)], ids=["unguided", "guided"])
def test_echoed_log_probs_are_those_of_the_guided_distribution(
    server: Running, models: Any, preset: str, beta: float
) -> None:
    """As lm-evaluation-harness asks for them: one token more, at temperature 0, with the prompt echoed."""
    tok = AutoTokenizer.from_pretrained(models["base"])
    text = "hello there, friend"
    ids = tok(text)["input_ids"]
    found = server.client().completions.create(
        model=preset, prompt=[ids, ids[:3]], max_tokens=1, temperature=0, logprobs=3, echo=True, seed=1234
    )
    expected = reference(models, beta, ids)
    choice = found.choices[0]
    own = choice.logprobs.token_logprobs
    assert choice.logprobs.tokens[:-1] == list(text)
    assert choice.text.startswith(text)
    assert choice.logprobs.text_offset == list(range(len(text) + 1))
    assert own[0] is None
    assert choice.logprobs.top_logprobs[0] is None
    assert own[1:-1] == pytest.approx([float(expected[t, i]) for t, i in enumerate(ids[1:])], abs=1e-9)
    # The token that was generated is the most probable one.
    assert own[-1] == pytest.approx(float(expected[-1].max()), abs=1e-9)
    for t, top in enumerate(choice.logprobs.top_logprobs[1:-1]):
        best = expected[t].topk(3)
        wanted = {tok.decode([int(i)]): float(v) for i, v in zip(best.indices, best.values, strict=True)}
        wanted[text[t + 1]] = float(expected[t, ids[t + 1]])
        assert top == pytest.approx(wanted, abs=1e-9)
    assert len(found.choices[1].logprobs.tokens) == 4


def test_a_prompt_alone_can_be_scored(server: Running, models: Any) -> None:
    found = server.client().completions.create(
        model="eft",
        prompt="hello",
        max_tokens=0,
        logprobs=0,
        echo=True,
        extra_body={"guidance": {"beta": 0.5}},
    )
    ids = AutoTokenizer.from_pretrained(models["base"])("hello")["input_ids"]
    expected = reference(models, 0.5, ids)
    (choice,) = found.choices
    assert choice.text == "hello"
    assert found.usage.completion_tokens == 0
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(
        [float(expected[t, i]) for t, i in enumerate(ids[1:])], abs=1e-9
    )


def test_log_probs_of_a_chat_are_those_of_its_response(server: Running, models: Any) -> None:
    found = server.client().chat.completions.create(
        model="eft", messages=MESSAGES, seed=1, max_tokens=6, logprobs=True, top_logprobs=2
    )
    content = found.choices[0].logprobs.content
    tok = AutoTokenizer.from_pretrained(models["base"])
    prompt = tok("u.hello there a.")["input_ids"]
    response = [tok.convert_tokens_to_ids(entry.token) for entry in content]
    expected = reference(models, 1.5, prompt + response)
    for t, entry in enumerate(content):
        row = expected[len(prompt) - 1 + t]
        assert entry.logprob == pytest.approx(float(row[response[t]]), abs=1e-9)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(row.topk(2).values.tolist())
        assert bytes(entry.bytes) == entry.token.encode()
