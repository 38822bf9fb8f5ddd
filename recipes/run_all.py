"""Run every stage of every recipe as written, with tiny stand-ins: from training to a decoded file.

    python recipes/run_all.py [RECIPE ...]

`stand_ins.yaml` replaces models, data, output paths, step counts and lengths, and nothing else. What is made
lies in runs/recipes.
"""

import json
import runpy
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ivg.cli import main as decode

ROOT = Path(__file__).parents[1]
RECIPES = ("sentiment", "summarization", "tulu", "ultra", "qwen3")  # ultra uses the value model of tulu
STAGES = ("sft", "dpo", "reward", "rollouts", "value", "decode")
MODELS = ("model_name_or_path", "tokenizer_path", "reward_model")
DATASETS = ("dataset_name", "eval_dataset_name")


def stages(recipe: str) -> list[Path]:
    """Return a recipe's files in the order in which they run."""
    files = [path for path in (ROOT / "recipes" / recipe).glob("*.yaml") if stage_of(path) in STAGES]
    return sorted(files, key=lambda path: (STAGES.index(stage_of(path)), path.name))


def stage_of(path: Path) -> str:
    """Return the script that a recipe file is for: `decode_gpt2_xl.yaml` is for `decode`."""
    return path.stem.split("_")[0]


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
        """Replace models, input, output and length of a decoding stage."""
        new = json.loads(json.dumps(keys))
        for model in models_of(new):
            model["path"] = self.model(model["path"])
        new["sampling"]["max_new_tokens"] = self.spec["limits"]["max_new_tokens"]
        new["input"] = self.dataset(new.pop("dataset")["name"]) + ".jsonl"
        new["output"] = self.path(new["output"])
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
        for name, schema in self.spec["datasets"].items():
            stand_ins.save_dataset(Path(self.dataset(name)), schema)
            lines = "".join(json.dumps(row) + "\n" for row in stand_ins.rows(schema)[:3])
            Path(self.dataset(name) + ".jsonl").write_text(lines)


def models_of(keys: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Go through the models of a decoding configuration."""
    yield keys["base"]
    for pair in keys.get("pairs", []):
        yield from (pair["tuned"], pair["untuned"])
    yield from keys.get("values", [])


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
    sys.argv = [f"train/{stage}.py", "--config", str(config), *flags]
    runpy.run_path(str(ROOT / "train" / f"{stage}.py"))["main"]()


def main() -> None:
    """Run the recipes named on the command line, or all."""
    folder = ROOT / "runs" / "recipes"
    shutil.rmtree(folder / "runs", ignore_errors=True)
    stand_ins = StandIns(yaml.safe_load((ROOT / "recipes" / "stand_ins.yaml").read_text()), folder)
    stand_ins.make()
    wanted = sys.argv[1:] or RECIPES
    paths = [path for recipe in wanted for path in stages(recipe)]
    began = time.monotonic()
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path.relative_to(ROOT)}", flush=True)
        config = folder / "configs" / path.relative_to(ROOT / "recipes")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(stand_ins.stand_in(path)))
        run(path, config)
    print(f"{len(paths)} stages ran in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
