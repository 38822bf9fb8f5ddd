"""Unknown keys and wrong values are fatal, in one clear line."""

import dataclasses
from pathlib import Path

import pytest

from ivg.errors import UserError
from ivg.training.arguments import DataArguments, ModelArguments, parse_arguments
from ivg.training.rollout_arguments import RolloutArguments


@dataclasses.dataclass
class Knobs:
    learning_rate: float = 1e-3
    steps: int = 1
    fast: bool = False
    shape: dict | str | None = None


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
    ],
)
def test_refuses(tmp_path: Path, text: str, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        _parse(tmp_path, text, *flags)


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
