"""A record or an ablation as the folder of a dataset: what sinklens reads, tables that everybody reads, and a card."""

from __future__ import annotations

import html
import io
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
import yaml

from sinklens import files, records
from sinklens.errors import RecordError, SaveError
from sinklens.experiments.results import AblationResult
from sinklens.values.kinds import reads

HUB = "hf://datasets/"
RECORD, ABLATION, CARD = "record.nc", "ablation.json", "README.md"
MAX_ROWS = 2_000_000  # of a table; longer ones are in the record alone, and the card says so


@reads("target")
def push(thing: xr.Dataset | AblationResult, target: str | Path, *, replace: bool = False, private: bool = True) -> str:
    """Write a record or an ablation into the folder of a dataset, here or on the Hugging Face Hub.

    The folder holds `record.nc` or `ablation.json` (with a checksum), a parquet table per variable, or one of all
    scores, and a card, README.md, by which `datasets.load_dataset(folder, "received")` finds the tables. Other files in
    the folder stay; nothing is ever deleted.

        sl.push(run.record, "hf://datasets/me/my-run")  # me/my-run on the Hub; anything else is a folder here
        sl.pull("hf://datasets/me/my-run")

    Args:
        thing: What to write: `run.record`, or what `ablate` returned.
        target: A folder, or "hf://datasets/" and the name of a dataset, which is made if need be.
        replace: Replace files of these names that hold something else.
        private: Of a dataset that is made on the Hub.

    Returns:
        The folder, or where it is on the Hub.

    Raises:
        SaveError: a file of one of these names is there and holds something else, or cannot be written.
        RecordError: a record that cannot be stored.
    """
    name = _hub_name(target)
    contents = _contents(thing)
    if name is None:
        return str(_write(Path(target), contents, replace))
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
    there = set(api.list_repo_files(name, repo_type="dataset"))
    if ({RECORD, ABLATION} - set(contents)) & there:
        raise SaveError(f"{str(target)!r} holds another kind of thing, and a dataset holds one; give another name")
    taken = sorted(set(contents) & there)
    if taken and not replace:
        raise SaveError(f"{str(target)!r} has {', '.join(taken)} already; give another name, or replace=True")
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), contents, replace=False)
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            repo_type="dataset",
            allow_patterns=sorted(contents),
            commit_message="sinklens: " + " and ".join(sorted(set(contents) & {RECORD, ABLATION})),
        )
    return str(done)


@reads("source")
def pull(source: str | Path, *, revision: str | None = None) -> xr.Dataset | AblationResult:
    """Read what `push` wrote: a record or an ablation.

    Args:
        source: The folder, or "hf://datasets/" and the name of a dataset.
        revision: Branch, tag or commit on the Hub.

    Raises:
        RecordError: no such folder, nothing or two things in it, or a file that was changed since.
    """
    name = _hub_name(source)
    if name is not None:
        from huggingface_hub import snapshot_download

        found = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[RECORD, ABLATION])
        return _read(Path(found))
    if revision is not None:
        raise RecordError(f"revision={revision!r}: a folder has none; it is for {HUB}user/name")
    return _read(Path(source))


def _hub_name(where: str | Path) -> str | None:
    """The name on the Hub; None for a folder."""
    if not isinstance(where, str) or "://" not in where:
        return None
    name = where.removeprefix(HUB).strip("/")
    if not where.startswith(HUB) or name.count("/") != 1:
        raise RecordError(f"{where!r} is neither a folder nor {HUB}user/name")
    return name


def _read(folder: Path) -> xr.Dataset | AblationResult:
    here = [name for name in (RECORD, ABLATION) if (folder / name).is_file()]
    if len(here) != 1:
        what = "both a record and an ablation" if here else f"neither {RECORD} nor {ABLATION}"
        raise RecordError(f"{str(folder)!r} holds {what}. A dataset on the Hub is {HUB}user/name")
    return records.open(folder / RECORD) if here == [RECORD] else AblationResult.open(folder / ABLATION)


def _write(folder: Path, contents: dict[str, bytes], replace: bool) -> Path:
    """Write all files, after none is found in the way; what is the same already stays."""
    other = folder / (ABLATION if RECORD in contents else RECORD)
    if other.exists():
        raise SaveError(f"{str(other)!r} is there already, and a dataset holds one thing; give another folder")
    kinds = {name: {RECORD: files.RECORD, ABLATION: files.RESULT}.get(name) for name in contents}
    for name, content in contents.items():
        path = files.check(folder / name, kinds[name])
        if not replace and path.exists() and path.read_bytes() != content:
            raise SaveError(f"{str(path)!r} is there already and holds something else; replace=True replaces it")
    for name, content in contents.items():  # the card last: what it names is there
        files.write_bytes(folder / name, content, kinds[name])
    return folder


def _contents(thing: xr.Dataset | AblationResult) -> dict[str, bytes]:
    """All files of a dataset, by name."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(thing, AblationResult):
            name, path = ABLATION, thing.save(Path(folder) / ABLATION)
        else:
            name, path = RECORD, records.save(thing, Path(folder) / RECORD)
        whole = path.read_bytes()
    if isinstance(thing, AblationResult):
        tables, left, held = {"scores": thing.to_dataframe()}, [], thing.summary() if thing.scores else pd.DataFrame()
        title, about = "Scores of an ablation", thing.unfinished
    else:
        tables, left = _tables(thing)
        what = "sweep of patches" if "site" in thing.attrs and "effect" in thing else "denoising run"
        held, title, about = records.contents(thing), f"Record of a {what}", records.unfinished(thing)
    made = {f"tables/{name}.parquet": _parquet(table) for name, table in tables.items()}
    return {name: whole, **made, CARD: _card(title, about, name, list(tables), left, held).encode()}


def _tables(record: xr.Dataset) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """A tidy table of each variable, and the names of those that have too many rows."""
    names = [str(name) for name in record.data_vars]
    fit = [name for name in names if record[name].size <= MAX_ROWS]
    return {name: records.to_frame(record, name) for name in fit}, [name for name in names if name not in fit]


def _parquet(table: pd.DataFrame) -> bytes:
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    return content.getvalue()


def _card(title: str, about: str, name: str, tables: list[str], left: list[str], held: pd.DataFrame) -> str:
    """README.md of the dataset: its tables for the Hub, and what is in it for people."""
    configs = [{"config_name": each, "data_files": f"tables/{each}.parquet"} for each in tables]
    head = yaml.safe_dump({"tags": ["sinklens", "attention-sinks"], "configs": configs}, sort_keys=False)
    absent = f"Too long for a table, and in `{name}` alone: {', '.join(left)}." if left else ""
    lines = [list(map(str, held.columns)), ["---"] * held.shape[1], *held.values.tolist()] if len(held) else []
    shown = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
    parts = [
        f"---\n{head}---\n\n# {title}",
        about and f"**{_cell(about)}**",
        f"Written by sinklens. `{name}` is the whole, with a checksum: `sinklens.pull(folder)` reads it. Each table "
        'is a configuration, for example `datasets.load_dataset(folder, "' + (tables or [""])[0] + '")`.',
        absent,
        shown,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(value: Any) -> str:
    """A cell of a table in Markdown, in one line, in which nothing is a tag."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
