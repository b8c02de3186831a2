"""Training of the transformer, together with the text encoder that feeds it.

Flow matching on encoded pictures of several sizes: the noisy picture is (1 - s) z + s e, the model
learns z - e. While it trains, small heads on the picture's tokens name the object that covers them
and its colour; without them shapes hardly appear in a small budget. The heads are thrown away.

Several workers may train at once. Each puts its weights in a file now and then and moves halfway
to what the others last put there; none waits for another, so any of them may stop or start.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starter import data, net, words, world
from starter.optim import Optimizer
from starter.sprites import KINDS

#: Share of training steps by size (width, height), and the batch of each.
MIX: dict[tuple[int, int], tuple[float, int]] = {
    (128, 128): (0.07, 24),
    (192, 128): (0.04, 20),
    (128, 192): (0.06, 20),
    (256, 256): (0.18, 10),
    (64, 64): (0.27, 112),
    (384, 256): (0.03, 7),
    (256, 384): (0.03, 7),
    (512, 256): (0.04, 5),
    (256, 512): (0.04, 5),
    (512, 512): (0.24, 3),
}
LATENT_PIXELS = 8 * 8  #: Pixels of a picture under one of its latents.
LARGE = 256 * 256  #: Pixels above which a picture is large: its layout is learned at half the size.
DROP = 0.08  #: Share of captions left out, so that guidance can be used.
BRIEF = 0.2  #: Share of captions of objects that leave out a colour or a place.
LONG = 0.1  #: Share of 128x128 batches whose captions are drawn out with filler words to 64 tokens.
OBJECTS = 4.0  #: How much more than the rest of a picture the patches near an object count.
AUXILIARY = 0.1  #: Weight of the heads' loss beside that of the pictures.
#: Kinds that are drawn wrong longest; the others come less often.
HARD = {
    "balloon",
    "bird",
    "cactus",
    "cross",
    "cup",
    "flower",
    "house",
    "lighthouse",
    "palm",
    "rabbit",
    "robot",
    "star",
    "umbrella",
}
HEADS_ALONE = 60  #: Steps in which new heads learn without moving what they look at.
GOSSIP_STEPS = 25  #: Steps between two looks at the other workers' weights.
SAVE_SECONDS = 240.0  #: Time between two checkpoints.


class Heads(nn.Module):
    """Names, for every patch, the object that covers it and its colour; for training only."""

    def __init__(self, dim: int, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.taps = taps
        outputs = 1 + len(KINDS) + 1 + len(world.COLOUR_NAMES)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, outputs)) for _ in taps
        )

    def loss(self, tapped: dict[int, Tensor], kinds: Tensor, colours: Tensor) -> Tensor:
        """Mean cross entropy; `kinds` and `colours` are numbers [batch, rows, columns]."""
        total = torch.zeros(())
        for tap, head in zip(self.taps, self.heads, strict=True):
            logits = head(tapped[tap]).float().flatten(0, 1)
            kind, colour = logits.split([1 + len(KINDS), 1 + len(world.COLOUR_NAMES)], dim=-1)
            # Most patches show no object: they count less, or "none" is all that is learned.
            weight = torch.where(kinds.flatten() > 0, 1.0, 0.15)
            for part, truth in ((kind, kinds), (colour, colours)):
                loss = F.cross_entropy(part, truth.flatten().long(), reduction="none")
                total = total + (loss * weight).sum() / weight.sum()
        return total / len(self.taps)


class Networks(nn.Module):
    """Everything that learns together."""

    def __init__(self, transformer: Any, encoder: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.encoder = encoder
        layers = len(transformer.layers)
        self.heads = Heads(transformer.dim, (layers // 3, 2 * layers // 3))

    def optimizer(self) -> Optimizer:
        """Muon for the weights inside blocks, Adam for the rest."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            inner = parameter.ndim == 2 and "embed" not in name and "heads" not in name
            inner = (
                inner
                and "adaLN" not in name
                and "final_layer" not in name
                and "pad_token" not in name
            )
            (matrices if inner else others).append(parameter)
        return Optimizer(matrices, others)


def share(scene: world.Scene) -> float:
    """How often a scene is trained on when it is drawn: what is harder to learn comes more often."""
    if not scene.things:
        return 0.2
    hard = any(thing.kind in HARD for thing in scene.things)
    if scene.land:
        return 1.0 if hard else 0.8
    several = len(scene.things) > 1 or scene.things[0].count > 1
    return 0.25 + 0.25 * hard + 0.2 * several


