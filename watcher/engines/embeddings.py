"""Encoded prompts: encoding is the largest part of a picture that a repeat need not pay again.

Kept in memory, by bytes.
"""

import mmap
from collections import OrderedDict

import torch


class Embeddings:
    """Encoded prompts, the newest used kept, bounded by bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._entries: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(self, prompt: str) -> torch.Tensor | None:
        """The remembered embedding of ``prompt``, which is now the last one used."""
        entry = self._entries.get(prompt)
        if entry is not None:
            self._entries.move_to_end(prompt)
        return entry

    def put(self, prompt: str, entry: torch.Tensor) -> None:
        """Remember; the longest unused go until the limit in bytes holds again. Too large: not kept."""
        size = entry.numel() * entry.element_size()
        if size > self._limit:
            return
        self._entries[prompt] = _set_apart(entry)
        self._held += size
        while self._held > self._limit:
            _, oldest = self._entries.popitem(last=False)
            self._held -= oldest.numel() * oldest.element_size()

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._held = 0


def _set_apart(entry: torch.Tensor) -> torch.Tensor:
    """A copy outside of the heap, of what is in main memory.

    Small blocks that stay, between large ones that come and go with each picture, would keep
    the heap growing by many times their own size.
    """
    if entry.device.type != "cpu":
        return entry
    pages = mmap.mmap(-1, entry.numel() * entry.element_size())
    return torch.frombuffer(pages, dtype=entry.dtype).view(entry.shape).copy_(entry)
