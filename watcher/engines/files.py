"""What a model's folder holds, told from the outlines of its files: nothing is loaded here."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.engine import ModelMissing
from watcher.engines.plan import Weights
from watcher.errors import SteadyError
from watcher.models.catalogue import (
    is_hub_name,
    missing_files,
    outline,
    parts_named,
    place_of,
    revision_of,
)

_SINGLE = (".safetensors", ".gguf")  #: what a transformer in one file ends with
_ROLES = ("transformer", "text_encoder", "vae")


@dataclass(frozen=True)
class Contents:
    """What a model folder holds: its digest (its own name for a revision) and its weights."""

    digest: str
    weights: Weights


def locate_model(model: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Folder and hub commit (None for a plain folder). Raises ModelMissing."""
    folder = place_of(model, None)
    if folder is None or not folder.is_dir():
        raise ModelMissing(f"{_model_words(model)} is not on this machine.")
    commit = revision_of(folder)
    if revision is not None and commit is not None and commit != revision:
        raise ModelMissing(f"{_model_words(model)} is here at another revision than {revision}.")
    return folder, commit


def _model_words(model: str) -> str:
    """A hub name as it is, a folder without where it lies."""
    return model if is_hub_name(model) else f"The model folder {Path(model).name!r}"


def name_of(folder: Path) -> str:
    """What a model of one's own is called in recipes: never where it lies."""
    profile = folder / "profile.json"
    name = _json_file(profile).get("name") if profile.is_file() else None
    return name if isinstance(name, str) and name else folder.resolve().name


def is_single_file(model: str) -> bool:
    """Is ``model`` a transformer in one file, not a folder or a hub name?"""
    return Path(model).suffix in _SINGLE


def inspect(
    folder: Path, *, kind: str | None = "ZImagePipeline", transformer: Path | None = None
) -> Contents:
    """Are all files there, and whole? Cheap: reads headers, not weights.

    ``kind``: the pipeline it must be (None: any). ``transformer``: a single file that stands in
    for the folder's own. Raises ModelMissing for what is absent, SteadyError ``model_damaged`` for
    what is torn.
    """
    index = folder / "model_index.json"
    parts = _json_file(index) if index.is_file() else {}
    for missing in missing_files(folder):
        if transformer is None or not re.match("transformer/.", missing):
            raise ModelMissing(f"{missing} is missing: the model is not complete.")
    named = parts.get("_class_name")
    if kind is not None and named != kind:
        raise SteadyError("model_damaged", f"{folder.name} is a {named}, not a {kind}.")
    digest = hashlib.sha256()
    counts = dict.fromkeys(_ROLES, 0)
    for part in model_parts(folder, parts):
        alone = transformer if part == "transformer" else None
        for path in _weight_files(folder / part) if alone is None else [alone]:
            entries, size = header(path)
            # As many weights of two bytes each: quantised ones stay as they are in the file.
            numbers = sum(math.prod(entry["shape"]) for entry in entries.values())
            count = numbers if entries else size // 2
            counts[role_of(part)] += count
            digest.update(json.dumps([part, path.name, size, entries], sort_keys=True).encode())
            for piece in _samples(path, size):
                digest.update(piece)
    for path in [*sorted(folder.glob("*/*.json")), index]:
        if not path.name.endswith(".index.json"):
            digest.update(path.read_bytes())
    return Contents(f"sha256:{digest.hexdigest()}", Weights(**counts))


def model_parts(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """The parts that have weights, transformer first."""
    found = [part for part in parts_named(index) if (folder / part / "config.json").is_file()]
    return sorted(found, key=lambda part: (_ROLES.index(role_of(part)), part))


def role_of(part: str) -> str:
    """What a part of a pipeline does, under Z-Image's names: the rest of a kind moves as one."""
    if "vae" in part or part in ("vqvae", "movq"):
        return "vae"
    return "text_encoder" if "encoder" in part else "transformer"


def _weight_files(part: Path) -> list[Path]:
    """The .safetensors files of one part that lacks none."""
    indexes = sorted(part.glob("*.safetensors.index.json"))
    if indexes:
        return [part / name for name in sorted(set(_json_file(indexes[0])["weight_map"].values()))]
    return sorted(part.glob("*.safetensors"))


def header(path: Path) -> tuple[dict[str, Any], int]:
    """What a weight file says of its weights (GGUF: nothing), and its size, which must agree.

    Raises ModelMissing, SteadyError ``model_damaged``.
    """
    if not path.is_file():
        raise ModelMissing(f"{path.name} is not there.")
    if path.suffix == ".gguf":
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return {}, path.stat().st_size
    try:
        entries = outline(path)
    except ValueError:
        words = f"{path.parent.name}/{path.name} is not whole."
        raise SteadyError("model_damaged", words) from None
    entries.pop("__metadata__", None)
    return entries, path.stat().st_size


def _samples(path: Path, size: int) -> Iterator[bytes]:
    """A small file whole; of a large one 64 pieces: training again changes every one of them."""
    whole = size <= 64 << 20
    with path.open("rb") as file:
        for number in range(64):
            file.seek(size * number // 64)
            yield file.read(size * (number + 1) // 64 - file.tell() if whole else 1 << 12)


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SteadyError("model_damaged", f"{path.name} cannot be read.")
    return value
