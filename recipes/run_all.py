"""Run every stage of every recipe as written, with tiny stand-ins: from training to a decoded file.

    python recipes/run_all.py [RECIPE ...]

`stand_ins.yaml` replaces models, data, output paths, step counts and lengths, and nothing else. What is made
lies in runs/recipes.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ivg.__main__ import run_here
from ivg.errors import fail
from ivg.run.cli import main as decode
from ivg.run.json_files import write_jsonl
from ivg.training.value.convert import convert_value

ROOT = Path(__file__).parents[1]
# ultra uses the value model of tulu; quickstart is left to `make quickstart`.
RECIPES = ("sentiment", "summarization", "tulu", "ultra", "qwen3")
# Recipes that come with a script of their own, which runs all that they are made of.
WITH_SCRIPTS = {"smollm2": "recipes/smollm2/stand_in.py"}
STAGES = ("sft", "reward", "rollouts", "dpo", "value", "decode")
MODELS = ("model_name_or_path", "tokenizer_path", "reward_model")
DATASETS = ("dataset_name", "eval_dataset_name")


def stages(recipe: str) -> list[Path]:
    """Return a recipe's files in the order in which they run."""
    files = [path for path in (ROOT / "recipes" / recipe).rglob("*.yaml") if stage_of(path) in STAGES]
    return sorted(files, key=lambda path: (STAGES.index(stage_of(path)), path.name))


def stage_of(path: Path) -> str:
    """Return which stage a recipe file is for, by the command in its header: `ivg train dpo` is `dpo`."""
    command = re.search(r"^# Command: .*?(\w+) --config ", path.read_text(), re.MULTILINE)
    return command[1] if command else ""


class StandIns:
    """Finds and makes what stands in for a Hub name or a path of an earlier stage.

    Args:
        spec: content of stand_ins.yaml.
        folder: where all of it lies.
    """

    def __init__(self, spec: Mapping[str, Any], folder: Path) -> None:
        self.spec, self.folder = spec, folder

    def path(self, name: str) -> str:
        """Move a path under runs/ to the stand-ins' runs; keep any other."""
        return str(self.folder / name) if name.startswith("runs/") else name

    def model(self, name: str) -> str:
        """Return the stand-in of a Hub model, or the moved path of one trained before."""
        if name.startswith("runs/"):
            return self.path(name)
        return str(self.folder / "models" / name.replace("/", "--"))

    def dataset(self, name: str) -> str:
        """Return the stand-in of a Hub dataset, or the moved path of one made before."""
        if name.startswith("runs/"):
            return self.path(name)
        return str(self.folder / "datasets" / name.replace("/", "--"))

    def training(self, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Replace models, data, output, steps and lengths of a training or rollout stage."""
        new = dict(keys)
        new |= {key: self.model(keys[key]) for key in MODELS if key in keys}
        new |= {key: self.dataset(keys[key]) for key in DATASETS if key in keys}
        new["output_dir"] = self.path(keys["output_dir"])
        new |= {key: value for key, value in self.spec["limits"].items() if key in keys}
        if "num_train_epochs" in keys:
            new["max_steps"] = self.spec["limits"]["max_steps"]
        return new

    def decoding(self, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Replace models, input, output and lengths of a decoding stage."""
        new = with_models(keys, self.model)
        limits = self.spec["limits"]
        new["sampling"] = {**keys["sampling"], "max_new_tokens": limits["max_new_tokens"]}
        if "dataset" in keys:
            new["input"] = self.dataset(new.pop("dataset")["name"]) + ".jsonl"
        else:
            new |= {"input": self.path(keys["input"]), "limit": limits["limit"]}
        new["output"] = self.path(keys["output"])
        return new

    def stand_in(self, path: Path) -> dict[str, Any]:
        """Return a recipe file's keys with the stand-ins in place."""
        keys = yaml.safe_load(path.read_text())
        return self.decoding(keys) if stage_of(path) == "decode" else self.training(keys)

    def make(self) -> None:
        """Write all stand-in models and datasets."""
        sys.path.insert(0, str(ROOT / "recipes"))
        import stand_ins

        for name, spec in self.spec["models"].items():
            stand_ins.save_model(Path(self.model(name)), spec)
        for name, spec in self.spec["released"].items():
            checkpoint = self.folder / "models" / name
            shutil.rmtree(checkpoint, ignore_errors=True)
            stand_ins.save_released(checkpoint, spec)
            convert_value(str(checkpoint), self.path(name))
        for name, schema in self.spec["datasets"].items():
            stand_ins.save_dataset(Path(self.dataset(name)), schema)
            write_jsonl(Path(self.dataset(name) + ".jsonl"), stand_ins.rows(schema)[:3])


def with_models(keys: Mapping[str, Any], replace: Callable[[str], str]) -> dict[str, Any]:
    """Return a decoding configuration with the path of every model replaced."""

    def other(model: Any) -> Any:
        return replace(model) if isinstance(model, str) else {**model, "path": replace(model["path"])}

    new = {**keys, "base": other(keys["base"])}
    if "pairs" in keys:
        sides = ("tuned", "untuned")
        new["pairs"] = [{**pair, **{side: other(pair[side]) for side in sides}} for pair in keys["pairs"]]
    if "values" in keys:
        new["values"] = [other(value) for value in keys["values"]]
    return new


def models_of(keys: Mapping[str, Any]) -> Iterator[str]:
    """Go through the paths of a decoding configuration's models."""
    for pair in keys.get("pairs", []):
        yield from (_path_of(pair[side]) for side in ("tuned", "untuned"))
    yield from (_path_of(model) for model in (keys["base"], *keys.get("values", [])))


def _path_of(model: Any) -> str:
    return str(model if isinstance(model, str) else model["path"])


def run(path: Path, config: Path) -> None:
    """Run one stage in this process, as its command would."""
    stage = stage_of(path)
    if stage == "decode":
        code = decode(["--config", str(config)])
        if code:
            raise SystemExit(code)
        return
    # The trainers refuse bf16 on a machine without a GPU unless they are told that the CPU is meant.
    flags = [] if stage == "rollouts" or torch.cuda.is_available() else ["--use_cpu", "true"]
    code = run_here("train", stage, ["--config", str(config), *flags])
    if code:
        raise SystemExit(code)


def main() -> None:
    """Run the recipes named on the command line, or all."""
    every = (*RECIPES, *WITH_SCRIPTS)
    wanted = sys.argv[1:] or every
    if unknown := sorted(set(wanted) - set(every)):
        fail(f"no recipe is named {', '.join(unknown)}; there are {', '.join(every)}")
    folder = ROOT / "runs" / "recipes"
    shutil.rmtree(folder / "runs", ignore_errors=True)
    stand_ins = StandIns(yaml.safe_load((ROOT / "recipes" / "stand_ins.yaml").read_text()), folder)
    stand_ins.make()
    paths = [path for recipe in wanted if recipe in RECIPES for path in stages(recipe)]
    began = time.monotonic()
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path.relative_to(ROOT)}", flush=True)
        config = folder / "configs" / path.relative_to(ROOT / "recipes")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(stand_ins.stand_in(path)))
        run(path, config)
    print(f"{len(paths)} stages ran in {time.monotonic() - began:.0f} s")
    for script in (WITH_SCRIPTS[recipe] for recipe in wanted if recipe in WITH_SCRIPTS):
        print(script, flush=True)
        if code := subprocess.run([sys.executable, script], cwd=ROOT).returncode:
            raise SystemExit(code)


if __name__ == "__main__":
    main()
