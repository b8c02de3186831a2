"""float32 weights to bfloat16, tensor by tensor, without torch and without much memory.

A bfloat16 is the upper half of a float32, rounded to nearest, ties to even: exactly what
torch makes of it at load time, so a converted model draws the same pictures.
A crash leaves a part of the new file, which ``weights.convert`` throws away.
"""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

from watcher import publish
from watcher.models.catalogue import outline

_STEP = 1 << 24  #: bytes read at once


def converted_size(source: Path) -> int:
    """Bytes that ``source`` will have once converted."""
    if source.suffix != ".safetensors":
        return source.stat().st_size
    new = _header_in_bfloat16(outline(source))
    return 8 + len(_packed(new)) + _length(new)


def to_bfloat16(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target``, halving float32 tensors if it is a safetensors file.

    ``target`` must not exist and is synced. Raises OSError, ValueError for a broken header.
    """
    if source.suffix != ".safetensors":
        shutil.copyfile(source, target)
        fd = os.open(target, os.O_RDWR)
        publish.sync_fd(fd)
        os.close(fd)
        return
    header = outline(source)
    start = source.stat().st_size - _length(header)
    new = _header_in_bfloat16(header)
    packed = _packed(new)
    with source.open("rb") as old, target.open("xb") as out:
        out.write(struct.pack("<Q", len(packed)) + packed)
        for name in _by_offset(header):
            begin, end = header[name]["data_offsets"]
            old.seek(start + begin)
            for at in range(begin, end, _STEP):
                chunk = old.read(min(_STEP, end - at))
                out.write(_halved(chunk) if header[name]["dtype"] == "F32" else chunk)
        out.flush()
        publish.sync_fd(out.fileno())


def _halved(chunk: bytes) -> bytes:
    """float32 bytes as bfloat16 bytes: nearest, ties to even; not-a-number stays one."""
    bits = np.frombuffer(chunk, dtype="<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 0x40
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, quiet, rounded).astype("<u2").tobytes()


def _header_in_bfloat16(header: dict[str, Any]) -> dict[str, Any]:
    """The header of the new file: float32 entries half as long, everything moved up."""
    new = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    at = 0
    for name in _by_offset(header):
        entry = header[name]
        begin, end = entry["data_offsets"]
        half = entry["dtype"] == "F32"
        length = (end - begin) // 2 if half else end - begin
        dtype = "BF16" if half else entry["dtype"]
        new[name] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [at, at + length]}
        at += length
    return new


def _by_offset(header: dict[str, Any]) -> list[str]:
    names = [name for name in header if name != "__metadata__"]
    return sorted(names, key=lambda name: tuple(header[name]["data_offsets"]))


def _length(header: dict[str, Any]) -> int:
    ends = [e["data_offsets"][1] for name, e in header.items() if name != "__metadata__"]
    return max(ends, default=0)


def _packed(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
