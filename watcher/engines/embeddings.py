"""Encoded prompts that are kept, set apart from what comes and goes with each picture."""

import mmap

import torch


def set_apart(entry: torch.Tensor) -> torch.Tensor:
    """A copy outside of the heap, of what is in main memory.

    Small blocks that stay, between large ones that come and go with each picture, would keep
    the heap growing by many times their own size.
    """
    if entry.device.type != "cpu":
        return entry
    pages = mmap.mmap(-1, entry.numel() * entry.element_size())
    return torch.frombuffer(pages, dtype=entry.dtype).view(entry.shape).copy_(entry)
