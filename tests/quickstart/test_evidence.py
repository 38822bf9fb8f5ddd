"""Three training seeds: moved files, stages that follow each other, best-of-N, two kinds of intervals."""

import best_of_n
import evidence
import evidence_report
import pytest
import torch
import yaml
from evidence_report import Method
from run import RECIPE, ROOT
from transformers import GPT2ForTokenClassification, GPT2LMHeadModel

import ivg
from ivg.config.yaml_file import config_from_dict
from ivg.evaluation.sweep.grid import read_grid
from tests import tiny
from tests.quickstart.commands import commands_of


def test_a_moved_file_has_other_paths_and_seeds_and_nothing_else():
    text = (ROOT / RECIPE / "decode" / "ivg.yaml").read_text(encoding="utf-8")
    first, second = (yaml.safe_load(evidence.moved(text, seed)) for seed in (0, 1))
    assert first["sampling"].pop("seed") == 0
    assert second["sampling"].pop("seed") == 100
    assert second["base"] == "runs/evidence/seed-1/base"
    assert second["input"] == first["input"] == "runs/evidence/data/prompts.test.jsonl"
    replaced = yaml.safe_load(yaml.safe_dump(second).replace("seed-1", "seed-0"))
    assert replaced == first


def test_no_two_runs_share_a_training_seed():
    seeds = []
    for seed in evidence.SEEDS:
        for name in ("base", "untuned", "dpo", "value"):
            text = (ROOT / RECIPE / f"{name}.yaml").read_text(encoding="utf-8")
            seeds.append((name, yaml.safe_load(evidence.moved(text, seed))["seed"]))
    assert len(set(seeds)) == 3 * 4


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of all runs, written where the repository would have them."""
    root = tmp_path_factory.mktemp("root")
    (root / "recipes").symlink_to(ROOT / "recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "ROOT", root)
        evidence.write_configs()
    return root


def test_every_stage_reads_what_is_there_or_what_an_earlier_stage_writes(written):
    made: list[str] = []
    for stage in evidence.evidence():
        for name in stage.inputs:
            is_made = any(name == output or name.startswith(f"{output}/") for output in made)
            assert is_made or (written / name).is_file(), f"{stage.name} reads {name}"
        made += stage.outputs
    names = [stage.name for stage in evidence.evidence()]
    assert len(set(names)) == len(names)


def test_commands_name_their_configurations_among_the_inputs(written):
    for stage in evidence.evidence():
        for command in commands_of(stage):
            words = command.split()
            assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
            if "--config" in words:
                assert words[words.index("--config") + 1] in stage.inputs


def test_the_baselines_decode_as_ivg_does(written):
    folder = written / "runs/evidence/seed-2/configs"
    grids = [read_grid(str(folder / "evidence" / f"{name}.yaml")) for name in evidence.SWEEPS]
    alone = [
        config_from_dict(yaml.safe_load((folder / "evidence" / f"{name}.yaml").read_text()))
        for name in evidence.ALONE
    ]
    assert len({config.sampling for config in (*(grid.decode for grid in grids), *alone)}) == 1
    compared = {evidence_report.REFERENCE, evidence_report.PAIR_ALONE, evidence_report.VALUE_ALONE}
    assert compared <= {run.name for run in grids[0].runs}


def sample(name, number, value, reward):
    return {"id": name, "sample": number, "value": value, "reward": reward}


DRAWS = [
    sample("b", 1, 0.9, 0.1), sample("b", 0, 0.5, 0.5), sample("b", 2, 0.9, 0.9),
    sample("a", 0, 0.1, 0.2), sample("a", 1, 0.1, 0.3), sample("a", 2, 0.4, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("n", "by", "chosen"),
    [
        (1, "value", {"b": 0, "a": 0}),
        (2, "value", {"b": 1, "a": 0}),  # equal values: the earlier draw
        (3, "value", {"b": 1, "a": 2}),
        (3, "reward", {"b": 2, "a": 1}),
    ],
)
def test_best_of_n_takes_the_first_n_of_one_draw(n, by, chosen):
    assert {row["id"]: row["sample"] for row in best_of_n.first_n(DRAWS, n, by)} == chosen


def test_draws_are_scored_as_the_search_scores_them(tmp_path):
    config = tiny.gpt2_config(33, num_labels=33)
    torch.manual_seed(0)
    for name, kind in (("base", GPT2LMHeadModel), ("value", GPT2ForTokenClassification)):
        tiny.scale_up(kind(config), seed=1).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    models = ivg.load_models(
        str(tmp_path / "base"), values=[ivg.ValueConfig(model=ivg.ModelConfig(path=str(tmp_path / "value")))]
    )
    found = ivg.generate(
        [{"prompt": "ab", "id": "x"}, {"prompt": "b c", "id": "y"}],
        models,
        search=ivg.SearchConfig(chunk_guidance="explicit", num_successors=3, chunk_length=20),
        sampling=ivg.SamplingConfig(max_new_tokens=20),
    )
    draws = [
        {
            **answer.prompt,
            "completion": answer.text,
            "finish_reason": answer.finish_reason,
            "searched": answer.value,
        }
        for answer in found
    ]
    for draw in best_of_n.with_values(draws, str(tmp_path / "value")):
        assert draw["value"] == pytest.approx(draw["searched"], abs=1e-4)


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="fewer than 4 samples"):
        best_of_n.first_n(DRAWS, 4, "value")


def test_a_run_says_its_settings_in_its_name():
    assert list(evidence_report.settings_of("ivg-beta0.5-W4-K2-L5")) == ["beta=0.5", "W=4", "K=2", "L=5"]
    assert list(evidence_report.settings_of("best_of_n-W1-K16-Lall")) == ["W=1", "K=16", "L=all"]


def test_equal_cost_is_at_least_one_sample_and_at_most_all():
    assert evidence_report.within(10.0, 3.0) == 3
    assert evidence_report.within(1.0, 3.0) == 1
    assert evidence_report.within(1e9, 3.0) == evidence_report.NUM_DRAWS


def scored(gold, valid):
    columns = {"gold": gold, "valid": valid}
    columns |= dict.fromkeys(("VADER", "tokens", "distance"), gold)
    return Method(
        [], scores={name: dict(zip("xyz", values, strict=True)) for name, values in columns.items()}
    )


def test_intervals_over_prompts_and_over_seeds_stand_apart():
    # Seeds differ by 0.3 throughout, prompts by 0.1: means of 0.2, 0.5, 0.8 and of 0.4, 0.5, 0.6.
    shifts = (0.1, 0.4, 0.7)
    runs = [
        {
            "base": scored([0.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
            evidence_report.REFERENCE: scored([shift, shift + 0.1, shift + 0.2], [1.0, 1.0, 1.0]),
        }
        for shift in shifts
    ]
    found = evidence_report.summary(evidence_report.REFERENCE, runs)
    assert found["seeds"] == pytest.approx([0.2, 0.5, 0.8])
    # t(0.975, 2) = 4.302653; the standard errors are 0.1 / sqrt(3) and 0.3 / sqrt(3).
    half = 4.302653 * 0.1 / 3**0.5
    assert found["gold"]["ci95"] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-6)
    assert found["gold_over_seeds"]["ci95"] == pytest.approx([0.5 - 3 * half, 0.5 + 3 * half], abs=1e-6)
    base = evidence_report.summary("base", runs)
    assert base["difference"]["mean"] == pytest.approx(0.5)
    assert base["difference_over_seeds"]["ci95"] == pytest.approx([0.5 - 3 * half, 0.5 + 3 * half], abs=1e-6)
    assert (base["valid"]["mean"], base["valid"]["n"]) == (pytest.approx(1 / 3), 9)
