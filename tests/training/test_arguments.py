"""Unknown keys and wrong values are fatal, in one clear line."""

import dataclasses
import typing
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
import transformers
import trl

from ivg.errors import UserError
from ivg.training import arguments
from ivg.training.arguments import DataArguments, ModelArguments, parse_arguments
from ivg.training.rollouts.arguments import RolloutArguments
from ivg.training.value.arguments import ValueTrainingArguments


@dataclasses.dataclass
class Knobs:
    learning_rate: float = 1e-3
    steps: int = 1
    fast: bool = False
    shape: dict | str | None = None
    words: list[str] = dataclasses.field(default_factory=list)
    template: str | None = None
    kind: Literal["a", "b"] | None = None


def _parse(tmp_path: Path, text: str, *flags: str) -> Knobs:
    (tmp_path / "c.yaml").write_text(text)
    return parse_arguments((Knobs,), ["--config", str(tmp_path / "c.yaml"), *flags])[0]


def test_yaml_then_flags(tmp_path: Path) -> None:
    text = "learning_rate: 1e-4\nsteps: 3\nshape: {n: 2}\n"
    assert _parse(tmp_path, text, "--steps", "5") == Knobs(1e-4, 5, False, {"n": 2})


def test_config_with_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("steps: 4")
    assert parse_arguments((Knobs,), [f"--config={tmp_path / 'c.yaml'}"])[0].steps == 4


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("stepz: 3", (), "unknown key 'stepz'; did you mean 'steps'"),
        ("steps: 3", ("--stepz", "3"), "unknown argument '--stepz'; did you mean 'steps'"),
        ("steps: 3", ("--step", "3"), "unknown argument '--step'"),
        ("steps: three", (), "steps is 'three'; expected int"),
        ("steps: 1.5", (), "steps is 1.5; expected int"),
        ("steps: true", (), "steps is True; expected int"),
        ("fast: 3", (), "fast is 3; expected bool"),
        ("steps: 3", ("--steps", "x"), "invalid int value: 'x'"),
        ("- steps", (), "expected a mapping"),
        ("steps: [", (), "not valid YAML"),
        ("words: [1]", (), r"words is [1]; expected list[str]"),
        ("words: {a: b}", (), "words is {'a': 'b'}; expected list[str]"),
        ("words: 5", (), "words is 5; expected list[str]"),
        ("template: 5", (), "template is 5; expected str"),
        ("template: [x]", (), r"template is ['x']; expected str"),
        ("shape: [1]", (), r"shape is [1]; expected dict or str"),
        ("kind: c", (), "kind is 'c'; expected a or b"),
        ("env: [A]", (), r"env is ['A']; expected a mapping of names to values"),
    ],
)
def test_refuses(tmp_path: Path, text: str, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        _parse(tmp_path, text, *flags)


def test_one_text_is_a_list_of_one(tmp_path: Path) -> None:
    assert _parse(tmp_path, "words: END\n").words == ["END"]
    assert _parse(tmp_path, "words: [x, y]\n").words == ["x", "y"]


@pytest.mark.parametrize("given", [True, False, "runs/checkpoint-3"])
def test_resuming_is_named_by_a_folder_or_switched(tmp_path: Path, given: bool | str) -> None:
    (tmp_path / "c.yaml").write_text(f"output_dir: o\nresume_from_checkpoint: {given}\n")
    parsed = parse_arguments((ValueTrainingArguments,), ["--config", str(tmp_path / "c.yaml")])[0]
    assert parsed.resume_from_checkpoint == given


@pytest.mark.parametrize(
    "cls",
    [DataArguments, ModelArguments, RolloutArguments, ValueTrainingArguments, trl.DPOConfig, trl.SFTConfig],
)
def test_a_default_written_into_a_recipe_is_of_the_right_type(cls: type) -> None:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.default not in (dataclasses.MISSING, None) and not isinstance(field.default, Enum):
            assert arguments._fits(field.default, hints[field.name]), field.name


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("text", "has_bfloat16", "expected"),
    [
        ("", False, False),
        ("", True, True),
        ("use_cpu: true\n", False, True),  # then it is TRL's choice
        ("fp16: true\nuse_cpu: true\n", False, False),
        ("bf16: false\n", True, False),
    ],
)
def test_bfloat16_is_the_default_where_there_is_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, has_bfloat16: bool, expected: bool
) -> None:
    for module in (arguments, transformers.training_args):
        monkeypatch.setattr(module, "is_torch_bf16_gpu_available", lambda: has_bfloat16)
    (tmp_path / "c.yaml").write_text(f"output_dir: o\n{text}")
    (parsed,) = parse_arguments((trl.DPOConfig,), ["--config", str(tmp_path / "c.yaml")])
    assert parsed.bf16 is expected


def test_a_task_that_the_script_does_not_train() -> None:
    model = ModelArguments(model_name_or_path="x", lora_task_type="SEQ_2_SEQ_LM")
    with pytest.raises(UserError, match="lora_task_type is SEQ_2_SEQ_LM, but SEQ_CLS is trained; drop it"):
        model.set_task("SEQ_CLS")
    model = ModelArguments(model_name_or_path="x")
    model.set_task("SEQ_CLS")
    assert model.lora_task_type == "SEQ_CLS"


def test_refuses_a_missing_config() -> None:
    with pytest.raises(UserError, match="No such file"):
        parse_arguments((Knobs,), ["--config", "nowhere.yaml"])
    with pytest.raises(UserError, match="--config needs a file name"):
        parse_arguments((Knobs,), ["--config"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_train_rows": 0}, "max_train_rows is 0"),
        ({"prompt_template": "Human:"}, "has no '{prompt}'"),
    ],
)
def test_data_arguments_check_their_ranges(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataArguments(dataset_name="x", **values)


def test_a_model_is_either_given_or_made() -> None:
    with pytest.raises(UserError, match="exactly one of model_name_or_path and model_config"):
        ModelArguments()
    with pytest.raises(UserError, match="exactly one of model_name_or_path and model_config"):
        ModelArguments(model_name_or_path="x", model_config={"model_type": "gpt2"})
    with pytest.raises(UserError, match="give tokenizer_path"):
        ModelArguments(model_config={"model_type": "gpt2"})
    parsed = ModelArguments(model_config='{"model_type": "gpt2"}', tokenizer_path="t")
    assert parsed.model_config == {"model_type": "gpt2"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"min_margin": -1.0}, "min_margin is -1.0"),
        ({"min_margin": float("nan")}, "min_margin is nan"),
    ],
)
def test_rollout_arguments_check_their_ranges(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RolloutArguments(model_name_or_path="m", dataset_name="d", output_dir="o", **values)
