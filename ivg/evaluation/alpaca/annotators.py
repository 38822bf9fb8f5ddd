"""AlpacaEval's judges: their configurations, and asking one for its preferences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ivg.config.yaml_file import nearest, read_yaml
from ivg.errors import UserError
from ivg.evaluation.alpaca.alpaca_eval_package import PairwiseAnnotator, constants, quiet
from ivg.evaluation.alpaca.files import Output
from ivg.evaluation.alpaca.judge import Answers
from ivg.evaluation.output_folder import OutputFolder, check_name

OFFICIAL_ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
OFFICIAL_PRICE = 10.0  # dollars per million prompt tokens of gpt-4-1106-preview

Annotations = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Annotator:
    """A judge's configuration.

    Attributes:
        name: as the annotations and the leaderboard call it.
        path: its `configs.yaml`.
        model: the judge model.
    """

    name: str
    path: Path
    model: str

    @property
    def price(self) -> float | None:
        """Dollars per million prompt tokens, where known; the one token of an answer does not count."""
        return OFFICIAL_PRICE if self.is_official else None

    @property
    def is_official(self) -> bool:
        """Whether it is the leaderboard's own configuration; a file elsewhere may take its name."""
        own = _package_path(OFFICIAL_ANNOTATOR).resolve()
        return self.name == OFFICIAL_ANNOTATOR and self.path.resolve() == own


def find_annotator(name: str, judge_model: str | None, output: OutputFolder) -> Annotator:
    """Find an annotator configuration of `alpaca_eval`, or one's own.

    Args:
        name: name of one of the package's configurations, or path of a `configs.yaml`.
        judge_model: asked instead of the configuration's own model; writes a configuration of its own.
        output: where that is written.

    Raises:
        UserError: no such annotator, a file of another shape, several annotators in it, or one that no
            OpenAI-compatible endpoint serves.
    """
    path = _config_path(name)
    own_name, config, template = _read_config(path)
    model = str(config["completions_kwargs"]["model_name"])
    is_beside = (path.parents[1] / str(config["prompt_template"])).is_file()
    config["prompt_template"] = str(template.resolve())
    if judge_model is None or judge_model == model:
        if is_beside:
            return Annotator(own_name, path, model)
        judge_model, derived = model, own_name  # alpaca_eval looks for the template beside the file alone
    else:
        config["completions_kwargs"] |= {"model_name": judge_model, "requires_chatml": True}
        derived = check_name(f"{own_name}-{judge_model.replace('/', '_')}", "annotator and judge_model")
    own_path = output.write_text(yaml.safe_dump({derived: config}), "annotator", derived, "configs.yaml")
    return Annotator(derived, own_path.resolve(), judge_model)


def in_given_order(annotator: Annotator, output: OutputFolder) -> Annotator:
    """Return an annotator that shows the reference's answer first, instead of either by the instruction.

    Args:
        annotator: as `find_annotator` found it.
        output: gets its configuration.
    """
    name, config, template = _read_config(annotator.path)
    config |= {"prompt_template": str(template.resolve()), "is_randomize_output_order": False}
    derived = check_name(f"{name}-in_given_order", "annotator")
    path = output.write_text(yaml.safe_dump({derived: config}), "annotator", derived, "configs.yaml")
    return Annotator(derived, path.resolve(), annotator.model)


def _read_config(path: Path) -> tuple[str, dict[str, Any], Path]:
    """Return the one annotator of a file: its name, its keys, and where its prompt template is."""
    configs = read_yaml(str(path))
    if len(configs) != 1:
        names = ", ".join(configs) or "none"
        raise UserError(f"{path}: {len(configs)} annotators ({names}); give a file with one")
    ((name, config),) = configs.items()
    check_name(name, f"{path}: annotator")
    if not isinstance(config, dict):
        raise UserError(f"{path}: annotator {name} is {config!r:.60}; give its keys, such as prompt_template")
    if config.get("fn_completions") != "openai_completions":
        raise UserError(
            f"annotator {name} asks through {config.get('fn_completions')}, not an OpenAI-compatible "
            f"endpoint; give one that does, such as {OFFICIAL_ANNOTATOR}, with --judge_model and --endpoint"
        )
    asked = config.get("completions_kwargs")
    if not isinstance(asked, Mapping) or not isinstance(asked.get("model_name"), str):
        raise UserError(
            f"{path}: annotator {name} has no completions_kwargs.model_name; name the judge model"
        )
    template = path.parents[1] / str(config.get("prompt_template"))
    if not template.is_file():  # one of the package's own, which need not be copied
        template = Path(constants.EVALUATORS_CONFIG_DIR) / str(config.get("prompt_template"))
    if not template.is_file():  # alpaca_eval would send the path itself as the prompt
        raise UserError(
            f"{path}: annotator {name} needs a prompt_template; expected its file relative to "
            f"{path.parents[1]}, or one of alpaca_eval's own"
        )
    return name, config, template


def _package_path(name: str) -> Path:
    return Path(constants.EVALUATORS_CONFIG_DIR) / name / "configs.yaml"


def _config_path(name: str) -> Path:
    try:
        own = Path(name) / "configs.yaml" if Path(name).is_dir() else Path(name)
        if own.suffix == ".yaml" and own.is_file():
            return own.resolve()
        path = _package_path(name)
        is_known = name not in ("", ".", "..") and "/" not in name and path.is_file()
    except OSError:  # too long a name for any file
        is_known = False
    if not is_known:
        known = [
            config.parent.name for config in Path(constants.EVALUATORS_CONFIG_DIR).glob("*/configs.yaml")
        ]
        raise UserError(
            f"unknown annotator {name!r:.80}; {nearest(name, known)}, or the path of a configs.yaml"
        )
    return path


def annotate(
    outputs: Sequence[Output],
    reference: Sequence[Output],
    annotator: Annotator,
    answers: Answers,
    *,
    num_workers: int,
    output: OutputFolder,
    show_progress: bool = True,
) -> Annotations:
    """Have a judge compare outputs with the reference's, through `alpaca_eval`.

    Args:
        outputs: the model's, in the reference's order.
        reference: the reference's.
        annotator: which question is asked.
        answers: who answers.
        num_workers: calls side by side.
        output: for the client configuration that names our client.
        show_progress: draw the package's progress bars.

    Returns:
        One annotation per instruction, in order; `preference` is None where there is none.
    """
    client = {"default": [{"client_class": "ivg.evaluation.alpaca.judge.JudgeClient"}]}
    client_config = output.write_text(yaml.safe_dump(client), "annotator", "client_configs.yaml")
    with quiet(show_progress=show_progress):
        return list(
            PairwiseAnnotator(annotators_config=annotator.path, caching_path=None).annotate_head2head(
                outputs_1=pd.DataFrame(reference),
                outputs_2=pd.DataFrame(outputs),
                client_config_path=str(client_config),
                client_kwargs={"answers": answers},
                num_procs=num_workers,
                price_per_token=0.0,
            )
        )
