"""A small network that says what a picture shows, trained on true drawings only.

It never sees a generated picture, so it cannot learn to excuse one. Its own score on true drawings
of held-out scenes stands beside every score it gives.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from starter import net, scenery, world
from starter.sprites import KINDS

SIDE = 128  #: The shorter side of a picture is brought to this, in pixels.
LANDS: tuple[str, ...] = ("", *scenery.TERRAINS)
OUTPUTS: dict[str, int] = {
    "land": len(LANDS),
    "time": len(scenery.TIMES),
    "feature": len(world.FEATURES),
    "snowy": 2,
    "count": 4,
}
FILE = Path(__file__).parent / "judge.safetensors"


class Judge(nn.Module):
    """Looks at patches of 16 pixels, with what lies around them, and at the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 144)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            layers += [
                nn.Conv2d(after, after, 3, 1, 1, groups=after // 16, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        for reach in (1, 2, 2):
            layers += [
                nn.Conv2d(after, after, 3, 1, reach, dilation=reach, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.patches = nn.Conv2d(after, 1 + len(KINDS), 1)
        self.whole = nn.Linear(2 * after, sum(OUTPUTS.values()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits for pictures [batch, 3, height, width] of -1 to 1.

        "patches" is [batch, 1 + kinds, height / 16, width / 16] with no object first; all other
        answers are [batch, choices].
        """
        deep = self.body(x)
        pooled = torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], dim=1)
        parts = self.whole(pooled).split(list(OUTPUTS.values()), dim=1)
        return {"patches": self.patches(deep), **dict(zip(OUTPUTS, parts, strict=True))}


def prepare(image: npt.NDArray[np.uint8]) -> Tensor:
    """A picture of any size, uint8 [height, width, 3], as the judge takes it."""
    height, width = image.shape[:2]
    scale = SIDE / min(height, width)
    if scale != 1:
        size = (round(width * scale / 16) * 16, round(height * scale / 16) * 16)
        image = np.asarray(
            Image.fromarray(image).resize(
                size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
            )
        )
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1


def truth(scenes: list[world.Scene]) -> dict[str, Tensor]:
    """What the judge should answer."""
    return {
        "land": torch.tensor([LANDS.index(s.land) for s in scenes]),
        "time": torch.tensor([scenery.TIMES.index(s.time) for s in scenes]),
        "feature": torch.tensor([world.FEATURES.index(s.feature) for s in scenes]),
        "snowy": torch.tensor([int(s.snowy) for s in scenes]),
        "count": torch.tensor([min(3, sum(t.count for t in s.things)) for s in scenes]),
    }


def _blemish(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Small faults a good picture may have: noise, blur, a shift, another brightness."""
    batch = pixels.shape[0]
    noise = torch.rand(batch, 1, 1, 1, generator=generator) * 0.12
    pixels = pixels + noise * torch.randn(pixels.shape, generator=generator)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(batch, 1, 1, 1, generator=generator)
    pixels = torch.lerp(pixels, blurred, share) * (
        0.9 + 0.15 * torch.rand(batch, 1, 1, 1, generator=generator)
    )
    shift = torch.randint(-6, 7, (2,), generator=generator).tolist()
    padded = F.pad(pixels, (6, 6, 6, 6), mode="replicate")
    return padded[:, :, 6 + shift[0] : 6 + shift[0] + SIDE, 6 + shift[1] : 6 + shift[1] + SIDE]


def train(file: Path = FILE, steps: int = 1300, batch: int = 40, pool: int = 13000) -> None:
    """Train on drawings of the training split and write the weights, float16."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(5)
    rng = Random(5)
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    samples: list[world.Sample] = []
    mean = 0.0
    for step in range(steps):
        while len(samples) < min(pool, (step + 1) * batch):
            samples.append(world.make(900_000_000 + len(samples)))
        picks = samples[-batch:] if step * batch < pool else rng.choices(samples, k=batch)
        answers = truth([s.scene for s in picks])
        kinds = torch.from_numpy(np.stack([s.kinds for s in picks])).long()
        pixels = _blemish(torch.stack([prepare(s.image) for s in picks]), generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=net.HALF):
            logits = judge(pixels.contiguous(memory_format=torch.channels_last))
        weight = torch.where(kinds > 0, 1.0, 0.25)
        dense = F.cross_entropy(logits["patches"].float(), kinds, reduction="none")
        loss = 2 * (dense * weight).sum() / weight.sum()
        for name in OUTPUTS:
            loss = loss + 0.3 * F.cross_entropy(logits[name].float(), answers[name])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        mean += loss.item() / 50
        if (step + 1) % 50 == 0:
            print(f"judge step {step + 1} loss {mean:.3f}", flush=True)
            mean = 0.0
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            k: v.half().contiguous() if v.is_floating_point() else v
            for k, v in judge.state_dict().items()
        },
        file,
    )


def load(file: Path = FILE) -> Judge:
    """The trained judge."""
    judge = Judge()
    state: dict[str, Any] = load_file(file)
    judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    judge.eval()
    return judge


@torch.no_grad()
def ask(judge: Judge, images: list[npt.NDArray[np.uint8]]) -> dict[str, Tensor]:
    """The judge's answers for pictures of one size, by question.

    "kinds" is [n, kinds]: how many patches of 16 pixels (of a 128-pixel picture) each covers; all
    other answers are logits [n, choices].
    """
    parts = []
    for k in range(0, len(images), 32):
        logits = judge(torch.stack([prepare(image) for image in images[k : k + 32]]))
        logits["kinds"] = logits.pop("patches").softmax(1)[:, 1:].sum((2, 3))
        parts.append(logits)
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=FILE)
    train(parser.parse_args().file)
