"""LoRA files: found by name, checked by their header, told apart by their digests.

A LoRA is a ``.safetensors`` file below the folder ``loras`` of the root, called by its path
without suffix; the starter model's own come with it. Looks only, so a crash leaves nothing. Files
are hashed once per size, time and inode, in each process that asks.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from watcher.config import Config
from watcher.errors import SteadyError, did_you_mean
from watcher.limits import Card
from watcher.modelnames import LoraChoice
from watcher.models.catalogue import MAX_HEADER, OF_FILES, outline, place_of, starter_folder
from watcher.models.lora_format import Layers, is_lora, pieces_of

SUFFIX = ".safetensors"
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_LIST_SECONDS = 0.5
_LISTED = 2000  #: files that are looked at
_SEARCHED = 4 << 30  #: bytes that are hashed to find a file by its digest

#: What tells whether a file is still the same: path, size, time, inode.
_Stamp = tuple[Path, int, int, int]


def settled(config: Config, choices: Sequence[LoraChoice], card: Card) -> list[LoraChoice]:
    """The LoRAs of a job for the model of ``card``, each with the digest of its file.

    One that comes with a digest is that very file, whatever it is called today. Raises SteadyError
    ``lora_not_found``, ``lora_unsuitable`` or ``lora_changed``.
    """
    found: list[LoraChoice] = []
    for choice in choices:
        name, path, digest = _found(config, choice, card)
        _fits(_stamp(path), name, card.name, _model_folder(config, card))
        found.append({**choice, "name": name, "sha256": digest})
    return sorted(found, key=lambda choice: choice["name"])


def lora_files(
    config: Config, choices: Sequence[LoraChoice], card: Card
) -> list[dict[str, str | float]]:
    """What a worker needs of the LoRAs of a recorded job, but for those of weight 0.

    Raises SteadyError as :func:`settled`.
    """
    return [
        {"name": choice["name"], "weight": choice["weight"], "file": str(path), "sha256": digest}
        for choice in choices
        if choice["weight"]
        for _, path, digest in [_found(config, choice, card)]
    ]


def _found(config: Config, choice: LoraChoice, card: Card) -> tuple[str, Path, str]:
    """What the file of a choice is called, where it lies, and its digest."""
    name, wanted = choice["name"], choice.get("sha256")
    path = _named(config, name, card)
    if path is None and wanted is None:
        raise _unknown(config, name, card)
    try:
        if path is not None and wanted in (None, digest := digests_of(path)[0]):
            return name, path, digest
        searched = 0
        for called, other in loras_of(config, card).items():
            searched += other.stat().st_size
            if searched < _SEARCHED and digests_of(other)[0] == wanted:
                return called, other, wanted or ""
    except OSError as error:
        raise SteadyError("unreadable", f"The LoRA `{name}`: {error.strerror}.") from None
    what = "is another file now" if path else "is not there any more"
    raise SteadyError("lora_changed", f"The LoRA `{name}` {what}.")


def loras_of(config: Config, card: Card | None = None) -> dict[str, Path]:
    """The files that jobs may name, in order of name; without a card those of all models."""
    found: dict[str, Path] = {}
    for home in _homes(config, card):
        for path in itertools.islice(_below(home), _LISTED):
            found.setdefault(path.relative_to(home).as_posix().removesuffix(SUFFIX), path)
    return dict(sorted(found.items()))


def _homes(config: Config, card: Card | None) -> Iterator[Path]:
    """The folders a name is looked up in: the root's, then the starter model's own."""
    yield config.loras
    model = starter_folder()
    if card is None or card.folder == model:
        yield model.with_name("loras" if model.name == "model" else "starter_loras")


def _below(home: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(home, followlinks=True):
        folders[:] = sorted(each for each in folders if not each.startswith("."))[:100]
        if len(Path(folder).relative_to(home).parts) >= 4:
            folders.clear()
        paths = (Path(folder, n) for n in names if n.endswith(SUFFIX) and n[0] != ".")
        yield from filter(Path.is_file, paths)  # no link that leads nowhere


def _named(config: Config, name: str, card: Card) -> Path | None:
    """The file of a name, which can only lie below its folders."""
    for home in _homes(config, card) if _inside(name) else ():
        path = home / (name + SUFFIX)
        if path.is_file():
            return path
    return None


def _inside(name: str) -> bool:
    """Can a name only lie below a folder?"""
    odd = any(part in ("", ".", "..") for part in name.split("/"))
    return not odd and "\\" not in name and "\0" not in name


def _unknown(config: Config, name: str, card: Card) -> SteadyError:
    """Why there is no such LoRA, and what may have been meant."""
    stem, suffix = os.path.splitext(name)
    stem = stem if suffix in _PICKLES else name
    if _inside(stem) and any((config.loras / (stem + kind)).is_file() for kind in _PICKLES):
        return SteadyError(
            "lora_unsuitable",
            f"`{name[:100]}` is no .safetensors file; other kinds may hold programs and are not read.",
            remedy="Take the .safetensors file of this LoRA.",
        )
    names = list(loras_of(config, card))
    few = f"There are {', '.join(names[:10])}." if names else f"Put it into {config.loras.name}/."
    return SteadyError(
        "lora_not_found",
        f"There is no LoRA `{name[:100]}`.",
        remedy=did_you_mean(name, names, few, cutoff=0.5),
    )


# -- what is in a file


def _stamp(path: Path) -> _Stamp:
    told = path.stat()
    return path, told.st_size, told.st_mtime_ns, told.st_ino


def digests_of(path: Path) -> tuple[str, str]:
    """sha256 of a file, and of what follows its header (the first 12 digits are its AutoV3)."""
    return _digests(_stamp(path))


@functools.lru_cache(maxsize=4096)
def _digests(stamp: _Stamp) -> tuple[str, str]:
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with stamp[0].open("rb") as file:
        head = file.read(8)
        whole.update(head)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        header = file.read(min(length, MAX_HEADER))
        whole.update(header)
        while part := file.read(1 << 20):
            whole.update(part)
            tensors.update(part)
    return whole.hexdigest(), tensors.hexdigest()


@functools.lru_cache(maxsize=4096)
def _fits(stamp: _Stamp, name: str, model: str, folder: Path | None) -> bool:
    """True; SteadyError ``lora_unsuitable`` unless the file is a LoRA for this model.

    Of a model whose layers are not known here only the form is looked at.
    """
    try:
        header = outline(stamp[0])
    except (ValueError, OSError):
        words = f"`{name}` is no whole .safetensors file: it is cut off or something else."
        raise SteadyError("lora_unsuitable", words, remedy="Fetch the file again.") from None
    layers = _layers_below(folder) if folder else {}
    if layers:
        pieces_of(header, layers, name, model)
    elif not is_lora(header):
        raise SteadyError("lora_unsuitable", f"`{name}` holds no LoRA.")
    return True


def _model_folder(config: Config, card: Card) -> Path | None:
    """Where the model lies whose layers a LoRA changes, if it is one of this machine's folders."""
    local = card.engine in OF_FILES
    return card.folder or (place_of(card.source, config.root) if local else None)


