"""vLLM keeps what every engine promises, on models that are tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; run: make vllm")

from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine

from ivg.config import ModelConfig, SamplingConfig, SearchConfig
from ivg.decoding.engine import AsyncEngine, Engine, PrefixScorer
from ivg.decoding.stopping import StopChecker
from ivg.engines.vllm.description import Description, GuideDescription, Member
from ivg.engines.vllm.engine import AsyncVllmEngine, VllmEngine, guided_model_args
from ivg.engines.vllm.plugin import register
from ivg.engines.vllm.prompt_search import SearchSettings
from ivg.engines.vllm.row_settings import RowSettings
from tests.engines.contract import EFT, MIN_P, EngineContract, answers, make_stop_checker, make_tasks
from tests.engines.vllm.models import table_gpt2
from tests.engines.worlds import LENGTH, World, build_world, enumerate_sequences, next_probs, p_value

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


class TestVllmEngine(EngineContract):
    """Each world is loaded once and serves all settings; requests bring their betas."""

    takes_uniforms = False
    num_samples = 3_000
    num_worlds = 3  # each is an engine to start

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        self.loaded: dict[tuple, LLMEngine] = {}
        yield
        for engine in self.loaded.values():
            engine.engine_core.shutdown()

    def build(
        self,
        world: World,
        search: SearchConfig,
        sampling: SamplingConfig,
        stop_checker: StopChecker,
        scorer: PrefixScorer | None = None,
    ) -> Engine:
        description = self._describe(world, search)
        key = id(world), description
        if key not in self.loaded:
            self.loaded[key] = LLMEngine.from_engine_args(EngineArgs(**self._args(description)))
        settings = SearchSettings(
            description=description,
            rows=self._rows(world, search),
            search=search,
            sampling=sampling,
            stop_checker=stop_checker,
            scorer=scorer,
        )
        return VllmEngine(self.loaded[key], settings)

    def build_async(
        self, world: World, search: SearchConfig, sampling: SamplingConfig, stop_checker: StopChecker
    ) -> AsyncEngine:
        description = self._describe(world, search)
        settings = SearchSettings(
            description=description,
            rows=self._rows(world, search),
            search=search,
            sampling=sampling,
            stop_checker=stop_checker,
        )
        return AsyncVllmEngine(
            AsyncLLM.from_engine_args(AsyncEngineArgs(**self._args(description))), settings
        )

    def _args(self, description: Description) -> dict[str, Any]:
        register()
        source = ModelConfig(path=description.base.path, dtype="float32")
        args = guided_model_args(source, description, context=LENGTH + 1)
        return args | {"enforce_eager": True, "max_num_seqs": 128, "block_size": 32}

    def _describe(self, world: World, search: SearchConfig) -> Description:
        guides = []
        if "implicit" in (search.token_guidance, search.chunk_guidance):
            members = tuple(self._save(world, name) for name in ("tuned", "untuned"))
            guides.append(GuideDescription(members=members, num_shared=world.size))
        if search.chunk_guidance == "explicit":
            guides.append(GuideDescription(members=(self._save(world, "values"),), num_shared=world.size))
        return Description(base=self._save(world, "base"), guides=tuple(guides), num_base=world.size)

    def _rows(self, world: World, search: SearchConfig) -> RowSettings:
        beta = world.beta if search.token_guidance == "implicit" else 0.0
        has_pair = "implicit" in (search.token_guidance, search.chunk_guidance)
        weights = [float(search.chunk_guidance == "implicit")] * has_pair
        betas = [beta] * has_pair
        if search.chunk_guidance == "explicit":
            betas, weights = [*betas, 0.0], [*weights, 1.0]
        return RowSettings(tuple(betas), None if search.chunk_guidance == "none" else tuple(weights))

    def _save(self, world: World, name: str) -> Member:
        table: np.ndarray = getattr(world, name)
        folder = self.folder / f"{id(world)}-{name}"
        is_value = name == "values"
        if not folder.exists():
            # The last token is fed for its value, so all models have its position; their logits go unused.
            outputs = table[..., None] if is_value else np.concatenate([table, table[-1:]])
            table_gpt2(outputs, is_value=is_value).save_pretrained(folder)
        return Member(path=str(folder), num_labels=int(is_value))

    @pytest.mark.slow
    def test_a_beta_that_is_five_percent_off_is_seen(self) -> None:
        world, sampling = build_world(0, 8, scale=1.5), SamplingConfig(max_new_tokens=LENGTH, seed=11)
        engine = self.build(world, EFT, sampling, make_stop_checker((7,)))
        counts = Counter(ids for ids, _ in answers(engine, make_tasks(10_000)))
        for beta, is_right in ((1.0, True), (1.05, False)):
            probs = next_probs(world.base, world.tuned, world.untuned, beta=beta)
            assert (p_value(counts, enumerate_sequences(probs, eos=7)) > MIN_P) is is_right


def test_the_table_model_is_its_table() -> None:
    import torch

    table = np.random.default_rng(0).normal(0, 1, (4, 8, 8))
    ids = torch.tensor([[0, 5, 7, 3], [1, 1, 2, 6]])
    found = table_gpt2(table)(input_ids=ids).logits.numpy()
    np.testing.assert_allclose(found, table[np.arange(4), ids], atol=2e-5)
