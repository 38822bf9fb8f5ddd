"""What a model's path must be, as far as the file system tells: known without torch or transformers."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from ivg.config import ModelConfig, PairConfig, ValueConfig
from ivg.errors import UserError, readable

_GGUF_START = b"GGUF"
_GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".jinja")


def require_folders(base: ModelConfig, pairs: Sequence[PairConfig], values: Sequence[ValueConfig]) -> None:
    """Check the paths of all models of a run; see `require_folder`."""
    require_folder(base.path, model_name("base", base))
    for i, pair in enumerate(pairs, 1):
        number = i if len(pairs) > 1 else None
        require_folder(pair.tuned.path, model_name("tuned", pair.tuned, number))
        require_folder(pair.untuned.path, model_name("untuned", pair.untuned, number))
    for i, value in enumerate(values, 1):
        if value.model is not None:
            require_folder(value.model.path, model_name("value", value.model, i if len(values) > 1 else None))


def model_name(role: str, source: ModelConfig, number: int | None = None) -> str:
    """Say how messages call a model, such as `value 2 (runs/value)`."""
    return f"{role}{'' if number is None else f' {number}'} ({source.path})"


def require_folder(path: str, name: str) -> None:
    """Refuse a path that exists, or looks like one, and holds no model; anything else may be a Hub name.

    Args:
        path: folder or Hub name.
        name: how messages call the model.

    Raises:
        UserError: no folder, one without a model, or one with a pipe or a device among its files, which
            would hang whoever reads it.
    """
    if "\0" in path:
        raise UserError(f"{name}: its path holds a null character; give a folder or a Hub name")
    folder = Path(path)
    try:
        if folder.is_dir():
            files = {file.name for file in folder.iterdir()}
            if not files & {"config.json", "adapter_config.json"}:
                ggufs = sorted(file for file in files if file.lower().endswith(".gguf"))
                if ggufs:
                    raise UserError(
                        f"{name}: the folder has no config.json but {ggufs[0]}; run ivg convert-gguf "
                        f"{folder / ggufs[0]} FOLDER and give FOLDER"
                    )
                raise UserError(
                    f"{name}: the folder has no config.json; give a folder written by save_pretrained"
                )
            for file in sorted(files):
                if Path(file).suffix in MODEL_FILES and not stat.S_ISREG((folder / file).stat().st_mode):
                    raise UserError(f"{name}: {file} in its folder is no regular file; save the model again")
        elif folder.suffix.lower() == ".gguf":
            raise UserError(
                f"{name}: a GGUF file is converted first; run ivg convert-gguf {path} FOLDER and give FOLDER"
            )
        elif folder.exists() or looks_local(path):
            raise UserError(f"{name}: no such folder; give a folder written by save_pretrained or a Hub name")
    except OSError as error:  # no permission, a name that is too long, a link that leads nowhere
        file = "" if error.filename == path else f" ({Path(str(error.filename)).name})"
        raise UserError(f"{name}: cannot be read: {error.strerror}{file}; give a readable folder") from error


def require_gguf(path: str) -> None:
    """Refuse what is no GGUF file that holds a whole model, as far as its name and first bytes tell.

    Raises:
        UserError: no such file, another kind of file, or one of several parts.
    """
    if "\0" in path:
        raise UserError(f"{path!r}: a name holds a NUL byte; give the name of a GGUF file")
    try:
        if not Path(path).is_file():
            found = "is no regular file" if Path(path).exists() else "no such file"
            raise UserError(f"{path}: {found}; give a GGUF file")
        with Path(path).open("rb") as file:
            start = file.read(len(_GGUF_START))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give a readable GGUF file") from error
    if start != _GGUF_START:
        raise UserError(f"{path}: is no GGUF file, it begins with {start!r} instead of {_GGUF_START!r}")
    if _GGUF_PART.search(path):
        raise UserError(f"{path}: is one of several parts; join them with llama-gguf-split --merge first")


def require_new_folder(path: str) -> None:
    """Refuse a destination that cannot become a folder of its own.

    Raises:
        UserError: it is a file or holds files, or its parent is no folder that can be written.
    """
    if "\0" in path or not path:
        raise UserError(f"{path!r}: is no name of a folder; give a new folder")
    folder = Path(path)
    try:
        if folder.is_symlink() or folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise UserError(f"{path}: is a file or holds files; give a new folder")
        parent = next(place for place in folder.absolute().parents if place.exists())
    except OSError as error:
        raise UserError(f"{path}: cannot be used: {error.strerror}; give a new folder") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{path}: {parent} is no folder that can be written; give a new folder elsewhere")


def looks_local(path: str) -> bool:
    """Tell what cannot be a Hub name: absolute, with a dot in front, or deeper than owner/name."""
    return Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1


def check_conversion(source: str, destination: str) -> None:
    """Check that there is a token-reward checkpoint to read and a new folder to write.

    Raises:
        UserError: there is none, or the destination holds files.
    """
    if "\0" in source + destination:
        raise UserError(f"{source!r}, {destination!r}: a name holds a NUL byte; give names of folders")
    folder, target = Path(source), Path(destination)
    with readable(f"{source}, {destination}: not names of folders"):
        if not (folder / "config.json").is_file():
            raise UserError(f"{source}: no config.json there; give the folder of a token-reward checkpoint")
        if (target / "config.json").exists():
            raise UserError(f"{destination}: holds a model already; give a new folder")
        if target.is_file() or target.is_symlink() or (target.is_dir() and any(target.iterdir())):
            raise UserError(f"{destination}: is a file or holds files; give a new folder")
