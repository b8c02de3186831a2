"""The tensors of a LoRA file -> the layers of a model, whatever program wrote the file.

Every trainer names one and the same thing in its own way: with or without a prefix, with dots or
underscores, ``lora_A`` or ``lora_down``, query, key and value apart or as one. Here a file is read
by its header alone, and every tensor of it must find its layer: what would be left out would be
missing from the picture without a word. Pure: neither files nor torch.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from watcher.errors import SteadyError

#: (outputs, inputs) of every linear layer of a model, by its name there.
Layers = Mapping[str, tuple[int, int]]

_PREFIX = re.compile(
    r"(?:(?:base_model|model|diffusion_model|transformer|unet)\.|lora_unet_|lora_transformer_|lycoris_)*"
)
_HALF = re.compile(r"(.+?)[._]lora[._](A|B|down|up)(?:\.[\w-]+)??(?:\.weight)?", re.ASCII)
_DOWN = ("A", "down")
_OTHER_KINDS = "It was made for another model, or is no plain LoRA (LoHa, LoKr, DoRA)."


@dataclass(frozen=True)
class Piece:
    """What one layer gets: ``scale * up @ down``, by the names of the file's tensors.

    ``part``: which of how many equal parts of the rows of ``up``. ``alpha`` names the tensor that
    holds it; the scale is alpha / rank, else ``scale``.
    """

    layer: str
    down: str
    up: str
    alpha: str | None
    part: tuple[int, int] = (0, 1)
    scale: float = 1.0


def is_lora(header: Mapping[str, Any]) -> bool:
    """Has the file any tensor of a LoRA?"""
    return any(_HALF.fullmatch(key) for key in header)


def pieces_of(header: Mapping[str, Any], layers: Layers, name: str, model: str) -> list[Piece]:
    """What each layer of ``model`` gets of the file called ``name``, in order of layer.

    ``header`` is the file's own (:func:`watcher.models.catalogue.outline`). Raises SteadyError
    ``lora_unsuitable`` unless every tensor has its place and its shape.
    """
    places = _places(layers)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    homeless: list[str] = []
    tensors = [key for key in header if key != "__metadata__"]
    for key in tensors:
        stem, what = _split(key)
        home = places.get(_PREFIX.sub("", stem, count=1).replace(".", "_")) if what else None
        if home is None:
            homeless.append(key)
        elif what in found.setdefault(home, {}):
            raise _unsuitable(f"`{name}` says {key[:100]} twice.")
        else:
            found[home][what] = key
    if homeless:
        first = ", ".join(key[:100] for key in sorted(homeless)[:3])
        raise _unsuitable(
            f"{len(homeless)} of the {len(tensors)} tensors of `{name}` have no place in {model}:"
            f" {first}{', …' if len(homeless) > 3 else ''}."
        )
    if not found:
        raise _unsuitable(f"`{name}` holds no LoRA.")
    scale_of = _scale(header, name)
    pieces: list[Piece] = []
    for home, keys in found.items():
        if not {"down", "up"} <= keys.keys():
            raise _unsuitable(f"`{name}` has only one half of {next(iter(keys.values()))[:100]}.")
        rank = _landing(header, keys, home, layers, name)
        pieces += [
            Piece(
                layer, keys["down"], keys["up"], keys.get("alpha"), (n, len(home)), scale_of(rank)
            )
            for n, layer in enumerate(home)
        ]
    return sorted(pieces, key=lambda piece: piece.layer)


def _unsuitable(words: str) -> SteadyError:
    return SteadyError("lora_unsuitable", words, remedy=f"{_OTHER_KINDS} Take one for this model.")


def _split(key: str) -> tuple[str, str]:
    """A tensor's name as its layer and what it is of it: down, up, alpha, or nothing we know."""
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    if match := _HALF.fullmatch(key):
        return match[1], "down" if match[2] in _DOWN else "up"
    return key, ""


def _places(layers: Layers) -> dict[str, tuple[str, ...]]:
    """Each layer under every name it goes by, dots as underscores."""
    places: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        places[layer.replace(".", "_")] = (layer,)
        short = re.sub(r"^all_(x_embedder|final_layer)\.\d-\d", r"\1", layer)
        places[short.replace(".", "_")] = (layer,)
        block, _, last = layer.rpartition(".")
        parts = tuple(f"{block}.to_{part}" for part in "qkv")
        if last == "to_q" and all(part in layers for part in parts):
            places[f"{block}.qkv".replace(".", "_")] = parts
        if layer.endswith(".to_out.0"):
            block = layer.removesuffix(".to_out.0").replace(".", "_")
            places[f"{block}_out"] = places[f"{block}_to_out"] = (layer,)
    return places


def _landing(
    header: Mapping[str, Any], keys: Mapping[str, str], home: tuple[str, ...], layers: Layers,
    name: str,
) -> int:  # fmt: skip
    """The rank of a pair of tensors that fits its layers."""
    down, up = (tuple(header[keys[half]]["shape"]) for half in ("down", "up"))
    outputs, inputs = sum(layers[layer][0] for layer in home), layers[home[0]][1]
    rank = down[0] if down else 0
    if not rank or (down, up) != ((rank, inputs), (outputs, rank)):
        raise _unsuitable(
            f"`{name}` does not fit: {home[0]} takes {inputs} numbers and gives {outputs}, and in"
            f" the file it is {'x'.join(map(str, down))} and {'x'.join(map(str, up))}."
        )
    return int(rank)


def _scale(header: Mapping[str, Any], name: str) -> Any:
    """rank -> the scale of layers without an alpha of their own, as diffusers writes it down."""
    metadata = header.get("__metadata__")
    try:
        said = json.loads((metadata or {}).get("lora_adapter_metadata") or "{}")
        said = {str(key).rpartition(".")[2]: value for key, value in said.items()}
        alpha, root = said.get("lora_alpha"), bool(said.get("use_rslora"))
        if said.get("alpha_pattern") or (alpha is not None and not math.isfinite(alpha)):
            raise ValueError("alphas by pattern")
    except (ValueError, TypeError, AttributeError):
        raise _unsuitable(f"What `{name}` says of its alphas cannot be read.") from None
    return lambda rank: 1.0 if alpha is None else alpha / (math.sqrt(rank) if root else rank)
