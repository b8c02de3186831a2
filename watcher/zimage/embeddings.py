"""Encoded prompts: encoding is the largest part of a picture that a repeat need not pay again."""

from collections import OrderedDict

import torch


class Embeddings:
    """Encoded prompts, the newest used kept, bounded by bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._entries: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(self, prompt: str) -> torch.Tensor | None:
        entry = self._entries.get(prompt)
        if entry is not None:
            self._entries.move_to_end(prompt)
        return entry

    def put(self, prompt: str, entry: torch.Tensor) -> None:
        size = entry.numel() * entry.element_size()
        if size > self._limit:
            return
        self._entries[prompt] = entry
        self._held += size
        while self._held > self._limit:
            _, oldest = self._entries.popitem(last=False)
            self._held -= oldest.numel() * oldest.element_size()

    def clear(self) -> None:
        self._entries.clear()
        self._held = 0
