"""Autoencoders as edits and probes name them: an object or a folder, read once, and told from others by a mark."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sinklens.autoencoders.autoencoder import Autoencoder
from sinklens.autoencoders.files import FORMATS
from sinklens.errors import AutoencoderError
from sinklens.values.folders import stamp

Source = Autoencoder | str


def load(sae: Source) -> Autoencoder:
    """An autoencoder, itself or from its folder, read once for as long as its files stay as they are.

    Raises:
        AutoencoderError: as in `Autoencoder.load`.
    """
    if isinstance(sae, Autoencoder):
        return sae
    names = [name for config, form in FORMATS.items() for name in (config, form.WEIGHTS)]
    try:
        return _read(sae, tuple(stamp(Path(sae) / name) for name in names))
    except AutoencoderError as error:
        raise AutoencoderError(f"sae={sae!r}: {error}") from error


def same(sae: Source, mark: str | None) -> str:
    """The mark of an autoencoder as it is now, which must be the one that is given, if one is.

    Raises:
        AutoencoderError: another one.
    """
    found = load(sae).identity
    if mark not in (None, found):
        raise AutoencoderError(f"sae={sae!r} has the mark {found!r}, not mark={mark!r}: it is another autoencoder now")
    return found


@lru_cache(maxsize=8)
def _read(folder: str, stamps: tuple[tuple[int, ...] | None, ...]) -> Autoencoder:
    return Autoencoder.load(folder)
