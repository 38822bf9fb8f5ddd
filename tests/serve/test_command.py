"""`ivg serve` as a process: it says where it listens, answers, and stops when it is asked to."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.serve.server import PRESETS

ROOT = Path(__file__).parents[2]


def start(config: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ivg", "serve", "--config", str(config), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment},
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_starts_answers_and_finishes_what_runs_before_it_stops(
    tmp_path: Path, models: dict[str, Any], number: signal.Signals
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({**models, "guidance": PRESETS}))
    process = start(config, "--port", "0", IVG_API_KEY="secret")
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    said = next(line for line in lines if "serving" in line)
    url = re.fullmatch(r"serving ivg, eft, base on (http://127\.0\.0\.1:\d+/v1)\n", said)
    assert url is not None, said
    client = openai.OpenAI(base_url=url[1], api_key="secret", max_retries=0, timeout=60)
    answers = []

    def ask() -> None:
        stream = client.completions.create(model="ivg", prompt=["hello."] * 8, max_tokens=40, stream=True)
        answers.extend(chunk.choices[0].finish_reason for chunk in stream)

    with client.completions.with_streaming_response.create(model="base", prompt="hi", max_tokens=2) as first:
        assert first.status_code == 200
    asking = threading.Thread(target=ask)
    asking.start()
    while not answers:  # it has begun
        asking.join(0.02)
    process.send_signal(number)
    asking.join(60)
    assert len([reason for reason in answers if reason]) == 8
    assert process.wait(20) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    client.close()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"guidance": []}, "guidance is []; give a list of presets"),
    ({"guidance": [{"num_beams": 2}]}, "has no name"),
    ({"guidance": [{"name": ""}]}, "guidance: name is ''"),
    ({"guidance": [{"name": "a"}, {"name": "a"}]}, "guidance has 'a' twice"),
    (
        {"guidance": [{"name": "a", "num_beam": 2}]},
        "guidance a: unknown key 'num_beam'; did you mean 'num_beams'",
    ),
    (
        {"guidance": [{"name": "a", "chunk_guidance": "implicit"}], "pairs": []},
        "chunk_guidance implicit needs",
    ),
    ({"guidance": [{"name": "a", "beta": 1}]}, "guidance a: beta weighs token guidance, which is none"),
    ({"guidance": [{"name": "a", "token_guidance": "implicit", "beta": 11}]}, "above serve.max_beta 10"),
    ({"guidance": PRESETS, "search": {}}, "guidance lists all presets, so search would not be read"),
    ({"guidance": PRESETS, "serve": {"max_rows": 2}}, "guidance ivg: num_beams x num_successors 4 is above"),
    ({"guidance": PRESETS, "max_batch_rows": 2}, "guidance ivg: max_batch_rows is 2"),
    ({"guidance": PRESETS, "sampling": {"temperature": 0}}, "guidance ivg: temperature 0 is greedy"),
    ({"serve": {"max_rows": 65}}, "serve.max_rows 65 is above max_batch_rows 64"),
    ({"serve": {"port": 65536}}, "serve: port is 65536"),
    ({"serve": {"port": "http"}}, "serve: port is 'http'; give an integer"),
    ({"serve": {"api_key": " x"}}, "api_key is empty or has spaces"),
    ({"serve": {"max_tokens": 0}}, "serve: max_tokens is 0"),
    ({"serve": {"max_tokens": 8}}, "sampling.max_new_tokens 256 is above serve.max_tokens 8"),
    ({"serve": []}, "serve is []; give keys"),
    ({"serve": {"hots": "x"}}, "serve: unknown key 'hots'; did you mean 'host'"),
    ({"input": "x.jsonl"}, "input belongs to ivg decode"),
    ({"sampling": {"seed": 3}}, "clients give seed with each request"),
    ({"sampling": {"num_samples": 3}}, "clients give n with each request"),
    ({"engine": "vllm", "vllm": {"value_engine": {}}}, "vllm.value_engine belongs to ivg decode"),
    ({"engine": "vllm", "vllm": {"speculative_config": {}}}, "vllm.speculative_config belongs to ivg decode"),
    ({"guidence": PRESETS}, "unknown key 'guidence'; did you mean 'guidance'"),
    ({"base": 1}, "base"),
]


@pytest.mark.parametrize(("change", "expected"), BAD, ids=lambda value: repr(value)[:50])
def test_configurations_that_are_refused(models: dict[str, Any], change: Any, expected: str) -> None:
    from ivg.errors import UserError
    from ivg.serve.settings import settings_from_dict

    with pytest.raises(UserError, match=re.escape(expected)):
        settings_from_dict({**models, **change})


def test_without_a_list_the_search_section_is_the_preset(models: dict[str, Any]) -> None:
    from ivg.serve.settings import settings_from_dict

    guided = settings_from_dict({**models, "search": {"token_guidance": "implicit"}})
    assert list(guided.presets) == ["ivg", "base"]
    assert guided.presets["ivg"].search.token_guidance == "implicit"
    assert guided.presets["base"].search.token_guidance == "none"
    assert list(settings_from_dict({"base": models["base"]}).presets) == ["base"]


@pytest.mark.slow
def test_a_port_that_is_taken_is_told_before_anything_is_loaded(
    tmp_path: Path, models: dict[str, Any]
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(models))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(config, f"--port={port}")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"error: serve: cannot listen on 127.0.0.1:{port}: Address already in use" in said
