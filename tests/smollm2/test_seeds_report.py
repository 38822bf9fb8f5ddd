"""Means and differences over training seeds, by hand."""

import json

import pytest

from tests.smollm2.conftest import load_script

seeds_report = load_script("seeds_report")


def write_run(folder, tones):
    names = (*seeds_report.MEASURES, "distance_from_base")
    methods = {name: {measure: {"mean": tone} for measure in names} for name, tone in tones.items()}
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"methods": methods}))
    return str(folder)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bases, guided = (0.1, 0.2, 0.3), (0.7, 0.6, 0.8)
    return [
        write_run(tmp_path / f"run-{i}", {"base": base, "ivg": ivg, "ivg_both_pairs": 0.5})
        for i, (base, ivg) in enumerate(zip(bases, guided, strict=True))
    ]


def test_intervals_go_over_the_seeds(runs):
    seeds_report.main(runs)
    found = json.loads((seeds_report.OUTPUT / "seeds.json").read_text())
    base = found["methods"]["base"]["gold_reward"]
    assert base["seeds"] == [0.1, 0.2, 0.3]
    # Standard deviation 0.1, three means, Student's t at 2 degrees of freedom 4.3027.
    assert base["ci95"] == pytest.approx([0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5], abs=1e-4)
    minus = found["differences"]["ivg"]["base"]["gold_reward"]
    assert minus["seeds"] == pytest.approx([0.6, 0.4, 0.5])
    assert minus["mean"] == pytest.approx(0.5)
    assert found["differences"]["ivg_both_pairs"]["ivg"]["brevity"]["mean"] == pytest.approx(-0.2)
    written = (seeds_report.OUTPUT / "seeds.md").read_text()
    assert "| base | 0.100 0.200 0.300 | 0.200 [-0.048, 0.448] |" in written
    assert "| base | +0.500 [+0.252, +0.748] |" in written


def test_folders_that_cannot_be_compared_are_one_line(runs, tmp_path, capsys):
    lone = write_run(tmp_path / "other", {"base": 0.1, "ivg": 0.2})
    refused = {
        (): "got nothing; give two or more folders of runs, all different",
        (runs[0],): "give two or more folders of runs, all different",
        (runs[0], runs[1], runs[0]): "give two or more folders of runs, all different",
        (runs[0], lone): "not every run has ivg_both_pairs; run real.py --full and real.py --seed N",
        (runs[0], "nowhere"): "nowhere/report.json",
    }
    for folders, message in refused.items():
        with pytest.raises(SystemExit) as error:
            seeds_report.main(list(folders))
        assert error.value.code == 2
        assert message in capsys.readouterr().err
