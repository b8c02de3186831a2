"""The models we know by name, and where a model's files lie on this machine.

Looks only: nothing is downloaded, written or loaded here, so a crash leaves nothing.
"""

import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.errors import SteadyError

STARTER = "starter"
ZIMAGE_TURBO = "Tongyi-MAI/Z-Image-Turbo"
PROFILE = "profile.json"
MANIFEST = "manifest.json"
OF_FILES = ("zimage", "diffusers")  #: engines whose models are files

#: Below ``models/`` lie folders of one's own, whoever is called so on the hub.
_HUB_NAME = re.compile(r"(?!models/)(\w[\w.-]*/\w[\w.-]*?)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Profile:
    """What one model allows, and takes when a request says nothing. Sides in pixels."""

    name: str = ZIMAGE_TURBO
    native_width: int = 1024
    native_height: int = 1024
    default_steps: int = 9
    min_side: int = 16
    max_side: int = 2048
    max_pixels: int = 2048 * 2048
    guidance: bool = True  #: have guidance_scale and negative_prompt an effect?


@dataclass(frozen=True)
class Known:
    """A model of the hub that we know: its profile, the one revision we use, its size."""

    profile: Profile
    revision: str
    bytes: int  #: of the download


#: The models we know by name. The revision is the weights' final state: every later commit
#: of that repository touches its README and pictures alone.
CATALOGUE: dict[str, Known] = {
    ZIMAGE_TURBO: Known(
        Profile(guidance=False),
        revision="f332072aa78be7aecdf3ee76d5c247082da564a6",
        bytes=32_900_000_000,
    ),
}


def starter_folder() -> Path:
    """The model we ship. Raises SteadyError ``model_missing`` in a broken installation."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "starter_model", here.parent / "starter" / "model"):
        if (folder / "model_index.json").is_file():
            return folder
    raise SteadyError(
        "model_missing", "The starter model is not in this installation.", remedy="Install anew."
    )


def locate(model: str, root: Path | None = None) -> Path | None:
    """As :func:`place_of`, but None unless all of the model's files are there."""
    place = place_of(model, root)
    return place if place is not None and not missing_files(place) else None


def present(model: str, root: Path | None = None) -> Path:
    """As :func:`locate`, but raises SteadyError ``model_missing`` that says what to do."""
    place = place_of(model, root)
    if place is None:
        raise SteadyError(
            "model_missing", f"`{model}` is not on this machine.", remedy=missing_remedy(model)
        )
    missing = missing_files(place)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise SteadyError(
            "model_missing",
            f"`{model}` is not complete: {missing[0]}{more} is missing.",
            remedy=missing_remedy(model),
        )
    return place


def revision_of(folder: Path) -> str | None:
    """What names these very weights: a hub snapshot's commit, or the manifest's word."""
    if re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return folder.name
    revision = (manifest_of(folder) or {}).get("revision")
    return revision if isinstance(revision, str) else None


def missing_files(folder: Path) -> list[str]:
    """The files a diffusers folder speaks of and does not hold. Reads small JSON alone."""
    if folder.is_file():
        return []
    index = _json_or_none(folder / "model_index.json")
    if index is None:
        return ["model_index.json"]
    missing = []
    for part in parts_named(index):
        weights = [*filter(Path.is_file, (folder / part).glob("*.safetensors"))]  # no dead link
        shards = list((folder / part).glob("*.safetensors.index.json"))
        for shard in shards:
            names = (_json_or_none(shard) or {}).get("weight_map", {}).values()
            missing += [
                f"{part}/{n}" for n in sorted(set(names)) if not (folder / part / n).is_file()
            ]
        if not (folder / part).is_dir():
            missing.append(f"{part}/")
        elif (folder / part / "config.json").is_file() and not weights and not shards:
            missing.append(f"{part}/*.safetensors")
    return missing


def parts_named(index: Mapping[str, Any]) -> list[str]:
    """The parts that a model_index.json names, without those that the model does without."""
    return [
        part
        for part, what in index.items()
        if isinstance(what, list) and len(what) == 2 and all(what)
    ]


def missing_remedy(model: str) -> str:
    """What a person does when the model is not there."""
    if is_hub_name(model):
        known = CATALOGUE.get(split(model)[0])
        size = f" ({known.bytes / 1e9:.0f} GB)" if known else ""
        return f"Run `steady model pull {model}`{size}."
    return f"Bring `{model}` back."


def is_hub_name(model: str) -> bool:
    """Is it ``owner/name`` or ``owner/name@revision``?"""
    return _HUB_NAME.fullmatch(model) is not None


def split(model: str) -> tuple[str, str | None]:
    """Hub name and revision; for a model we know the revision we pin."""
    match = _HUB_NAME.fullmatch(model)
    if not match:
        return model, None
    pinned = CATALOGUE[match[1]].revision if match[1] in CATALOGUE else None
    return match[1], match[2] or pinned


def place_of(model: str, root: Path | None) -> Path | None:
    """Where the model lies, complete or not: its folder, or its file where it is one; else None.

    What is relative is below ``root``. Never downloads.
    """
    if model == STARTER:
        return starter_folder()
    place = Path(root or ".", Path(model).expanduser())
    if place.exists():
        return place.resolve()
    if not is_hub_name(model):
        return None
    name, revision = split(model)
    home = repository(name)
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            revision = (home / "refs" / (revision or "main")).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    snapshot = home / "snapshots" / revision
    return snapshot if re.fullmatch(r"[\w-]+", revision) and snapshot.is_dir() else None


def hub_cache() -> Path:
    """Where the hub's own tools keep what they download: shared with them."""
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser() / below
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "huggingface" / "hub"


def repository(name: str) -> Path:
    """The folder of a hub model in the hub's own cache."""
    return hub_cache() / ("models--" + name.replace("/", "--"))


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """What `steady model convert` noted of a folder's files; None when it noted nothing sound."""
    manifest = _json_or_none(folder / MANIFEST)
    files = (manifest or {}).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(facts, dict) and isinstance(facts.get("bytes"), int) for facts in files.values()
    ):
        return None
    return manifest


def _json_or_none(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


MAX_HEADER = 100_000_000  #: bytes of what a safetensors file says of itself, as its format has it


def outline(path: Path) -> dict[str, Any]:
    """What a safetensors file says of its weights, ``__metadata__`` among it; nothing is loaded.

    Raises ValueError unless the file ends where its own words say, OSError.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            fits = length < min(size, MAX_HEADER)  # other files begin with any number
            entries: dict[str, Any] = json.loads(file.read(length)) if fits else {}
        told = [entry for name, entry in entries.items() if name != "__metadata__"]
        end = max(entry["data_offsets"][1] for entry in told)
        whole = 8 + length + end == size and all(isinstance(e["shape"], list) for e in told)
    except (struct.error, ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{path.name} is no whole weight file")
    return entries
