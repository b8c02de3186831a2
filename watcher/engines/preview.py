"""How a picture looks before it is done: latents to colours by one linear map, no decoder.

The map is fitted to the model's own finished pictures and kept per model and revision in a small
file; a file that is missing or damaged is fitted anew. Reads latents, changes none, draws no
random number: a picture is the same with a preview or without.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import torch
from PIL import Image

from watcher.publish import replace

ENOUGH, MOST = 3, 8  #: finished pictures before anything is shown; that are learned from
_RIDGE = 0.1


class PreviewMap:
    """Latents (1 x channels x h x w) to RGB of w x h pixels, one for each latent.

    ``keep``: an existing folder for what was learned. Another process may write there too: the
    last one stays.
    """

    def __init__(self, channels: int, keep: Path | None, model: str) -> None:
        size = channels + 1
        self._seen = 0
        self._inputs = torch.zeros(size, size, dtype=torch.float64)
        self._pairs = torch.zeros(size, 3, dtype=torch.float64)
        self._map: torch.Tensor | None = None
        name = hashlib.sha256(model.encode()).hexdigest()[:16]
        self._file = keep / f"map-{name}.json" if keep is not None and keep.is_dir() else None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            self._take(json.loads(self._file.read_bytes()) if self._file else {})

    def _take(self, kept: dict[str, object]) -> None:
        inputs = torch.tensor(kept["inputs"], dtype=torch.float64)
        pairs = torch.tensor(kept["pairs"], dtype=torch.float64)
        seen = kept["seen"]
        fits = inputs.shape == self._inputs.shape and pairs.shape == self._pairs.shape
        if fits and isinstance(seen, int) and bool(torch.isfinite(inputs).all()):
            self._seen, self._inputs, self._pairs = seen, inputs, pairs
            self._fit()

    def learn(self, latents: torch.Tensor, image: Image.Image) -> None:
        """``image`` is what became of ``latents``."""
        if self._seen >= MOST:
            return
        known = self._rows(latents)
        height, width = latents.shape[-2:]
        small = image.resize((width, height), Image.Resampling.BOX)
        seen = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        colours = seen.view(-1, 3).double() / 255
        self._inputs += known.T @ known
        self._pairs += known.T @ colours
        self._seen += 1
        self._fit()
        if self._file is not None:
            told = {
                "seen": self._seen, "inputs": self._inputs.tolist(), "pairs": self._pairs.tolist(),
            }  # fmt: skip
            with contextlib.suppress(OSError):  # a full disk costs the next start three pictures
                beside = self._file.with_suffix(f".{os.getpid()}.tmp")
                replace(self._file, json.dumps(told).encode(), temporary=beside, sync=False)

    def _fit(self) -> None:
        if self._seen >= ENOUGH:
            ridge = _RIDGE * torch.eye(len(self._inputs), dtype=torch.float64)
            self._map = torch.linalg.solve(self._inputs + ridge, self._pairs)

    @staticmethod
    def _rows(latents: torch.Tensor) -> torch.Tensor:
        """One row a latent: its channels and a 1."""
        flat = latents[0].detach().cpu().double().flatten(1).T
        return torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], dim=1)

    def draw(self, latents: torch.Tensor) -> Image.Image | None:
        """How ``latents`` look; None while too few pictures were seen."""
        if self._map is None:
            return None
        height, width = latents.shape[-2:]
        colours = (self._rows(latents) @ self._map * 255).round().clamp(0, 255).to(torch.uint8)
        return Image.frombytes("RGB", (width, height), colours.numpy().tobytes())
