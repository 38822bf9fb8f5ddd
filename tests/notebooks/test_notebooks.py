"""Every notebook runs from its own source, with a model that knows ten words in the place of a real one."""

import json
import os
import re
import runpy
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tiny

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
# Words of both signs, so that responses differ in what they are rewarded for.
WORDS = (" great", " awful", " warm", " dull", " love", " hate", " the", " film", " is", ".")
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"


def word_tokenizer() -> PreTrainedTokenizerFast:
    ids = {token: i for i, token in enumerate([*WORDS, "<unk>", "<eos>", "<pad>"])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ .]+|\."), "isolated")
    core.decoder = decoders.Fuse()
    names = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=CHAT, **names)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = word_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    found = tiny.llama(0, len(tokenizer), max_position_embeddings=256, bos_token_id=None, **ends).float()
    return tiny.save(tmp_path_factory.mktemp("notebooks") / "model", found, tokenizer)


@pytest.fixture
def run(model, tmp_path, monkeypatch, capfd):
    """Run a notebook as a script, in a folder of its own; return its variables and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IVG_NOTEBOOK_MODEL", model)
    monkeypatch.setenv("IVG_NOTEBOOK_TINY", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))

    def run_path(name):
        variables = runpy.run_path(str(ROOT / "notebooks" / f"{name}.py"), run_name="__main__")
        return variables, capfd.readouterr().out

    return run_path


def test_every_notebook_is_tried_here_and_listed():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"guide_a_real_model", "train_a_pair", "look_inside_a_search"}
    listed = re.findall(r"`(\w+)\.py`", (ROOT / "notebooks" / "README.md").read_text())
    assert names <= set(listed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_marked(path):
    """The percent format: a header, then cells, text cells commented throughout."""
    header, *cells = re.split(r"^# %%", path.read_text(), flags=re.MULTILINE)
    assert header.startswith("# ---\n# jupyter:\n")
    assert cells[0].startswith(" [markdown]\n# # ")
    for cell in cells:
        lines = cell.splitlines()
        is_text = lines[0] == " [markdown]"
        assert is_text or lines[0] == ""
        assert not is_text or all(line.startswith("#") for line in lines[1:] if line)


def test_guide_a_real_model(run):
    variables, printed = run("guide_a_real_model")
    scores = variables["scores"]
    assert [*scores] == [
        "base", "best of 16", "chunk guidance, W=K=4", "token guidance, beta=1", "both",
    ]  # fmt: skip
    # The best of 16 samples is at least as positive as the first of them, which is the base's own.
    assert all(best >= own for best, own in zip(scores["best of 16"], scores["base"], strict=True))
    assert "minus the base (95% interval, n = 2)" in printed


@pytest.mark.slow
def test_train_a_pair(run):
    variables, printed = run("train_a_pair")
    assert [*variables["rewards"]] == [0.0, 1.0, 2.0]
    assert (Path("runs/notebooks/pair/tuned") / "adapter_config.json").is_file()
    preferences = Path("runs/notebooks/pair/rollouts/preferences.jsonl").read_text().splitlines()
    assert {*json.loads(preferences[0])} >= {"prompt", "chosen", "rejected"}
    assert "minus beta 0 (95% interval, n = 2)" in printed


@pytest.mark.slow
def test_look_inside_a_search(run):
    _, printed = run("look_inside_a_search")
    page = Path("runs/notebooks/search/responses.trace.html").read_text()
    assert page.count('class="response"') == 2
    assert "from beam 1" in printed
    assert "responses.trace.html: 2 responses" in printed
