"""LoRAs on a model: read from their files, hung on for one picture, taken off again.

Each layer that a LoRA changes gets a hook that adds ``weight * up(down(x))`` to what the layer
gives. The model's own weights are never touched and no layer is put in another's place, so without
hooks the model is the same to the last bit, and where its weights lie (on the device, streamed in,
quantised) makes no difference. Files are kept in main memory, the four used last; only what a picture
wears is on the device, and only while it is drawn.
"""

import contextlib
import functools
import hashlib
import json
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from watcher.engine import Lora
from watcher.engines.shortage import sparing_memory
from watcher.errors import SteadyError
from watcher.modelnames import MAX_LORAS
from watcher.models.lora_format import pieces_of

#: (down, up) of a layer: rank x inputs and outputs x rank.
Change = tuple[torch.Tensor, torch.Tensor]


class Loras:
    """The LoRAs of one model. ``device`` is where the model computes, ``dtype`` what in."""

    def __init__(
        self, model: nn.Module, name: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        self._layers = {n: (m.out_features, m.in_features) for n, m in self._linear.items()}
        self._name, self._device, self._dtype = name, device, dtype
        self._kept: OrderedDict[tuple[Any, ...], tuple[dict[str, Change], dict[str, str]]] = (
            OrderedDict()
        )

    @contextlib.contextmanager
    def worn(self, loras: Sequence[Lora]) -> Iterator[list[dict[str, Any]]]:
        """Inside, the model is changed by ``loras``; gives what a recipe says of them.

        Those of weight 0 are left out. Raises SteadyError ``lora_unsuitable``, ``lora_changed``,
        OutOfMemory.
        """
        wanted = [(lora, *self._read(lora)) for lora in loras if lora.weight]
        with contextlib.ExitStack() as hooks:
            for lora, changes, _ in wanted:
                for layer, change in changes.items():
                    down, up = sparing_memory(functools.partial(self._over, change))
                    hook = functools.partial(_add, down=down, up=up, weight=lora.weight)
                    handle = self._linear[layer].register_forward_hook(hook)
                    hooks.callback(handle.remove)
            yield [{"name": o.name, "weight": o.weight, **digests} for o, _, digests in wanted]

    def _read(self, lora: Lora) -> tuple[dict[str, Change], dict[str, str]]:
        try:
            told = lora.file.stat()
            key = (lora.file, told.st_size, told.st_mtime_ns, told.st_ino)
            if key not in self._kept:
                self._kept[key] = self._load(lora)
        except (OSError, ValueError, safetensors.SafetensorError):
            words = f"`{lora.name}` cannot be read as a .safetensors file."
            raise SteadyError("lora_unsuitable", words) from None
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_LORAS:
            self._kept.popitem(last=False)
        changes, digests = self._kept[key]
        if lora.sha256 not in (None, digests["sha256"]):
            raise SteadyError("lora_changed", f"The LoRA `{lora.name}` is another file now.")
        return changes, digests

    def _load(self, lora: Lora) -> tuple[dict[str, Change], dict[str, str]]:
        data = lora.file.read_bytes()
        tensors = safetensors.torch.load(data)
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        pieces = pieces_of(header, self._layers, lora.name, self._name)
        changes = {}
        for piece in pieces:
            down, up = (tensors[name].to(torch.float32) for name in (piece.down, piece.up))
            part, parts = piece.part
            up = up.chunk(parts)[part]
            alpha = None if piece.alpha is None else float(tensors[piece.alpha])
            up = up * (piece.scale if alpha is None else alpha / down.shape[0])
            if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
                words = f"`{lora.name}` holds numbers that are not finite, at {piece.layer}."
                raise SteadyError("lora_unsuitable", words, remedy="Fetch or train it again.")
            # Copied: what a file holds beside it is not kept.
            changes[piece.layer] = (down.to(self._dtype, copy=True), up.to(self._dtype, copy=True))
        digests = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "tensors_sha256": hashlib.sha256(memoryview(data)[8 + length :]).hexdigest(),
        }
        return changes, digests

    def _over(self, change: Change) -> Change:
        down, up = change
        return down.to(self._device), up.to(self._device)


def _add(
    _layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor,
    *, down: torch.Tensor, up: torch.Tensor, weight: float,
) -> torch.Tensor:  # fmt: skip
    """What the layer made of ``given``, and the LoRA's share."""
    x = given[0].to(down.dtype)
    return made + (F.linear(F.linear(x, down) * weight, up)).to(made.dtype)
