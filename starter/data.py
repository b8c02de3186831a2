"""Training data on disk: encoded pictures in shards, made in seed order and never twice.

A shard holds latents of one size with the scenes they show. Captions are not stored: a scene is
worded anew every time it is trained on. Shards only ever get added, so a trainer that looks again
finds more.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starter import net, world

#: Sizes of training pictures (width, height in pixels), and how many of each are wanted.
SIZES: dict[tuple[int, int], int] = {
    (128, 128): 24 * 1024,
    (192, 128): 4 * 1024,
    (128, 192): 4 * 1024,
    (256, 256): 4 * 1024,
    (64, 64): 12 * 1024,
    (384, 256): 2 * 1024,
    (256, 384): 2 * 1024,
    (512, 256): 1024,
    (256, 512): 1024,
    (512, 512): 2 * 1024,
}
SHARD = 256  #: Pictures in one shard.


@dataclass
class Shard:
    """Pictures of one size, encoded.

    `latents` are normalised float16 [n, 16, height / 8, width / 8]; `kinds` and `colours` are the
    maps of `world.Sample`, uint8 [n, height / 16, width / 16].
    """

    latents: Tensor
    kinds: Tensor
    colours: Tensor
    scenes: list[world.Scene]


def load_autoencoder(folder: Path) -> Any:
    """The autoencoder of a model folder, in float32 and the memory layout convolutions like."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    return vae.eval().to(memory_format=torch.channels_last)


def to_pixels(images: list[np.ndarray[Any, Any]]) -> Tensor:
    """uint8 pictures [height, width, 3] to one tensor [n, 3, height, width] of -1 to 1."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Pictures to normalised latents, float32 [n, 16, height / 8, width / 8]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=net.HALF):
        mean = vae.encode(pixels).latent_dist.mean.float()
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def make_shard(vae: Any, width: int, height: int, number: int) -> Shard:
    """Draw and encode the shard of that number; the same arguments give the same shard."""
    first = ((width // 16) * 1000 + height // 16) * 1_000_000 + number * SHARD
    latents, kinds, colours, scenes = [], [], [], []
    step = max(4, 32 * 128 * 128 // (width * height))
    for start in range(first, first + SHARD, step):
        samples = [
            world.make(seed, width, height)
            for seed in range(start, min(start + step, first + SHARD))
        ]
        latents.append(encode(vae, to_pixels([s.image for s in samples])).half())
        kinds += [torch.from_numpy(s.kinds) for s in samples]
        colours += [torch.from_numpy(s.colours) for s in samples]
        scenes += [s.scene for s in samples]
    return Shard(torch.cat(latents), torch.stack(kinds), torch.stack(colours), scenes)


def path_of(folder: Path, width: int, height: int, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"{width}x{height}_{number:03d}.pt"


def produce(vae_folder: Path, folder: Path) -> None:
    """Make all shards that are not there yet, a few of every size first."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    vae = load_autoencoder(vae_folder)
    wanted = []
    for (width, height), total in SIZES.items():
        count = total // SHARD
        wanted += [((n + 1) / count, width, height, n) for n in range(count)]
    wanted.sort()
    for _, width, height, number in wanted:
        path = path_of(folder, width, height, number)
        if path.exists():
            continue
        start = time.monotonic()
        part = path.with_suffix(f".{os.getpid()}.part")
        torch.save(vars(make_shard(vae, width, height, number)), part)
        part.replace(path)
        print(f"{path.name} {time.monotonic() - start:.0f} s", flush=True)


def load(folder: Path, known: dict[tuple[int, int], dict[int, Shard]]) -> int:
    """Read shards that are new since the last look into `known`; returns how many were."""
    found = 0
    for path in sorted(folder.glob("*.pt")):
        size, _, number = path.stem.partition("_")
        width, _, height = size.partition("x")
        shards = known.setdefault((int(width), int(height)), {})
        if int(number) not in shards:
            shards[int(number)] = Shard(**torch.load(path, weights_only=False))
            found += 1
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vae", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    produce(arguments.vae, arguments.folder)
