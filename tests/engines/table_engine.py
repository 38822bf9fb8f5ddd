"""The smallest engine: models are tables, rows run one by one. What a third engine must do, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.beam_search import BeamSearch, Extension
from ivg.decoding.engine import PrefixScorer
from ivg.decoding.log_ratio import log_ratio
from ivg.decoding.sampling import next_tokens
from ivg.decoding.sequences import Finished, Hypothesis, Task
from ivg.decoding.stopping import StopChecker
from ivg.decoding.token_guidance import WeightedScores, guide_logits
from tests.engines.worlds import World


class TableEngine:
    """See `ivg.decoding.engine.Engine`."""

    def __init__(
        self,
        world: World,
        search: SearchConfig,
        sampling: SamplingConfig,
        stop_checker: StopChecker,
        scorer: PrefixScorer | None = None,
    ) -> None:
        self.world = world
        self.search = search
        self.sampling = sampling
        self.stop_checker = stop_checker
        self.scorer = scorer

    def run(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        for task in tasks:
            search = BeamSearch(task, self.search, self.sampling.seed)
            while not search.is_done:
                extensions = search.extensions()
                uniforms = search.uniforms(max(e.max_tokens for e in extensions))
                search.take([self._extend(task, e, u) for e, u in zip(extensions, uniforms, strict=True)])
                if self.scorer is not None:
                    candidates = search.candidates()
                    search.add_values(self.scorer([task] * len(candidates), candidates))
                search.advance()
            yield search.finished()

    def close(self) -> None:
        pass

    def _extend(self, task: Task, extension: Extension, uniforms: np.ndarray) -> Hypothesis:
        prefix, options = extension.prefix.ids, self.sampling
        ids = list(prefix)
        for t in range(extension.max_tokens):
            base, tuned, untuned = (
                torch.from_numpy(table[len(ids), (0, *ids)[-1]])[None]
                for table in (self.world.base, self.world.tuned, self.world.untuned)
            )
            is_guided = self.search.token_guidance == "implicit"
            guides = [WeightedScores(self.world.beta, log_ratio(tuned, untuned))] if is_guided else []
            next_id = next_tokens(
                guide_logits(base, guides),
                torch.from_numpy(uniforms[t : t + 1]),
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
            )
            ids.append(int(next_id))
        ending = self.stop_checker.find(prefix, np.array(ids[len(prefix) :]), task)
        kept = tuple(ids[: len(prefix) + ending.num_tokens])
        kind = self.search.chunk_guidance
        return Hypothesis(kept, 0.0 if kind == "none" else self.world.value(kept, kind), ending.reason)
