"""A sweep, a speed comparison and their report, on models of two layers."""

import json
import shutil
import statistics

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2ForTokenClassification

from ivg.evaluation.measures.decoded import read_decoded
from tests.eval import scripts
from tests.evaluation import tiny

sweep = scripts.load("sweep")
speed = scripts.load("speed")
report = scripts.load("report")


def number_of_w3(rows, responses):
    return [float(text.split().count("w3")) for text in responses]


GRID = [
    {"method": "token_implicit", "token_guidance": "implicit", "beta": [0.0, 2]},
    {
        "method": "chunk_explicit", "chunk_guidance": "explicit", "num_beams": 2, "num_successors": 2,
        "chunk_length": 3,
    },
    {"method": "best_of_n", "chunk_guidance": "explicit", "num_successors": 4},
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, seed in {"base": 0, "tuned": 1, "untuned": 2}.items():
        tiny.model(seed).save_pretrained(folder / name)
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=len(tiny.WORDS), n_positions=64, n_embd=16, n_layer=2, n_head=2, num_labels=1,
        eos_token_id=0, bos_token_id=0, initializer_range=0.6,
    )  # fmt: skip
    GPT2ForTokenClassification(config).save_pretrained(folder / "value")
    for name in ("base", "tuned", "untuned", "value"):
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def config(models, tmp_path):
    prompts = [{"id": f"p{i}", "prompt": f"w{i} w{i + 1}"} for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    data = {
        "base": {"path": str(models / "base"), "dtype": "float64"},
        "pairs": [{side: {"path": str(models / side), "dtype": "float64"} for side in ("tuned", "untuned")}],
        "values": [{"path": str(models / "value"), "dtype": "float64"}],
        "input": str(tmp_path / "prompts.jsonl"),
        "sampling": {"max_new_tokens": 8},
        "reward": {"function": f"{__name__}.number_of_w3"},
        "output": str(tmp_path / "out"),
        "grid": GRID,
    }
    return data, tmp_path


def write(config):
    data, folder = config
    (folder / "grid.yaml").write_text(yaml.safe_dump(data))
    return ["--config", str(folder / "grid.yaml")]


def count_loads(monkeypatch, script, name):
    """Count the calls of what loads models, and let them go on."""
    calls, load = [], vars(script)[name]
    monkeypatch.setattr(script, name, lambda *args: calls.append(args) or load(*args))
    return calls


@pytest.mark.slow
def test_a_sweep_measures_every_cell_and_runs_none_twice(config, monkeypatch, capsys):
    all_models = count_loads(monkeypatch, sweep, "load_grid")
    base_alone = count_loads(monkeypatch, sweep, "load_models")
    sweep.main(write(config))
    assert (len(all_models), len(base_alone)) == (1, 0)
    out = config[1] / "out"
    data = json.loads((out / "sweep.json").read_text())
    names = ["base", "token_implicit-beta0", "token_implicit-beta2", "chunk_explicit-W2-K2-L3"]
    assert list(data["methods"]) == [*names, "best_of_n-W1-K4-Lall"]
    texts = {name: read_decoded(name, out / f"{name}.jsonl").responses for name in data["methods"]}
    assert texts["token_implicit-beta0"] == texts["base"]  # no weight, no guidance
    assert texts["token_implicit-beta2"] != texts["base"]
    base = data["methods"]["base"]
    assert base["distance_from_base"]["mean"] == 0
    assert base["gold_reward"]["mean"] == sum(number_of_w3([], texts["base"])) / 6
    cost = data["cost"]
    assert cost["best_of_n-W1-K4-Lall"]["flops_per_prompt"] > cost["base"]["flops_per_prompt"] > 0
    for x in ("distance", "flops", "tokens"):
        assert (out / "figures" / f"frontier_{x}.png").stat().st_size > 1000
    # A second run decodes nothing: every cell's file stays as it is, and no guide is loaded.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    sweep.main(write(config))
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")} == before
    assert (len(all_models), len(base_alone)) == (1, 1)
    assert "Sweep over guidance settings" in capsys.readouterr().out


def is_even(rows, responses):
    return [float(len(text.split()) % 2 == 0) for text in responses]


@pytest.mark.slow
def test_further_rewards_stand_beside_the_first(config, capsys):
    config[0].update(grid=GRID[1:2], also={"even": f"{__name__}.is_even"})
    sweep.main(write(config))
    data = json.loads((config[1] / "out" / "sweep.json").read_text())
    assert data["also"] == ["even"]
    texts = read_decoded("base", config[1] / "out" / "base.jsonl").responses
    assert data["methods"]["base"]["even"]["mean"] == pytest.approx(statistics.mean(is_even([], texts)))


@pytest.mark.parametrize("also", [["a.b"], {"a": 1}, "a.b"])
def test_further_rewards_of_another_form_are_refused(config, capsys, also):
    config[0]["also"] = also
    with pytest.raises(SystemExit) as stop:
        sweep.main(write(config))
    assert stop.value.code == 2
    assert "give names with a function's dotted name each" in capsys.readouterr().err


def test_a_speed_comparison_shows_further_rewards_too(config, monkeypatch, capsys):
    monkeypatch.setattr(speed, "peak_in_fresh_process", lambda work: None)
    config[0].update(grid=GRID[1:2], repeats=1, also={"even": f"{__name__}.is_even"})
    speed.main(write(config))
    data = json.loads((config[1] / "out" / "speed.json").read_text())
    assert data["also"] == ["even"]
    for run in data["runs"]:
        even = run["also"]["even"]
        assert even["n"] == 6
        assert even["mean"] * 6 == int(even["mean"] * 6)  # a rate over prompts
        # Wilson's centre lies between the rate and one half, as Student's does not.
        assert sum(even["ci95"]) / 2 == pytest.approx(
            (even["mean"] * 6 + 1.920729) / (6 + 3.841459), abs=1e-5
        )
    assert "One reward alone" not in capsys.readouterr().out


@pytest.mark.slow
def test_changed_settings_decode_again(config):
    sweep.main(write(config))
    path = config[1] / "out" / "token_implicit-beta2.jsonl"
    before = read_decoded("m", path).responses
    sweep.main([*write(config), "sampling.seed=7"])
    assert read_decoded("m", path).responses != before


@pytest.mark.slow
def test_models_trained_again_at_the_same_path_decode_again(config):
    data, folder = config
    for name in ("tuned", "other"):
        tiny.model({"tuned": 1, "other": 9}[name]).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    data["pairs"][0]["tuned"]["path"] = str(folder / "tuned")
    data["grid"] = GRID[:1]
    sweep.main(write(config))
    path = folder / "out" / "token_implicit-beta2.jsonl"
    before = read_decoded("m", path).responses
    shutil.copy(folder / "other" / "model.safetensors", folder / "tuned" / "model.safetensors")
    sweep.main(write(config))
    assert read_decoded("m", path).responses != before


@pytest.mark.slow
def test_a_speed_comparison_counts_what_each_method_feeds(config, monkeypatch, capsys):
    config[0].update(lengths=[4, 8], repeats=2)
    loads = count_loads(monkeypatch, speed, "load_grid")
    speed.main(write(config))
    assert len(loads) == 1  # but for the processes of their own in which memory is measured on a CPU
    data = json.loads((config[1] / "out" / "speed.json").read_text())
    assert len(data["runs"]) == 2 * 5
    by_name = {(run["method"], run["max_new_tokens"], run["beta"]): run for run in data["runs"]}
    base, best = by_name["base", 8, None], by_name["best_of_n", 8, None]
    assert base["guide_tokens_fed"] == 0
    assert best["guide_tokens_fed"] > 0
    assert best["base_tokens_fed"] > 2 * base["base_tokens_fed"]
    assert len(base["seconds_of_each"]) == 2
    assert all(run["seconds_per_prompt"] > 0 for run in data["runs"])
    assert all(run["seconds_per_prompt"] == statistics.median(run["seconds_of_each"]) for run in data["runs"])
    # A process that has loaded torch: far from nothing and from all there is. A GPU counts tensors alone.
    least = 0 if torch.cuda.is_available() else 50
    assert all(least < run["peak_memory_mib"] < 20_000 for run in data["runs"])
    for run in data["runs"]:
        reward = run["gold_reward"]  # how often w3 is among at most so many tokens
        assert (reward["n"], reward["missing"]) == (6, 0)
        assert 0 <= reward["mean"] <= run["num_tokens"] <= run["max_new_tokens"]
    assert any(run["gold_reward"]["mean"] > 0 for run in data["runs"])
    assert len(data["findings"]) == 2  # two kinds of chunk guidance
    printed = " ".join(capsys.readouterr().out.split())
    assert "Seconds and memory by response length" in printed
    assert "Cost of chunk guidance as a multiple of token guidance" in printed
    assert "Per prompt, best-of-N (N=4) costs" in printed


@pytest.mark.slow
def test_a_report_shows_all_of_it_on_one_page(config):
    config[0].update(lengths=[4], repeats=1)
    sweep.main(write(config))
    speed.main(write(config))
    out = config[1] / "out"
    report.main(["--folder", str(out), "--num_samples", "2", "--title", "All <of> it"])
    page = (out / "report.html").read_text()
    assert "<title>All &lt;of&gt; it</title>" in page
    assert page.count("data:image/png;base64,") == 6  # three frontiers; seconds, memory and what they buy
    assert "://" not in page  # nothing is fetched from anywhere
    assert page.count('<h3 class="prompt">') == 2
    text = (out / "report.md").read_text()
    assert "| chunk guidance | W=2 K=2 L=3 |" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (out / line.split("](")[1].rstrip(")")).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": [{"method": "m", "betas": 1}]}, "unknown key 'betas'; did you mean 'beta'"),
        ({"grid": [{"method": "m", "chunk_guidance": "explicit", "num_beams": 0}]}, "num_beams is 0"),
        ({"grid": [{"method": "base"}]}, "the grid holds base twice"),
        ({"grid": []}, "grid is missing"),
        ({"grid": "ivg"}, "grid is 'ivg'; give a list of entries"),
        ({"grid": ["ivg"]}, "grid holds 'ivg'; give each entry keys"),
        ({"grid": [{"method": "a/b"}]}, "method 'a/b' cannot name a file"),
        ({"grid": [{"method": "sweep"}]}, "method 'sweep' cannot name a file"),
        ({"lengths": 18}, "lengths is 18; give a list"),
        ({"lengths": [18, "x"]}, "one of lengths is 'x'; give an integer >= 1"),
        ({"repeats": "many"}, "repeats is 'many'; give an integer >= 1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"reward": "ivg.rewards.vader"}, "reward is 'ivg.rewards.vader'; give keys"),
        ({"output": "/proc/nowhere"}, "No such file or directory; give a folder that can be written"),
        ({"output": __file__}, "File exists; give a folder that can be written"),
        ({"search": {"num_beams": 2}}, "search belongs to the grid's entries"),
        ({"values": []}, "chunk_guidance explicit needs a value model"),
        ({"reward": {"function": "ivg.rewards.vador"}}, "defines no vador"),
        ({"sampling": {"num_samples": 2}}, "num_samples"),
        ({"input": "absent.jsonl"}, "absent.jsonl"),
        ({"engine": "vllm"}, "engine is vllm, but a grid counts what lockstep feeds"),
    ],
)
@pytest.mark.parametrize("script", [sweep, speed], ids=["sweep", "speed"])
def test_a_bad_grid_is_one_line_and_exit_code_2(config, monkeypatch, capsys, script, change, message):
    config[0].update(change)
    monkeypatch.setattr(script, "load_grid", lambda *_: pytest.fail("weights were loaded"))
    assert message in scripts.refused(capsys, script.main, write(config))


def test_a_report_on_nothing_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text('{"methods": 3}')
    cases = {
        "no folder; give --folder": [],
        "no such folder": ["--folder", str(tmp_path / "absent")],
        "num_samples is -1": ["--folder", str(tmp_path), "--num_samples", "-1"],
        "report.json: not what an evaluation writes": ["--folder", str(tmp_path / "broken")],
    }
    for message, argv in cases.items():
        assert message in scripts.refused(capsys, report.main, argv)
    (tmp_path / "empty").mkdir()
    assert "holds none of" in scripts.refused(capsys, report.main, ["--folder", str(tmp_path / "empty")])
