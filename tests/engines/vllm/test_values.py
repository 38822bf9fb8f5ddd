"""Chunk scores that vLLM reports beside the ids are what transformers says of every candidate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from peft import LoraConfig, get_peft_model

from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.decoding.sequences import Finished, Task
from ivg.engines.vllm.engine import VllmEngine, prepare, start
from ivg.engines.vllm.row_settings import RowSettings
from ivg.models.plan import inspect_models, plan_guides, reading_models
from ivg.run.tasks import make_tasks
from tests import tiny
from tests.engines.vllm.models import EOS, LETTERS, V, build

FOREIGN_EOS = 40  # ends the base's responses, while the guides were trained on EOS
# The last tokens are two letters, of which the second is a stop string.
NUM_LETTERS = 130
TOKENS = [*LETTERS[:NUM_LETTERS], *(LETTERS[i] + LETTERS[11] for i in range(len(LETTERS) - NUM_LETTERS))]
TEXTS = [*TOKENS, "", ""]  # of every id: special tokens have none

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
Ids = tuple[int, ...]
SAMPLING = SamplingConfig(
    max_new_tokens=24, temperature=1.0, seed=3, stop=(LETTERS[7] + LETTERS[9], LETTERS[11])
)
SEARCH = SearchConfig(num_beams=2, num_successors=3, chunk_length=8, chunk_guidance="explicit")


@dataclasses.dataclass(frozen=True)
class World:
    """Folders, and the same models by transformers."""

    folder: Path
    modules: dict[str, torch.nn.Module]

    def source(self, name: str) -> ModelConfig:
        return ModelConfig(path=str(self.folder / name), dtype="float32")

    def outputs(self, name: str, ids: Ids) -> torch.Tensor:
        with torch.inference_mode():
            return self.modules[name](input_ids=torch.tensor([ids])).logits[0]

    def ratios(self, prompt: Ids, response: Ids) -> torch.Tensor:
        """(T,) log-ratios of the response's tokens."""
        ids = (*prompt, *response)
        at, tokens = torch.arange(len(prompt) - 1, len(ids) - 1), torch.tensor(response)
        tuned, untuned = (self.outputs(n, ids).log_softmax(-1)[at, tokens] for n in ("tuned", "untuned"))
        return tuned - untuned

    def scalar(self, prompt: Ids, response: Ids) -> float:
        return float(self.outputs("scalar", (*prompt, *response))[-1, 0])

    def vocabulary(self, prompt: Ids, response: Ids) -> float:
        return float(self.outputs("vocabulary", (*prompt, *response))[-2, response[-1]])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("models")
    modules = {
        "base": build("llama", 0, layers=3, heads=4),
        "untuned": build("llama", 2),
        "scalar": build("llama-value", 3, heads=4, num_labels=1),
        "vocabulary": build("llama-value", 4, layers=1, num_labels=V),
    }
    modules["base"].generation_config.eos_token_id = [EOS, FOREIGN_EOS]
    for name in ("scalar", "vocabulary"):
        modules[name].config.architectures = ["LlamaForTokenClassification"]
    for name, module in modules.items():
        tiny.save(folder / name, module, tiny.tokenizer(TOKENS))
    # `tuned` is a LoRA over `untuned` that was saved as an adapter.
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    tuned = get_peft_model(build("llama", 2), lora)
    torch.manual_seed(8)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.base_model.model.name_or_path = str(folder / "untuned")
    tuned.peft_config["default"].base_model_name_or_path = str(folder / "untuned")
    tuned.save_pretrained(folder / "tuned")
    modules["tuned"] = tuned.merge_and_unload().eval()
    return World(folder, modules)


def decode(
    world: World, search: SearchConfig, pair: PairConfig, values: list[ValueConfig]
) -> Iterator[Finished]:
    infos = inspect_models(world.source("base"), [pair], values)
    texts = ["".join(LETTERS[(3 * i + 5 * k) % NUM_LETTERS] for i in range(20 + 9 * k)) for k in range(6)]
    readers = reading_models(infos.base, plan_guides(infos, search))
    tasks, _ = make_tasks([{"prompt": text} for text in texts], readers, SAMPLING)
    args = {"enforce_eager": True, "max_num_seqs": 16, "block_size": 32}
    prepared = prepare(infos, search, SAMPLING, engine_args=args)
    # Boundaries are always known; only what guidance added to each token is not.
    engine: VllmEngine = start(
        prepared._replace(settings=dataclasses.replace(prepared.settings, keep_trace=True))
    )
    yield from engine.run(tasks)
    engine.close()


