"""From checked settings to an application: models inspected, planned, loaded, and put behind the routes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry

from ivg.decoding.engine import refuse
from ivg.engines.chunk_guidance import import_value_function
from ivg.errors import UserError
from ivg.models.loading import load_inspected
from ivg.models.memory import check_it_fits
from ivg.models.plan import (
    GuidePlan,
    ModelInfos,
    inspect_models,
    plan_functions,
    plan_guides,
    reading_models,
    used_models,
)
from ivg.models.vocab import stop_token_ids
from ivg.run.engines import find_engine_refusals, importing_vllm
from ivg.serve.answers import Answers
from ivg.serve.app import Service, build_app
from ivg.serve.engines import ServedModels
from ivg.serve.lockstep import ServedLockstep
from ivg.serve.metrics import Metrics
from ivg.serve.settings import ServerSettings


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """A server whose models fit together; nothing is loaded.

    Attributes:
        infos: base and the guides that any preset uses.
        plans: by preset, who guides and how.
    """

    infos: ModelInfos
    plans: Mapping[str, Sequence[GuidePlan]]


def plan(settings: ServerSettings) -> Planned:
    """Check that every preset's guides can do what is asked of them.

    Raises:
        UserError: naming the preset.
    """
    run = settings.run
    infos = inspect_models(run.base, run.pairs, run.values)
    plans: dict[str, list[GuidePlan]] = {}
    for name, preset in settings.presets.items():
        try:
            plans[name] = plan_guides(infos, preset.search)
            refuse(run.engine, find_engine_refusals(run, infos, plans[name]))
            for function in plan_functions(infos, preset.search):
                import_value_function(function.name)
        except UserError as error:
            raise UserError(f"guidance {name}: {error}") from error
    every = [plan for of_preset in plans.values() for plan in of_preset]
    stop_token_ids(infos.base.tokenizer, run.sampling.stop)
    check_it_fits(reading_models(infos.base, every))
    return Planned(used_models(infos, every), plans)


def start(settings: ServerSettings, planned: Planned) -> FastAPI:
    """Load the models and return the application over them.

    Raises:
        UserError: weights that cannot be loaded.
        EngineError: vLLM could not start.
    """
    models, registry, prefix = _start_engine(settings, planned)
    base = planned.infos.base
    metrics = Metrics(registry, prefix, lambda: models.num_rows)
    answers = Answers(base, planned.plans, models)
    return build_app(Service(settings, answers, models, base.tokenizer, metrics), registry)


def _start_engine(settings: ServerSettings, planned: Planned) -> tuple[ServedModels, CollectorRegistry, str]:
    """Return the models of the chosen engine, where metrics go, and how their names begin."""
    run = settings.run
    if run.engine == "vllm":
        with importing_vllm():
            from ivg.serve.vllm import ServedVllm
        # vLLM counts under its own names, and requests there are single candidates.
        return ServedVllm(planned.infos, planned.plans, run.vllm), REGISTRY, "ivg"
    assert run.engine == "lockstep"
    loaded = load_inspected(planned.infos)
    served = ServedLockstep(
        loaded, planned.plans, max_rows=run.max_batch_rows, max_tokens=run.max_batch_tokens
    )
    return served, CollectorRegistry(), "vllm"