class Batches:
    """Draws training batches from the shards, with captions worded afresh."""

    def __init__(self, folder: Path, tokenizer: Any, seed: int, long: float = LONG) -> None:
        self.folder, self.tokenizer, self.long = folder, tokenizer, long
        self.rng = Random(f"batches {seed} {time.time()}")
        self.shards: dict[tuple[int, int], dict[int, data.Shard]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that were added."""
        data.load(self.folder, self.shards)

    def _caption(self, scene: world.Scene, long: bool) -> str:
        if self.rng.random() < DROP:
            return ""
        text = world.caption(scene, self.rng, brief=self.rng.random() < BRIEF)
        if long:
            text += "".join(
                f", {self.rng.choice(words.FILLERS)}" for _ in range(self.rng.randint(3, 8))
            )
        return text

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """A batch: latents, kinds, colours, token numbers, lengths."""
        sizes = [size for size in MIX if self.shards.get(size)]
        size = self.rng.choices(sizes, [MIX[s][0] for s in sizes])[0]
        pool = list(self.shards[size].values())
        picks: list[tuple[data.Shard, int]] = []
        while len(picks) < MIX[size][1]:
            shard, k = self.rng.choice(pool), self.rng.randrange(data.SHARD)
            if self.rng.random() < share(shard.scenes[k]):
                picks.append((shard, k))
        latents = torch.stack([shard.latents[k] for shard, k in picks]).float()
        kinds = torch.stack([shard.kinds[k] for shard, k in picks])
        colours = torch.stack([shard.colours[k] for shard, k in picks])
        # One size only: each shape of a batch is compiled once, which takes a minute.
        long = size == (128, 128) and self.rng.random() < self.long
        captions = [self._caption(shard.scenes[k], long) for shard, k in picks]
        numbers, lengths = words.encode(self.tokenizer, captions, 64 if long else 32)
        return latents, kinds, colours, numbers, lengths


def sigmas(number: int, pixels: int) -> Tensor:
    """Noise levels [number] as the scheduler spreads them: uniform, shifted by 3.

    The same noise hides less of a larger picture, whose layout is settled at higher levels: there
    the shift grows with the side.
    """
    uniform = (torch.arange(number) + torch.rand(number)) / number
    shift = 3 * max(1.0, math.sqrt(pixels / LARGE))
    return shift * uniform / (1 + (shift - 1) * uniform)


def emphasis(kinds: Tensor) -> Tensor:
    """What each latent pixel counts in the loss, mean 1: [batch, 1, 2 * rows, 2 * columns].

    Args:
        kinds: numbers [batch, rows, columns], 0 where a patch shows no object.
    """
    # An outline is made by the patches outside it as much as by those inside.
    near = F.max_pool2d((kinds > 0).float()[:, None], 3, 1, 1)
    weight = 1 + (OBJECTS - 1) * near
    return F.interpolate(weight / weight.mean(), scale_factor=2)


class Teacher:
    """A frozen copy that says where guidance would push, so that one forward learns to go there."""

    def __init__(self, networks: Networks, tokenizer: Any, weight: float) -> None:
        self.transformer = networks.transformer
        self.encoder = networks.encoder
        self.empty = words.encode(tokenizer, [""], 64)
        self.weight = weight
        networks.requires_grad_(False)

    def _answers(
        self, noisy: Tensor, level: Tensor, numbers: Tensor, lengths: Tensor, block: net.Block
    ) -> tuple[Tensor, Tensor]:
        """The velocity with the captions, and what guidance adds to it; shapes of `noisy`."""
        batch, width = numbers.shape
        both = torch.cat([numbers, self.empty[0][:, :width].expand(batch, -1)])
        sizes = torch.cat([lengths, self.empty[1].expand(batch)])
        feats = words.features(self.encoder, both, sizes)
        guided = net.forward_batch(
            self.transformer, noisy, 1 - level, feats[:batch], lengths, block
        ).float()
        plain = net.forward_batch(
            self.transformer, noisy, 1 - level, feats[batch:], sizes[batch:], block
        ).float()
        return guided, self.weight * (guided - plain)

    @torch.no_grad()
    def change(
        self,
        latents: Tensor,
        noisy: Tensor,
        level: Tensor,
        numbers: Tensor,
        lengths: Tensor,
        block: net.Block,
    ) -> Tensor:
        """What to add to the true velocity, of the shape of `latents`.

        Of a large picture, whose size it does not know, the teacher sees means of two by two, in
        which the noise is halved. While noise still hides the layout, its own picture, enlarged,
        takes the place of the coarse part of the true one: that is what it draws at a size it
        knows, and it varies far less than true pictures do.
        """
        rows, columns = latents.shape[2:]
        if rows * columns * LATENT_PIXELS <= LARGE:
            return self._answers(noisy, level, numbers, lengths, block)[1]
        scale = 1 - level / 2
        small = level / 2 / scale
        wide, wide_scale, wide_small = (x[:, None, None, None] for x in (level, scale, small))
        seen = F.avg_pool2d(noisy, 2) / wide_scale
        guided, push = self._answers(seen, small, numbers, lengths, block)
        hidden = ((wide - 0.7) / 0.15).clamp(0, 1)
        # Below 0.7 its own picture counts nothing; the clamp keeps that nothing from being 0 / 0.
        own = (seen + wide_small * guided - F.avg_pool2d(latents, 2)) / wide.clamp(min=0.7)
        coarse = hidden * own + (1 - hidden) * push / (2 * wide_scale)
        return F.interpolate(coarse, scale_factor=2)


def rate_at(progress: float, step: int, peak: float, warm_steps: int) -> float:
    """The learning rate: a warm-up, a short level, and a long fall to nearly nothing."""
    warm = min(1.0, (step + 1) / warm_steps)
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress - 0.3) / 0.7)))
    return peak * warm * max(0.02, fall)


def _replace(value: Any, path: Path) -> None:
    """Save whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}.part")
    torch.save(value, part)
    part.replace(path)


