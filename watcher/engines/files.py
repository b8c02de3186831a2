"""What a model's folder holds, told from the outlines of its files: nothing is loaded here."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.engine import ModelMissing
from watcher.engines.plan import Weights
from watcher.errors import SteadyError
from watcher.models import folder_of, revision_of
from watcher.models.catalogue import outline

PARTS = ("transformer", "text_encoder", "vae")

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Contents:
    """What a model folder holds: its digest (its own name for a revision) and its weights."""

    digest: str
    weights: Weights


def locate_model(model: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Folder and hub commit (None for a plain folder). Raises ModelMissing."""
    folder = folder_of(model, None)
    if folder is None or not folder.is_dir():
        raise ModelMissing(f"{_model_words(model)} is not on this machine.")
    commit = revision_of(folder)
    if revision is not None and commit is not None and commit != revision:
        raise ModelMissing(f"{_model_words(model)} is here at another revision than {revision}.")
    return folder, commit


def _model_words(model: str) -> str:
    """A hub name as it is, a folder without where it lies."""
    return model if _HUB_NAME.fullmatch(model) else f"The model folder {Path(model).name!r}"


def name_of(folder: Path) -> str:
    """What a model of one's own is called in recipes: never where it lies."""
    profile = folder / "profile.json"
    name = _json_file(profile).get("name") if profile.is_file() else None
    return name if isinstance(name, str) and name else folder.resolve().name


def inspect(folder: Path) -> Contents:
    """Are all files there, and whole? Cheap: reads headers, not weights.

    Raises ModelMissing for what is absent, SteadyError ``model_damaged`` for what is torn.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelMissing(f"{folder.name} is no model: model_index.json is missing.")
    kind = _json_file(index).get("_class_name")
    if kind != "ZImagePipeline":
        raise SteadyError("model_damaged", f"{folder.name} is a {kind}, not a ZImagePipeline.")
    digest = hashlib.sha256()
    counts = dict.fromkeys(PARTS, 0)
    for part in PARTS:
        for path in weight_files(folder / part):
            entries, size = header(path)
            counts[part] += sum(_elements(entry) for entry in entries.values())
            digest.update(json.dumps([part, path.name, size, entries], sort_keys=True).encode())
            for piece in _samples(path, size):
                digest.update(piece)
    for path in [*sorted(folder.glob("*/*.json")), index]:
        if not path.name.endswith(".index.json"):
            digest.update(path.read_bytes())
    return Contents(f"sha256:{digest.hexdigest()}", Weights(**counts))


def weight_files(part: Path) -> Iterator[Path]:
    """The .safetensors files of one part. Raises ModelMissing."""
    indexes = sorted(part.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(_json_file(indexes[0])["weight_map"].values()))
    else:
        names = sorted(p.name for p in part.glob("*.safetensors"))
    if not names:
        raise ModelMissing(f"{part.name} has no .safetensors file.")
    for name in names:
        if not (part / name).is_file():
            raise ModelMissing(f"{part.name}/{name} is missing: the model is not complete.")
        yield part / name


def header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its weights, and the file's size, which must agree."""
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


def _elements(entry: Mapping[str, Any]) -> int:
    count = 1
    for side in entry["shape"]:
        count *= side
    return count


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SteadyError("model_damaged", f"{path.name} cannot be read.")
    return value
