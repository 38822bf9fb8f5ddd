"""`ivg export-vllm`: a folder that plain `vllm serve` takes for a model, token guidance inside.

    ivg export-vllm --config run.yaml --output FOLDER [KEY=VALUE ...]

The folder holds links to the weights, the base's tokenizer and a config.json that names base, guides and
betas; the models are those of `ivg-decode`, given by its YAML or its flags. vLLM must have ivg installed
beside it, in the version that wrote the folder. Chunk guidance is no part of it: plain vLLM has no such
search.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from huggingface_hub import snapshot_download

from ivg.config import DecodeConfig, SamplingConfig, SearchConfig
from ivg.decoding.engine import refuse
from ivg.engines.vllm.description import Description, Member, describe, this_plugin
from ivg.engines.vllm.plugin import ARCHITECTURE
from ivg.engines.vllm.refusals import find_refusals, shortest_context
from ivg.errors import UserError, exit_on_user_error, readable
from ivg.models.folders import require_folders
from ivg.models.inspection import ModelInfo, context_length
from ivg.models.plan import GuidePlan, inspect_models, plan_guides
from ivg.run import console
from ivg.run.command_line import parse


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; exit codes are those of `ivg-decode`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h"):
        sys.stdout.write(f"{__doc__}")
        return 0
    line = parse(arguments)
    console.set_up(quiet=line.quiet, verbose=line.verbose)
    config = line.config
    if config.output is None or config.output == "-":
        raise UserError("no folder to write: give --output FOLDER")
    folder = export(config, Path(config.output))
    dtype = "" if config.base.dtype == "auto" else f" --dtype {config.base.dtype}"
    sys.stdout.write(f"written to {folder}; serve it with: vllm serve {folder}{dtype}\n")
    return 0


def export(config: DecodeConfig, folder: Path) -> Path:
    """Write the guided model of a run as a folder.

    Args:
        config: the run; its base and the guides of its token guidance are exported.
        folder: must not exist, or be empty.

    Raises:
        UserError: a run without token guidance, one that vLLM cannot do, or a folder that cannot be written.
    """
    if config.search.token_guidance == "none":
        raise UserError(
            "token_guidance is none, so that plain vLLM would serve the base alone; set it to implicit or "
            "explicit"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output {folder} exists; give a new folder")
    require_folders(config.base, config.pairs, config.values)
    infos = inspect_models(config.base, config.pairs, config.values)
    plans = plan_guides(infos, SearchConfig(token_guidance=config.search.token_guidance))
    refuse("vllm", find_refusals(infos.base, plans, SamplingConfig()))
    if infos.base.adapter_over is not None:
        raise UserError(f"{infos.base.name}: it is a LoRA adapter; merge it into the model under it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(unfinished, infos.base, plans)
            unfinished.chmod(0o755)  # mkdtemp's is for its owner alone
            unfinished.replace(folder)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
    except OSError as error:
        raise UserError(
            f"output {folder} cannot be written: {error.strerror}; give another folder"
        ) from error
    return folder


def _write(folder: Path, base: ModelInfo, plans: Sequence[GuidePlan]) -> None:
    description = _link_members(folder, describe(base, plans))
    sources = (folder / description.base.path).resolve()
    for file in sorted(sources.iterdir()):
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file)
    with readable(f"{base.name}: its config.json is not readable"):
        config = json.loads((sources / "config.json").read_text("utf-8"))
    models = (base, *(info for plan in plans for info in plan.models))
    config |= _overrides(base, description, shortest_context(models))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _link_members(folder: Path, description: Description) -> Description:
    """Link the folders of all members; returns the description with paths relative to the folder."""
    numbers: dict[str, str] = {}

    def link(path: str) -> str:
        if path not in numbers:
            numbers[path] = f"models/{len(numbers)}-{Path(path).name}"
            (folder / numbers[path]).symlink_to(_folder_of(path, revisions[path]), target_is_directory=True)
        return numbers[path]

    members = [description.base, *(member for guide in description.guides for member in guide.members)]
    revisions = {path: member.revision for member in members for path in _paths_of(member)}
    (folder / "models").mkdir()
    linked = description.with_paths(link)
    return dataclasses.replace(linked, exported_by=this_plugin())


def _paths_of(member: Member) -> list[str]:
    return [member.path] if member.adapter is None else [member.path, member.adapter]


def _folder_of(path: str, revision: str | None) -> Path:
    """Return where a model lies; one of the Hub is downloaded."""
    if Path(path).is_dir():
        return Path(path).resolve()
    with readable(f"{path}: cannot be downloaded"):
        return Path(snapshot_download(path, revision=revision))


def _overrides(base: ModelInfo, description: Description, context: int | None) -> dict[str, Any]:
    """Return what of the base's config.json is another in the guided model's."""
    overrides: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "ivg": description.to_dict(),
        "vocab_size": description.vocab_size,
    }
    if context is not None and context != context_length(base.config):
        name = base.config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        overrides[name] = context
    if base.source.dtype != "auto":
        overrides["dtype"] = base.source.dtype
    return overrides