def _gossip(
    folder: Path, worker: int, networks: Networks, spent: float, seen: dict[str, float]
) -> None:
    """Put this worker's weights where others find them, and move halfway to theirs."""
    flat = nn.utils.parameters_to_vector(networks.parameters()).detach()
    for path in folder.glob("worker?.pt"):
        stamp = path.stat().st_mtime
        old = seen.get(path.stem, 0.0) >= stamp or time.time() - stamp > 120
        if path.stem == f"worker{worker}" or old:
            continue
        seen[path.stem] = stamp
        flat = (flat + torch.load(path)["weights"]) / 2
    nn.utils.vector_to_parameters(flat, networks.parameters())
    _replace({"weights": flat, "spent": spent}, folder / f"worker{worker}.pt")


def _join(folder: Path, networks: Networks) -> float:
    """Start where the other workers are, if there are any; returns the time they have spent."""
    files = sorted(folder.glob("worker?.pt"), key=lambda path: path.stat().st_mtime)
    if not files:
        return 0.0
    theirs = torch.load(files[-1])
    nn.utils.vector_to_parameters(theirs["weights"], networks.parameters())
    return float(theirs["spent"])


def save_parts(networks: Networks, folder: Path) -> None:
    """Write the transformer and the text encoder in the library's layout, float16."""
    import copy

    for name, module in (("transformer", networks.transformer), ("text_encoder", networks.encoder)):
        half = copy.deepcopy(module).half()
        half.save_pretrained(folder / name)


