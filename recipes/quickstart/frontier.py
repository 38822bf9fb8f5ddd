"""Decode validation prompts over a grid of guidance, beta, W and K, for the frontier of reward and distance.

    python recipes/quickstart/frontier.py --config recipes/quickstart/frontier.yaml

Writes one decoded file per setting to output_dir, each whole or not at all: a killed run goes on with the
settings that are missing.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import dacite
from rich.progress import track

import ivg
from ivg.config import ModelConfig, PairConfig, SamplingConfig, SearchConfig, ValueConfig
from ivg.config_file import read_yaml
from ivg.errors import UserError, exit_on_user_error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point: a method of the report, and what varies.

    Attributes:
        method: `token_implicit`, `best_of_n`, `chunk_explicit`, `token_implicit_best_of_n` or `ivg`.
        beta: weight of token guidance; unset without it.
        num_beams: W.
        num_successors: K.
    """

    method: str
    beta: float | None = None
    num_beams: int = 1
    num_successors: int = 1

    @property
    def name(self) -> str:
        """Name the setting's file."""
        beta = "" if self.beta is None else f"-beta{self.beta:g}"
        return f"{self.method}{beta}-W{self.num_beams}-K{self.num_successors}"

    @property
    def label(self) -> str:
        """Say what varies, beside a point of the figure."""
        parts = [] if self.beta is None else [f"β={self.beta:g}"]
        if self.num_beams * self.num_successors > 1:
            rows = (
                f"{self.num_beams}·{self.num_successors}"
                if self.num_beams > 1
                else f"N={self.num_successors}"
            )
            parts.append(rows)
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontierConfig:
    """The models, the prompts, how to sample, and the settings to try."""

    base: str
    tuned: str
    untuned: str
    value: str
    prompts: str
    num_prompts: int
    output_dir: str
    sampling: SamplingConfig
    chunk_length: int
    max_batch_rows: int
    settings: list[Setting]


def read_config(path: str) -> FrontierConfig:
    """Read the YAML strictly."""
    hooks = {float: float}
    try:
        config = dacite.from_dict(
            FrontierConfig, read_yaml(path), dacite.Config(strict=True, cast=[tuple], type_hooks=hooks)
        )
    except dacite.DaciteError as error:
        raise UserError(f"{path}: {error}") from error
    names = [setting.name for setting in config.settings]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: a setting occurs twice; remove one")
    return config


def search_of(setting: Setting, config: FrontierConfig) -> SearchConfig:
    """Turn a setting into guidance and search: best-of-N is a search with one chunk as long as a response."""
    searched = setting.num_beams * setting.num_successors > 1
    whole = setting.num_beams == 1
    return SearchConfig(
        token_guidance="none" if setting.beta is None else "implicit",
        chunk_guidance="explicit" if searched else "none",
        num_beams=setting.num_beams,
        num_successors=setting.num_successors,
        chunk_length=config.sampling.max_new_tokens if whole else config.chunk_length,
    )


def decode(
    setting: Setting, config: FrontierConfig, prompts: Sequence[dict[str, str]]
) -> list[dict[str, object]]:
    """Decode the prompts with one setting."""
    search = search_of(setting, config)
    pair = PairConfig(
        tuned=ModelConfig(path=config.tuned),
        untuned=ModelConfig(path=config.untuned),
        beta=setting.beta or 0.0,
    )
    models = ivg.load_models(
        config.base,
        pairs=[pair] if search.token_guidance == "implicit" else [],
        values=[ValueConfig(model=ModelConfig(path=config.value))]
        if search.chunk_guidance == "explicit"
        else [],
    )
    responses = ivg.generate(
        prompts, models, search=search, sampling=config.sampling, max_batch_rows=config.max_batch_rows
    )
    return [
        {
            **response.prompt,
            "response": response.text,
            "token_ids": response.token_ids,
            "num_tokens": response.num_tokens,
            "finish_reason": response.finish_reason,
        }
        for response in responses
    ]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Decode every setting whose file is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file")
    config = read_config(parser.parse_args(argv).config)
    lines = Path(config.prompts).read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line) for line in lines[: config.num_prompts]]
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for setting in track(config.settings, "settings"):
        path = output / f"{setting.name}.jsonl"
        if not path.exists():
            partial = path.with_suffix(".partial")
            rows = decode(setting, config, prompts)
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            os.replace(partial, path)


if __name__ == "__main__":
    main()
