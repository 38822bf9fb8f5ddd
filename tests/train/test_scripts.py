"""Each script trains what it should and nothing else, and writes stock folders."""

import gc
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import RepoUrl
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from trl import DPOTrainer, RewardTrainer

from ivg.training.value import heads
from ivg.training.value.trainer import ValueTrainer
from tests import tiny
from tests.train.launching import (
    COMPLETIONS,
    PAIRS,
    REWARDED,
    TINY,
    TRL_TINY,
    losses,
    run_here,
    write_config,
    write_rows,
)

# transformers warns of its own renamed options, which TRL 1.16 still sets.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # PEFT tells of GPT-2's transposed layers and mends it by itself.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
]


@pytest.fixture
def untuned(tmp_path: Path) -> str:
    return tiny.save(tmp_path / "untuned", tiny.causal(0, dtype=torch.float32))


def _changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def _check_log(output: Path) -> None:
    logged = losses(output)
    assert sorted(logged) == [1, 2, 3, 4]
    assert all(math.isfinite(loss) for loss in logged.values())
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["train_loss"] == pytest.approx(sum(logged.values()) / 4, rel=1e-4)


def test_sft_starts_a_new_model_from_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "out"
    config = write_config(
        tmp_path / "sft.yaml",
        **TRL_TINY,
        model_config={"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32},
        tokenizer_path=str(tmp_path / "tokenizer"),
        dataset_name=write_rows(tmp_path / "rows.jsonl", COMPLETIONS),
        eval_dataset_name=str(tmp_path / "rows.jsonl"),
        output_dir=str(output),
    )
    run_here("sft", config, monkeypatch)
    before = AutoModelForCausalLM.from_pretrained(output / "initial")
    after = AutoModelForCausalLM.from_pretrained(output)
    assert after.config.vocab_size == len(tiny.tokenizer())
    assert after.config.eos_token_id == tiny.tokenizer().eos_token_id
    assert _changed(dict(before.named_parameters()), dict(after.named_parameters())) == {
        name for name, _ in after.named_parameters()
    }
    _check_log(output)
    assert AutoTokenizer.from_pretrained(output).get_vocab() == tiny.tokenizer().get_vocab()
    assert math.isfinite(json.loads((output / "metrics.json").read_text())["eval_loss"])


def test_dpo_moves_every_weight_and_leaves_its_reference_alone(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = (tmp_path / "untuned" / "model.safetensors").read_bytes()
    config = write_config(
        tmp_path / "dpo.yaml",
        **TRL_TINY,
        model_name_or_path=untuned,
        dataset_name=write_rows(tmp_path / "rows.jsonl", PAIRS),
        output_dir=str(tmp_path / "out"),
    )
    run_here("dpo", config, monkeypatch)
    # What a tracker calls the run, at its end and when it is taken up again.
    saved = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert saved.run_name == f"dpo {tmp_path / 'out'}"
    before = dict(AutoModelForCausalLM.from_pretrained(untuned).named_parameters())
    after = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert _changed(before, after) == set(after)
    assert (tmp_path / "untuned" / "model.safetensors").read_bytes() == reference
    _check_log(tmp_path / "out")
    # Before the first step tuned equals untuned: the loss is -log σ(0).
    assert losses(tmp_path / "out")[1] == pytest.approx(math.log(2), abs=1e-5)


def test_dpo_with_computed_reference_holds_no_second_copy(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, alive = DPOTrainer.train, []

    def train(trainer: DPOTrainer, **kwargs: object) -> object:
        gc.collect()
        own = {id(module) for module in trainer.model.modules()}
        models = [o for o in gc.get_objects() if isinstance(o, GPT2LMHeadModel)]
        alive.append(len([model for model in models if id(model) not in own and model not in before]))
        return real(trainer, **kwargs)

    monkeypatch.setattr(DPOTrainer, "train", train)
    before = [o for o in gc.get_objects() if isinstance(o, GPT2LMHeadModel)]
    for name, precompute in (("held", False), ("computed", True)):
        config = write_config(
            tmp_path / f"{name}.yaml",
            **TRL_TINY,
            model_name_or_path=untuned,
            precompute_ref_log_probs=precompute,
            dataset_name=write_rows(tmp_path / "rows.jsonl", PAIRS),
            eval_dataset_name=str(tmp_path / "rows.jsonl"),
            output_dir=str(tmp_path / name),
        )
        run_here("dpo", config, monkeypatch)
    assert alive == [1, 0]
    held, computed = (tmp_path / name for name in ("held", "computed"))
    assert losses(computed) == pytest.approx(losses(held), abs=1e-6)
    ours, theirs = (json.loads((f / "metrics.json").read_text())["eval_loss"] for f in (computed, held))
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert "computed before training, no second copy" in (computed / "README.md").read_text()
    assert "a second copy of the model" in (held / "README.md").read_text()
    # A restart reads what it has computed.
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", None)
    run_here("dpo", config, monkeypatch)


def test_dpo_lora_trains_the_adapter_only(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(
        tmp_path / "dpo.yaml",
        **TRL_TINY,
        model_name_or_path=untuned,
        use_peft=True,
        lora_r=2,
        dataset_name=write_rows(tmp_path / "rows.jsonl", PAIRS),
        output_dir=str(tmp_path / "out"),
    )
    run_here("dpo", config, monkeypatch)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    # LoRA's B starts at zero: each one must have moved.
    assert all(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    base = AutoModelForCausalLM.from_pretrained(untuned)
    ids = torch.arange(6).unsqueeze(0)
    before = base(ids).logits
    tuned = PeftModel.from_pretrained(base, tmp_path / "out")
    assert (tuned(ids).logits - before).abs().max() > 1e-4
    with tuned.disable_adapter():
        torch.testing.assert_close(tuned(ids).logits, before)
    assert "adapter switched off, no second copy" in (tmp_path / "out" / "README.md").read_text()


def test_sft_lora_merged_is_a_whole_model(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    config = write_config(
        tmp_path / "sft.yaml",
        **TRL_TINY,
        model_name_or_path=untuned,
        use_peft=True,
        lora_r=2,
        merge_adapter=True,
        dataset_name=write_rows(tmp_path / "rows.jsonl", COMPLETIONS),
        output_dir=str(output),
    )
    run_here("sft", config, monkeypatch)
    ids = torch.arange(6).unsqueeze(0)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(untuned), output)
    merged, report = AutoModelForCausalLM.from_pretrained(output / "merged", output_loading_info=True)
    assert not report["missing_keys"]
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)
    with adapted.disable_adapter():
        assert (merged(ids).logits - adapted(ids).logits).abs().max() > 1e-4
    assert AutoTokenizer.from_pretrained(output / "merged").get_vocab() == tiny.tokenizer().get_vocab()
    assert not (output / "merged.partial").exists()
    # Whoever starts from it, or decodes with it, is held to the prompts that it was trained on.
    assert json.loads((output / "merged" / "prompt_format.json").read_text())["example"] == "Hello"


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_dpo_qlora_trains_an_adapter_over_four_bit_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tiny.tokenizer()), max_position_embeddings=64, **sizes)
    torch.manual_seed(0)
    untuned = tiny.save(tmp_path / "untuned", LlamaForCausalLM(config))
    seen: dict[str, str] = {}
    real = DPOTrainer.train

    def train(trainer: DPOTrainer, **kwargs: object) -> object:
        for name, parameter in trainer.model.named_parameters():
            seen[name] = f"{parameter.dtype} {parameter.requires_grad}"
        return real(trainer, **kwargs)

    monkeypatch.setattr(DPOTrainer, "train", train)
    keys = write_config(
        tmp_path / "dpo.yaml",
        **TRL_TINY,
        model_name_or_path=untuned,
        use_peft=True,
        load_in_4bit=True,
        lora_r=2,
        dataset_name=write_rows(tmp_path / "rows.jsonl", PAIRS),
        output_dir=str(tmp_path / "out"),
    )
    run_here("dpo", keys, monkeypatch)
    frozen = {kind for name, kind in seen.items() if "q_proj.base_layer" in name}
    assert frozen == {"torch.uint8 False"}  # two weights to a byte
    assert {name for name, kind in seen.items() if kind.endswith("True")} == {
        name for name in seen if "lora_" in name
    }
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_reward_gives_a_single_output_classifier(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(
        tmp_path / "reward.yaml",
        **TRL_TINY,
        model_name_or_path=untuned,
        dataset_name=write_rows(tmp_path / "rows.jsonl", PAIRS),
        eval_dataset_name=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"),
    )
    run_here("reward", config, monkeypatch)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 1
    before = load_file(Path(untuned) / "model.safetensors")
    after = {name: tensor for name, tensor in model.state_dict().items() if name in before}
    assert len(after) > 20
    # The last norm's bias adds the same to both rewards of a pair: its gradient is zero but for rounding.
    trained = set(after) - {"transformer.ln_f.bias"}
    assert _changed({name: before[name] for name in trained}, after) == trained
    _check_log(tmp_path / "out")


def test_reward_tells_of_rows_that_it_leaves_out(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_rows(tmp_path / "rows.jsonl", PAIRS)
    config = write_config(
        tmp_path / "reward.yaml",
        **{**TRL_TINY, "max_length": 9, "max_steps": 1},
        model_name_or_path=untuned,
        dataset_name=name,
        output_dir=str(tmp_path / "out"),
    )
    seen: list[int] = []
    real = RewardTrainer.train

    def train(trainer: RewardTrainer, **kwargs: object) -> object:
        seen.append(len(trainer.train_dataset))
        return real(trainer, **kwargs)

    monkeypatch.setattr(RewardTrainer, "train", train)
    run_here("reward", config, monkeypatch)
    # With EOS every fourth pair's "b cdcd cdc" has 11 tokens; the next longest, "ab ef gh", just fits.
    assert f"{name}: 4 of 16 rows are left out, longer than 9 tokens" in capsys.readouterr().err
    assert seen == [12]


@pytest.mark.parametrize(("objective", "head"), [("fudge", "vocabulary"), ("cd-q", "scalar")])
def test_value_predicts_in_the_rewards_own_unit(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch, objective: str, head: str
) -> None:
    output = tmp_path / "out"
    rows = [{**row, "reward": 100 + 10 * row["reward"]} for row in REWARDED]
    config = write_config(
        tmp_path / "value.yaml",
        **{**TINY, "max_steps": 40, "logging_steps": 10, "lr_scheduler_type": "constant"},
        model_name_or_path=untuned,
        objective=objective,
        head=head,
        dataset_name=write_rows(tmp_path / "rows.jsonl", rows),
        eval_dataset_name=str(tmp_path / "rows.jsonl"),
        output_dir=str(output),
    )
    run_here("value", config, monkeypatch)
    model = AutoModelForTokenClassification.from_pretrained(output).eval()
    assert model.config.num_labels == (1 if head == "scalar" else len(tiny.tokenizer()))
    assert "id2label" not in json.loads((output / "config.json").read_text())
    heads.prepare_value_model(model)
    ids = torch.tensor([tiny.tokenizer()("ab cd")["input_ids"] + [tiny.tokenizer().eos_token_id]])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 2, -100)
    last = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)["values"][0, -1].item()
    # Rewards lie between 90 and 135; a head left in training units would say something near 0.
    assert 80 < last < 145
    table = json.loads((output / "value_evaluation.json").read_text())
    assert [row["percent"] for row in table] == [10, 25, 50, 75, 100]
    assert table[-1]["pairwise_accuracy"] > 0.8
    assert (output / "value_evaluation.png").exists()


def test_value_of_binary_rewards_is_judged_as_a_probability(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    rows = [{**row, "reward": int(row["reward"] > 0)} for row in REWARDED]
    config = write_config(
        tmp_path / "value.yaml",
        **{**TINY, "max_steps": 60, "logging_steps": 20, "lr_scheduler_type": "constant"},
        model_name_or_path=untuned,
        binary_reward=True,
        dataset_name=write_rows(tmp_path / "rows.jsonl", rows),
        eval_dataset_name=str(tmp_path / "rows.jsonl"),
        output_dir=str(output),
    )
    units: list[str] = []
    monkeypatch.setattr(
        "ivg.commands.train.value.plot_evaluation", lambda table, path, unit: units.append(unit)
    )
    run_here("value", config, monkeypatch)
    assert units == ["probability"]
    last = json.loads((output / "value_evaluation.json").read_text())[-1]
    assert all(0 <= part["value"] <= 1 for part in last["calibration"])
    # Half of the rewards are 1; a logit large enough to tell them apart would lie far from both.
    assert last["mean_squared_error"] < 0.25
    # The saved head still gives logits, and says so.
    model = AutoModelForTokenClassification.from_pretrained(output)
    assert model.config.value_unit == "logit"


def test_value_learns_the_expectation_under_the_base(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, base = tmp_path / "out", tiny.causal(7, dtype=torch.float32)
    config = write_config(
        tmp_path / "value.yaml",
        **TINY,
        model_name_or_path=untuned,
        objective="cd-q",
        policy_model=tiny.save(tmp_path / "base", base),
        policy_template="xy {prompt}.",
        normalize_rewards=False,
        dataset_name=write_rows(tmp_path / "rows.jsonl", REWARDED),
        eval_dataset_name=str(tmp_path / "rows.jsonl"),
        output_dir=str(output),
    )
    run_here("value", config, monkeypatch)
    _check_log(output)
    before = load_file(Path(untuned) / "model.safetensors")
    model = AutoModelForTokenClassification.from_pretrained(output).eval()
    assert _changed(before, model.state_dict()) == set(before) - {"lm_head.weight"}
    # The final evaluation's loss, worked out row by row from stock classes.
    total, count, tokenizer = 0.0, 0, tiny.tokenizer()
    for row in REWARDED:
        prompts = [tokenizer(text)["input_ids"] for text in (row["prompt"], f"xy {row['prompt']}.")]
        response = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            q = model(torch.tensor([prompts[0] + response])).logits[0, len(prompts[0]) - 1 :]
            pi = base(torch.tensor([prompts[1] + response])).logits[0, len(prompts[1]) - 1 :].softmax(-1)
        for t, token in enumerate(response):
            is_last = t + 1 == len(response)
            target = row["reward"] if is_last else float((pi[t + 1] * q[t + 1]).sum())
            total, count = total + (float(q[t, token]) - target) ** 2, count + 1
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["eval_loss"] == pytest.approx(total / count, rel=1e-4)
    assert f'| policy | `"{tmp_path / "base"}"` |' in (output / "README.md").read_text()


def test_value_lora_trains_adapter_and_head_beside_frozen_weights(
    tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "reward": 100 + 10 * row["reward"]} for row in REWARDED]
    config = write_config(
        tmp_path / "value.yaml",
        **TINY,
        model_name_or_path=untuned,
        use_peft=True,
        lora_r=2,
        dataset_name=write_rows(tmp_path / "rows.jsonl", rows),
        output_dir=str(tmp_path / "out"),
    )
    trained: dict[str, torch.Tensor] = {}
    real = ValueTrainer.save_model

    def save_model(trainer: ValueTrainer, *args: Any, **kwargs: Any) -> None:
        trained.update({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        real(trainer, *args, **kwargs)

    monkeypatch.setattr(ValueTrainer, "save_model", save_model)
    run_here("value", config, monkeypatch)
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    assert {name.rsplit(".", 2)[-2] for name in adapter} == {"lora_A", "lora_B", "classifier"}
    _check_log(tmp_path / "out")
    # What is frozen is bit for bit what it was.
    before = load_file(Path(untuned) / "model.safetensors")
    prefix = "base_model.model."
    frozen = {
        name.removeprefix(prefix).replace(".base_layer", ""): tensor
        for name, tensor in trained.items()
        if "lora_" not in name and "classifier" not in name
    }
    assert len(frozen) > 20
    assert not _changed(frozen, before)
    # Read back: the value of a response in the reward's own unit, as the model in training had it normalised.
    num_labels = len(tiny.tokenizer())
    base = AutoModelForTokenClassification.from_pretrained(untuned, num_labels=num_labels)
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    rewards = torch.tensor([row["reward"] for row in rows], dtype=torch.float64)
    ids = torch.arange(6).unsqueeze(0)
    with torch.no_grad():
        own_unit = model(ids).logits
        for name, tensor in model.state_dict().items():
            tensor.copy_(trained[name])
        in_training = model(ids).logits
    expected = in_training * rewards.std(correction=0).float() + rewards.mean().float()
    torch.testing.assert_close(own_unit, expected, atol=1e-3, rtol=1e-4)
    assert (own_unit - 100).abs().max() < 60


def test_value_from_pairs(tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(
        tmp_path / "value.yaml",
        **TINY,
        model_name_or_path=untuned,
        objective="prefix-bt",
        dataset_name=write_rows(tmp_path / "rows.jsonl", PAIRS),
        eval_dataset_name=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"),
    )
    run_here("value", config, monkeypatch)
    table = json.loads((tmp_path / "out" / "value_evaluation.json").read_text())
    assert [row["num_pairs"] for row in table] == [16] * 5
    assert (tmp_path / "out" / "value_evaluation.png").exists()
    _check_log(tmp_path / "out")


class Hub:
    """Stands where requests would leave for the Hub; remembers what was uploaded."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str, dict[str, bytes]]] = []

    def create_repo(self, name: str, **kwargs: object) -> RepoUrl:
        return RepoUrl(f"https://huggingface.co/someone/{name}")

    def upload_folder(self, repo_id: str, folder_path: str, **kwargs: object) -> None:
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir() if path.is_file()}
        self.uploads.append((repo_id, files))


@pytest.mark.parametrize(("script", "rows"), [("dpo", PAIRS), ("value", REWARDED)])
def test_push_to_hub_uploads_the_finished_folder(
    tmp_path: Path, untuned: str, script: str, rows: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    config = write_config(
        tmp_path / "push.yaml",
        **(TRL_TINY if script == "dpo" else TINY),
        model_name_or_path=untuned,
        dataset_name=write_rows(tmp_path / "rows.jsonl", rows),
        output_dir=str(tmp_path / "guide"),
        push_to_hub=True,
        hub_strategy="end",
    )
    run_here(script, config, monkeypatch)
    repo, files = hub.uploads[-1]
    assert repo == "someone/guide"
    names = ("model.safetensors", "config.json", "tokenizer.json", "README.md", "metrics.json")
    for name in (*names, "prompt_format.json"):
        assert files[name] == (tmp_path / "guide" / name).read_bytes()
    card = files["README.md"].decode()
    assert f"ivg train {script} --config {config}" in card
    assert "| train_loss |" in card


def test_the_card_says_what_was_done(tmp_path: Path, untuned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(
        tmp_path / "value.yaml",
        **TINY,
        model_name_or_path=untuned,
        prompt_template="x{prompt}|",
        dataset_name=write_rows(tmp_path / "rows.jsonl", REWARDED),
        output_dir=str(tmp_path / "out"),
    )
    run_here("value", config, monkeypatch)
    prompts = json.loads((tmp_path / "out" / "prompt_format.json").read_text())
    assert [prompts[key] for key in ("template", "example", "end")] == ["x{prompt}|", "xHello|", "<eos>"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"ivg train value --config {config}" in card
    assert '`"x{prompt}\\|"`' in card
    assert '| objective | `"fudge"` |' in card
    assert '| value unit | `"reward"` |' in card
    assert "| train_loss |" in card