def load_networks(parts: Path) -> Networks:
    """Transformer and text encoder of a folder, in float32, with new heads."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Model

    transformer: Any = ZImageTransformer2DModel.from_pretrained(
        parts / "transformer", torch_dtype=torch.float32
    )
    encoder: Any = Qwen3Model.from_pretrained(parts / "text_encoder", dtype=torch.float32)
    return Networks(transformer, encoder)


def train(
    parts: Path,
    run: Path,
    shards: Path,
    *,
    minutes: float,
    peak: float,
    worker: int = 0,
    guide: float = 0.0,
    teacher_parts: Path | None = None,
    average: float = 0.995,
) -> None:
    """Train until the time is used up; goes on from the last checkpoint in `run`.

    Args:
        parts: folder with `transformer`, `text_encoder` and `tokenizer` to start from.
        run: folder of checkpoints, logs and the result (`run/ema`).
        shards: folder of training data.
        minutes: training time in all, over every resumption.
        peak: the learning rate.
        worker: 0 leads and saves the result; others only help.
        guide: guidance to bake in from a frozen teacher; 0 trains on the pictures themselves.
        teacher_parts: folder of the teacher; `parts` where none is named.
        average: decay of the running average of weights, by step.
    """
    from transformers import Qwen2Tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(1000 * worker + int(time.time()) % 1000)
    run.mkdir(parents=True, exist_ok=True)
    tokenizer: Any = Qwen2Tokenizer.from_pretrained(parts / "tokenizer")
    networks = load_networks(parts)
    teacher = Teacher(load_networks(teacher_parts or parts), tokenizer, guide) if guide else None
    optimizer = networks.optimizer()
    step, samples, spent = 0, 0, 0.0
    checkpoint = run / f"checkpoint{worker}.pt"
    state = torch.load(checkpoint, weights_only=False) if checkpoint.exists() else None
    if state is None:
        spent = _join(run, networks)
    else:
        networks.load_state_dict(state["networks"])
        optimizer.load_state(state["optimizer"])
        step, samples, spent = state["step"], state["samples"], state["spent"]
    # Running averages live beside the weights and are what is saved in the end.
    shadow = state["shadow"] if state else [p.detach().clone() for p in networks.parameters()]
    batches = Batches(shards, tokenizer, worker, long=0.0 if teacher else LONG)
    block = net.FastBlocks()
    log = (run / f"log{worker}.tsv").open("a", buffering=1)
    seen: dict[str, float] = {}
    last = saved = looked = time.monotonic()
    mean = {"flow": 0.0, "aux": 0.0}
    networks.train()

    def save() -> None:
        state = {
            "networks": networks.state_dict(),
            "shadow": shadow,
            "optimizer": optimizer.state(),
            "step": step,
            "samples": samples,
            "spent": spent,
        }
        _replace(state, checkpoint)
        if worker == 0:
            live = [p.detach().clone() for p in networks.parameters()]
            with torch.no_grad():
                for parameter, value in zip(networks.parameters(), shadow, strict=True):
                    parameter.copy_(value)
                save_parts(networks, run / "ema")
                for parameter, value in zip(networks.parameters(), live, strict=True):
                    parameter.copy_(value)

    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    while spent < minutes * 60 and not stopping:
        latents, kinds, colours, numbers, lengths = batches.draw()
        noise = torch.randn_like(latents)
        level = sigmas(len(latents), latents[0, 0].numel() * LATENT_PIXELS)
        wide = level[:, None, None, None]
        noisy = (1 - wide) * latents + wide * noise
        taps = dict.fromkeys(networks.heads.taps, noisy)
        with torch.autocast("cpu", torch.bfloat16, enabled=net.HALF):
            target = latents - noise
            if teacher is not None:
                # Beside the pictures, not instead of them: baking goes on learning.
                target = target + teacher.change(latents, noisy, level, numbers, lengths, block)
            feats = words.features(networks.encoder, numbers, lengths)
            guess = net.forward_batch(
                networks.transformer, noisy, 1 - level, feats, lengths, block, taps
            )
            flow = ((guess.float() - target).square() * emphasis(kinds)).mean()
            # At the noisiest levels nothing of the objects shows yet, at the cleanest all does.
            if step < HEADS_ALONE:
                taps = {tap: tokens.detach() for tap, tokens in taps.items()}
            aux = networks.heads.loss(taps, kinds, colours)
        (flow + AUXILIARY * aux).backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step(rate_at(spent / (minutes * 60), step, peak, 20 if teacher else 60))
        step, samples = step + 1, samples + len(latents)
        decay = min(average, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(shadow, list(networks.parameters()), 1 - decay)
        mean["flow"] += flow.item()
        mean["aux"] += aux.item()
        now = time.monotonic()
        # A step that took minutes was compiling or the machine slept: it is not training time.
        spent, last = spent + min(now - last, 30.0), now
        if step % GOSSIP_STEPS == 0:
            _gossip(run, worker, networks, spent, seen)
            log.write(
                f"{step}\t{samples}\t{spent:.0f}\t{mean['flow'] / GOSSIP_STEPS:.4f}\t{mean['aux'] / GOSSIP_STEPS:.3f}\n"
            )
            mean = dict.fromkeys(mean, 0.0)
        if now - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
        if now - looked > 60:
            batches.refresh()
            looked = now
    save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--peak", type=float, default=6e-4)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--guide", type=float, default=0.0)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--average", type=float, default=0.995)
    a = parser.parse_args()
    train(
        a.parts,
        a.run,
        a.shards,
        minutes=a.minutes,
        peak=a.peak,
        worker=a.worker,
        guide=a.guide,
        teacher_parts=a.teacher,
        average=a.average,
    )