def as_trained(ids: Ids, reason: str | None) -> Ids:
    """Return a response as the guides were trained on it: without its stop string, closed by their end."""
    if reason == "eos":
        return (*ids[:-1], EOS)
    if reason == "stop":
        texts = ["".join(TEXTS[i] for i in ids[:n]) for n in range(len(ids) + 1)]
        text = texts[-1][: min(at for at in map(texts[-1].find, SAMPLING.stop) if at >= 0)]
        if text in texts:
            return (*ids[: max(n for n in range(len(texts)) if texts[n] == text)], EOS)
        return (*map(LETTERS.index, text), EOS)
    return ids


def prompt_of(task: Task) -> Ids:
    return next(iter(task.prompt_ids.values()))


KINDS: dict[str, tuple[SearchConfig, dict, list, Callable[[World, Ids, Ids], float]]] = {
    "scalar": (SEARCH, {}, [("scalar", 1.0)], World.scalar),
    "vocabulary": (SEARCH, {}, [("vocabulary", 0.5)], lambda w, x, y: 0.5 * w.vocabulary(x, y)),
    "implicit": (
        dataclasses.replace(SEARCH, chunk_guidance="implicit"),
        {},
        [],
        lambda w, x, y: float(w.ratios(x, y).sum()),
    ),
    "average and token guidance and scalar": (
        dataclasses.replace(SEARCH, token_guidance="implicit"),
        {"average": True, "chunk_weight": 2.0, "beta": 0.5},
        [("scalar", 0.7)],
        lambda w, x, y: 2 * float(w.ratios(x, y).mean()) + 0.7 * w.scalar(x, y),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_candidate_has_the_value_that_transformers_gives_it(world: World, kind: str) -> None:
    search, pair_options, values, expected = KINDS[kind]
    pair = PairConfig(tuned=world.source("tuned"), untuned=world.source("untuned"), **pair_options)
    configs = [ValueConfig(model=world.source(name), weight=weight) for name, weight in values]
    endings, worst, num_seen = set(), 0.0, 0
    for finished in decode(world, search, pair, configs):
        prompt = prompt_of(finished.task)
        for boundary in finished.trace:
            for candidate in boundary.candidates:
                read = as_trained(candidate.ids, candidate.finish_reason)
                error = abs(candidate.value - expected(world, prompt, read))
                worst, num_seen = max(worst, error), num_seen + 1
                is_eos = candidate.finish_reason == "eos"
                endings.add(candidate.ids[-1] if is_eos else candidate.finish_reason)
                if candidate.finish_reason == "stop" and candidate.ids[-1] >= NUM_LETTERS:
                    endings.add("inside a token")
                assert not {EOS, FOREIGN_EOS} & {*candidate.ids[:-1]}
            ranked = sorted(
                zip(boundary.candidates, boundary.rows, strict=True), key=lambda c: (-c[0].value, c[1])
            )
            assert boundary.kept == tuple(row for _, row in ranked[:2])
    print(f"{kind}: {num_seen} candidates, worst error {worst:.1e}, endings {endings}")
    assert worst < 1e-4
    assert num_seen > 30
    assert {"stop", "inside a token", FOREIGN_EOS} <= endings


def test_requests_of_one_batch_have_their_own_betas(world: World) -> None:
    """Greedy ids of eight requests, with betas from 0 to 3, follow the formula of each."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    pair = PairConfig(tuned=world.source("tuned"), untuned=world.source("untuned"))
    infos = inspect_models(world.source("base"), [pair])
    greedy = SamplingConfig(temperature=0.0)
    args = {"enforce_eager": True, "max_num_batched_tokens": 32, "max_num_seqs": 6, "block_size": 32}
    prepared = prepare(infos, SearchConfig(token_guidance="implicit"), greedy, engine_args=args)
    engine = LLMEngine.from_engine_args(EngineArgs(**prepared.engine_args))
    prompt, length = tuple(range(40)), 6
    betas = {str(i): 0.5 * (i % 7) for i in range(8)}  # more requests than places, so that rows close up
    for name, beta in betas.items():
        params = SamplingParams(
            temperature=0.0,
            max_tokens=length + int(name),
            ignore_eos=True,
            detokenize=False,
            extra_args=RowSettings((beta,)).to_extra_args(),
        )
        engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
    found: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                found[output.request_id] = list(output.outputs[0].token_ids)
    engine.engine_core.shutdown()
    for name, beta in betas.items():
        ids = prompt
        for _ in range(length + int(name)):
            base, tuned, untuned = (
                world.outputs(n, ids)[-1].log_softmax(-1) for n in ("base", "tuned", "untuned")
            )
            ids = (*ids, int((base + beta * (tuned - untuned)).argmax()))
        assert found[name] == list(ids[len(prompt) :]), beta
    assert len({tuple(ids[:length]) for ids in found.values()}) > 3
