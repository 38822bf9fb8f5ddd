"""The quickstart's YAML files and the order of its stages."""

import os
from pathlib import Path

import pytest
from report import METHODS
from run import ROOT, environment, quickstart

from ivg.config.yaml_file import config_from_dict, read_yaml
from ivg.evaluation.sweep.grid import read_grid
from tests.quickstart.commands import commands_of

RECIPE = ROOT / "recipes" / "quickstart"
CONFIGS = sorted(RECIPE.rglob("*.yaml"))


def decode_config(method: str):
    return config_from_dict(read_yaml(str(RECIPE / "decode" / f"{method}.yaml")))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_states_command_hardware_time_and_result(path):
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    fields = {line.split(":")[0].strip("# "): line.split(":", 1)[1].strip() for line in header[1:5]}
    assert list(fields) == ["Command", "Hardware", "Wall time", "Result"]
    assert fields["Command"].endswith(f"--config {path.relative_to(ROOT)}")
    assert all(fields.values())


def test_every_stage_reads_the_repository_or_what_an_earlier_stage_wrote():
    written: list[str] = []
    for stage in quickstart():
        for name in stage.inputs:
            made = any(name == output or name.startswith(f"{output}/") for output in written)
            assert made or (ROOT / name).is_file(), f"{stage.name} reads {name}"
        written += stage.outputs
    assert "runs/quickstart/report.json" in written


def test_every_command_names_its_configuration_among_the_inputs():
    for stage in quickstart():
        for command in commands_of(stage):
            words = command.split()
            scripts = [word for word in words if word.endswith(".py")]
            assert all((ROOT / script).is_file() for script in scripts)
            if "--config" in words:
                assert words[words.index("--config") + 1] in stage.inputs


def test_the_methods_differ_in_guidance_and_search_alone():
    configs = {method: decode_config(method) for method in METHODS}
    grid = {
        method: (
            c.search.token_guidance,
            c.search.chunk_guidance,
            c.search.num_beams,
            c.search.num_successors,
        )
        for method, c in configs.items()
    }
    assert grid == {
        "base": ("none", "none", 1, 1),
        "token_implicit": ("implicit", "none", 1, 1),
        "best_of_n": ("none", "explicit", 1, 16),
        "chunk_explicit": ("none", "explicit", 4, 4),
        "token_implicit_best_of_n": ("implicit", "explicit", 1, 16),
        "ivg": ("implicit", "explicit", 4, 4),
    }
    assert len({(c.base, c.sampling, c.input) for c in configs.values()}) == 1
    assert {Path(str(c.output)).stem for c in configs.values()} == set(METHODS)
    assert configs["ivg"].search.chunk_length == configs["chunk_explicit"].search.chunk_length == 5
    for method in ("best_of_n", "token_implicit_best_of_n"):
        assert configs[method].search.chunk_length == configs[method].sampling.max_new_tokens


def test_test_prompts_are_decoded_only_for_the_report():
    readers = [path.parent.name for path in CONFIGS if "prompts.test" in path.read_text(encoding="utf-8")]
    assert sorted(set(readers)) == ["decode", "evidence"]
    assert readers.count("decode") == len(METHODS)


def test_the_frontier_stays_within_its_bounds():
    grid = read_grid(str(RECIPE / "sweep.yaml"))
    assert grid.decode.limit == 64
    assert "validation" in str(grid.decode.input)
    assert max(run.num_beams * run.num_successors for run in grid.runs) == 16
    assert {run.method for run in grid.runs} == set(METHODS)
    assert grid.decode.sampling == decode_config("ivg").sampling
    assert grid.reward.function == read_yaml(str(RECIPE / "rollouts.yaml"))["reward_function"]


def test_stages_run_without_gpu_and_hub_with_this_interpreter_first():
    variables = environment({"PATH": "/somewhere", "HOME": "/home/me"})
    assert variables["PATH"].endswith(":/somewhere")
    assert (variables["CUDA_VISIBLE_DEVICES"], variables["HF_HUB_OFFLINE"]) == ("", "1")
    assert variables["HOME"] == "/home/me"
    # The reward is a module of the recipe; what the user had on the path stays.
    assert variables["PYTHONPATH"] == str(RECIPE)
    assert environment({"PYTHONPATH": "/mine"})["PYTHONPATH"] == f"{RECIPE}{os.pathsep}/mine"