def _layers_below(folder: Path) -> Layers:
    """The linear layers of what denoises, by its weight files; none where there are none."""
    files = [*folder.glob(f"transformer/*{SUFFIX}"), *folder.glob(f"unet/*{SUFFIX}")]
    return _layers_in(tuple(_stamp(path) for path in sorted(files)))


@functools.lru_cache(maxsize=16)
def _layers_in(files: tuple[_Stamp, ...]) -> Layers:
    found: dict[str, tuple[int, int]] = {}
    for path, *_ in files:
        try:
            tensors = outline(path)
        except (ValueError, OSError):
            return {}  # the model is damaged, which its worker will say
        for name, entry in tensors.items():
            shape = entry.get("shape", ())
            if name.endswith(".weight") and len(shape) == 2:
                found[name.removesuffix(".weight")] = (shape[0], shape[1])
    return found


# -- told


def listed_loras(config: Config, cards: Sequence[Card]) -> list[dict[str, Any]]:
    """Every LoRA as ``GET /loras`` tells it, with the models of ``cards`` it fits.

    Digests that take longer than half a second in all are left out this time, and known the next.
    """
    fitting = {card.name: fitting_loras(config, card) for card in cards}
    until = time.monotonic() + _LIST_SECONDS
    told = []
    for name, path in loras_of(config).items():
        try:
            stamp = _stamp(path)
            known = digests_of(path) if time.monotonic() < until else (None, None)
        except OSError:  # it has just gone, or is closed to us
            continue
        metadata = _metadata(path)
        told.append(
            {
                "name": name,
                "bytes": stamp[1],
                "sha256": known[0],
                "tensors_sha256": known[1],
                "family": metadata.get("modelspec.architecture")
                or metadata.get("ss_base_model_version"),
                "trigger_words": _trigger_words(metadata),
                "models": [model for model, names in fitting.items() if name in names],
                "file": str(path),
            }
        )
    return told


def fitting_loras(config: Config, card: Card, until: float = math.inf) -> list[str]:
    """The LoRAs that fit a model, as far as can be told: none of a model that is not here.

    What cannot be looked at before ``until``, a moment of ``time.monotonic``, is left out this time,
    and known the next.
    """
    folder = _model_folder(config, card)
    if not card.takes("lora") or (folder is None and card.engine in OF_FILES):
        return []
    found = []
    for name, path in loras_of(config, card).items():
        if time.monotonic() > until:
            break
        with contextlib.suppress(OSError):  # it has just gone, or is closed to us
            if _fitting(_stamp(path), name, card.name, folder):
                found.append(name)
    return found


@functools.lru_cache(maxsize=16 * _LISTED)  # of fewer than there are, none would be found again
def _fitting(stamp: _Stamp, name: str, model: str, folder: Path | None) -> bool:
    """Does a file fit a model? Kept, since most of a large collection may not."""
    try:
        return _fits(stamp, name, model, folder)
    except SteadyError:
        return False


def _metadata(path: Path) -> dict[str, str]:
    """The texts in a file's header."""
    try:
        said = outline(path).get("__metadata__")
    except (ValueError, OSError):
        return {}
    items = said.items() if isinstance(said, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, str)}


def _trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """The words its maker names, else the ten that stood most often in its training captions."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        return [word.strip()[:100] for word in phrase.split(",") if word.strip()][:10]
    counts: dict[str, int] = {}
    try:
        for tags in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            for tag, count in tags.items():
                counts[tag.strip()[:100]] = counts.get(tag.strip()[:100], 0) + int(count)
    except (ValueError, TypeError, AttributeError):
        return []
    return sorted(counts, key=lambda tag: (-counts[tag], tag))[:10]
