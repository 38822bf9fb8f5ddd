"""What a CPU does beyond plain torch can be switched off singly, together, and by deleting its folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import ivg
from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.engines.lockstep.acceleration import VARIABLE, Accelerations, has_compiled_loops
from ivg.engines.lockstep.engine import LockstepEngine
from ivg.errors import UserError
from ivg.models.loading import LoadedModel, Models, load_inspected, load_models
from tests import tiny

VOCAB = len(tiny.LETTERS) + 2
SEARCH = SearchConfig(
    token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=3, chunk_length=4
)
SAMPLING = SamplingConfig(max_new_tokens=14, seed=1)
PROMPTS = ["ab", "hello there.", "f", "what a day"]
ALONE = [(), *((name,) for name in Accelerations.names()), Accelerations.names()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "base": tiny.save(folder / "base", tiny.causal(1)),
        "tuned": tiny.save(folder / "tuned", tiny.llama(2)),
        "untuned": tiny.save(folder / "untuned", tiny.llama(3)),
        "value": tiny.save(folder / "value", tiny.value(4, num_labels=VOCAB)),
    }


def load(folders: dict[str, str], dtype: str) -> Models:
    def model(name: str) -> ModelConfig:
        return ModelConfig(path=folders[name], dtype=dtype)  # type: ignore[arg-type]

    pair = PairConfig(tuned=model("tuned"), untuned=model("untuned"))
    return load_models(model("base"), pairs=[pair], values=[ValueConfig(model=model("value"))])


def types(module: nn.Module) -> set[type]:
    return {type(child) for child in module.modules()}


@pytest.mark.parametrize("names", ALONE, ids=lambda names: ",".join(names) or "none")
def test_each_alone_changes_no_response(
    names: tuple[str, ...], folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for given in ("none", ",".join(names) or "none"):
        monkeypatch.setenv(VARIABLE, given)
        models = load(folders, "float64")
        found[given] = [
            (r.token_ids, *(round(beam.value, 9) for beam in r.beams))
            for r in ivg.generate(PROMPTS, models, search=SEARCH, sampling=SAMPLING)
        ]
    first, *others = found.values()
    assert all(other == first for other in others)


def test_an_engine_replaces_layers_of_models_that_were_loaded_here_alone(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    models = load(folders, "float32")
    before = types(models.base.module)
    given = LoadedModel(models.base.info, load(folders, "float32").base.module)  # as `ivg.hf.Guidance` does
    handed_in = load_inspected(models.infos, given)
    LockstepEngine(handed_in, SEARCH, SAMPLING)
    assert types(given.module) == before
    assert given.module.config._attn_implementation == "sdpa"
    assert types(handed_in.pairs[0].tuned.module) != types(models.pairs[0].tuned.module)
    LockstepEngine(models, SEARCH, SAMPLING)
    changed = types(models.base.module) - before
    assert {layer.__name__ for layer in changed} == {"PackedLinear", "FastGELU"}
    assert models.base.module.config._attn_implementation != "sdpa"
    assert type(models.values[0].model.head) is nn.Linear
    assert {layer.__name__ for layer in types(models.values[0].model.module)} >= {"PackedLinear"}
    LockstepEngine(models, SEARCH, SAMPLING)  # once more over the same: nothing is left to replace
    assert (
        types(models.base.module)
        == before
        - {nn.Linear}
        - {layer for layer in before if layer.__name__ in ("Conv1D", "NewGELUActivation")}
        | changed
    )


def test_the_environment_says_which() -> None:
    assert Accelerations.from_environment({}) == Accelerations()
    assert Accelerations.from_environment({VARIABLE: "none"}) == Accelerations.only(())
    some = Accelerations.from_environment({VARIABLE: "packed_weights, fast_gelu"})
    assert some == Accelerations.only(("packed_weights", "fast_gelu"))
    with pytest.raises(UserError, match="names 'packing'; give all, none, or some of packed_weights, "):
        Accelerations.from_environment({VARIABLE: "fast_gelu,packing"})


def test_the_compiled_loop_counts_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for without in ("none", "shared_prefixes", "compiled_attention"):
        monkeypatch.setenv(VARIABLE, without)
        assert not has_compiled_loops()


SCRIPT = """
import json, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]  # this copy alone
import importlib.util, ivg
from ivg import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.models.loading import load_models
folders, prompts, has_guest = json.loads(sys.argv[1])
assert (importlib.util.find_spec("ivg.engines.lockstep.cpu") is not None) == has_guest
base, tuned, untuned, value = (
    ModelConfig(path=folders[name], dtype="float32") for name in ("base", "tuned", "untuned", "value")
)
models = load_models(
    base, pairs=[PairConfig(tuned=tuned, untuned=untuned)], values=[ValueConfig(model=value)]
)
greedy = ivg.generate(
    prompts,
    models,
    search=SearchConfig(token_guidance="implicit"),
    sampling=SamplingConfig(max_new_tokens=14, temperature=0),
)
ivg_search = SearchConfig(
    token_guidance="implicit", chunk_guidance="explicit", num_beams=2, num_successors=3, chunk_length=4
)
searched = ivg.generate(
    prompts, models, search=ivg_search, sampling=SamplingConfig(max_new_tokens=14, temperature=1e-4)
)
from ivg.run.environment import describe_environment
print(json.dumps([[r.token_ids for r in [*greedy, *searched]], describe_environment()["compiled_loops"]]))
"""


def test_lockstep_decodes_the_same_without_the_folder(folders: dict[str, str], tmp_path: Path) -> None:
    """In a fresh process, from a copy of the package whose `cpu` is deleted."""
    package = Path(ivg.__file__).parent
    for name, hidden in (("whole", "__pycache__"), ("without", "cpu")):
        shutil.copytree(
            package, tmp_path / name / "ivg", ignore=shutil.ignore_patterns("__pycache__", "*.cpp", hidden)
        )
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    found = []
    for name in ("whole", "without"):
        arguments = json.dumps([folders, PROMPTS, name == "whole"])
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, arguments],
            env={**environment, "PYTHONPATH": str(tmp_path / name)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0][0] == found[1][0]
    assert found[1][1] is False
    assert len({tuple(ids) for ids in found[0][0]}) > 3
