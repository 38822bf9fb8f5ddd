"""The two systems of an AlpacaEval run: a recipe's guided decoding, and its base alone, sampled the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivg.config import DecodeConfig, SearchConfig
from ivg.config.yaml_file import config_from_dict, read_yaml
from ivg.errors import UserError
from ivg.evaluation.alpaca.files import Output, to_outputs
from ivg.evaluation.measures.decoded import read_decoded
from ivg.evaluation.output_folder import OutputFolder
from ivg.run import runner
from ivg.run.job import prepare


def unguided(config: DecodeConfig) -> DecodeConfig:
    """Return the same run without guidance."""
    return dataclasses.replace(config, pairs=(), values=(), search=SearchConfig(), trace=None)


def decode_systems(
    recipe: str, name: str, reference: Sequence[Output], output: OutputFolder
) -> dict[str, list[Output]]:
    """Decode the reference's instructions, unguided and guided; either resumes where it was.

    Args:
        recipe: YAML of `ivg-decode`; its input (or dataset) and output are replaced.
        name: generator name of the guided system; the base's is `<name>-base`.
        reference: AlpacaEval's instructions.
        output: gets `<generator>/decoded.jsonl` and `<generator>/model_outputs.json`.

    Returns:
        Outputs by generator, the base's first, in the reference's order.

    Raises:
        UserError: whatever is wrong with the recipe, before any weights are loaded.
    """
    records = [{k: row[k] for k in ("instruction", "dataset") if k in row} for row in reference]
    instructions = output.write_json_lines(records, "instructions.jsonl")
    keys = {key: value for key, value in read_yaml(recipe).items() if key != "dataset"}
    guided = config_from_dict({**keys, "input": str(instructions)})
    if guided.sampling.num_samples != 1:
        raise UserError(f"{recipe}: AlpacaEval takes one response per instruction; remove num_samples")
    jobs = {}
    for system, config in ((f"{name}-base", unguided(guided)), (name, guided)):
        decoded = output.path / system / "decoded.jsonl"
        jobs[system] = prepare(dataclasses.replace(config, output=str(decoded)))
    systems = {}
    for system, job in jobs.items():
        runner.run(job, overwrite=False)
        systems[system] = to_outputs(read_decoded(system, str(job.config.output)).rows, system)
        output.write_json(systems[system], system, "model_outputs.json")
    return systems


def default_name(recipe: str) -> str:
    """Return what a recipe's guided system is called where nobody says: the recipe's folder."""
    return Path(recipe).resolve().parent.name


def how_decoded(recipe: str) -> dict[str, Any]:
    """Return what a submission records of a recipe: `prompt_template` and `settings`."""
    config = config_from_dict(read_yaml(recipe))
    template = config.base.template or "chat"
    text = "{instruction}" if template == "chat" else template.replace("{prompt}", "{instruction}")
    settings = {
        "base": config.base.path,
        "template": template,
        "pairs": [[pair.tuned.path, pair.untuned.path, pair.beta] for pair in config.pairs],
        "values": [value.function if value.model is None else value.model.path for value in config.values],
        **dataclasses.asdict(config.search),
        **dataclasses.asdict(config.sampling),
    }
    return {"prompt_template": text, "settings": json.loads(json.dumps(settings))}
