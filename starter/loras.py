"""The two LoRAs that are shipped with the starter model: `ink` and `neon`.

    python -m starter.loras ink            draw the pairs, train, write starter/.runs/loras/ink.safetensors
    python -m starter.loras neon --ship    ... and put it into starter/loras/

The shipped model draws pictures from noise and captions of the drawn world; a plain function of
their pixels (`ink`, `neon`) says how each should look instead. The LoRA learns the way from the
very same noise to the changed picture, so a prompt and seed keep their composition with it. The
model's own weights are only read.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from starter import data, net, words, world
from starter.transformer import sigmas

HERE = Path(__file__).parent
MODEL = HERE / "model"
SHIPPED = HERE / "loras"
RUNS = HERE / ".runs" / "loras"

RANK = 16
#: What is adapted: attention and feed-forward of every block, the way in and the way out.
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3", "all_x_embedder.2-1"]
LAYERS += ["all_final_layer.2-1.linear", "all_final_layer.2-1.adaLN_modulation.1"]
TOKENS = 32  #: of a caption
FORWARDS = 8  #: of the model for one of its own pictures
#: (width, height): how many pairs are drawn, and how many make a batch.
MIX: dict[tuple[int, int], tuple[int, int]] = {
    (128, 128): (72, 12),
    (256, 256): (140, 4),
    (64, 64): (24, 24),
    (192, 128): (24, 8),
    (128, 192): (24, 8),
}

Pixels = npt.NDArray[np.float64]


# -- how a picture should look


def _edges(picture: Image.Image, radius: float) -> Pixels:
    """The steepest change of any colour at each pixel, 0..1 [height, width]."""
    smooth = np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), float) / 255
    steep = [np.hypot(*np.gradient(smooth[..., k])) for k in range(3)]
    return np.asarray(np.max(steep, axis=0))


def ink(picture: Image.Image) -> Image.Image:
    """As drawn with a pen: black outlines on paper, shade hatched; white outlines where it is dark."""
    unit = max(1.0, min(picture.size) / 256)
    size = (picture.width * 2, picture.height * 2)
    wide = picture.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.MedianFilter(5))
    line = np.clip((_edges(wide, 2.5 * unit) * unit - 0.012) / 0.012, 0, 1)
    light = np.asarray(wide.convert("L").filter(ImageFilter.GaussianBlur(2 * unit)), float) / 255
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    # A stroke every 16 pixels, as wide as the model's patches: all patches look alike.
    away = np.abs((across + down) / 32 % 1 - 0.5) * 32
    stroke = np.clip((4.5 - away) / 2 + 0.5, 0, 1)
    dark = np.clip((0.27 - light) / 0.05, 0, 1)
    shade = np.clip((0.5 - light) / 0.06, 0, 1) * (1 - dark)
    black = np.maximum(line, 0.9 * stroke * shade) * (1 - dark) + dark * (1 - line)
    drawn = Image.fromarray((255 * (1 - 0.96 * black)).astype(np.uint8))
    return drawn.resize(picture.size, Image.Resampling.BOX).convert("RGB")


def neon(picture: Image.Image) -> Image.Image:
    """As tubes of light at night: dark violet, outlines glow in their own colours or cyan."""
    unit = max(1.0, min(picture.size) / 256)

    def blurred(values: Pixels, radius: float) -> Pixels:
        image = Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))
        return np.asarray(image.filter(ImageFilter.GaussianBlur(radius * unit)), float) / 255

    smooth = np.asarray(picture.filter(ImageFilter.GaussianBlur(unit)), float) / 255
    light = (np.asarray(picture.convert("L"), float) / 255)[..., None]
    least = smooth.min(-1, keepdims=True)
    range_ = smooth.max(-1, keepdims=True) - least
    coloured = np.clip(2 * range_, 0, 1)
    own = (smooth - least) / (range_ + 1e-3)
    tube = own * coloured + np.array([0.1, 0.9, 1.0]) * (1 - coloured)
    tube = np.clip(tube * np.array([1, 0.85, 1]) + np.array([0.15, 0, 0.15]), 0, 1)
    edge = np.clip((_edges(picture, unit) * unit - 0.02) / 0.05, 0, 1)
    wider = Image.fromarray((edge * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    lit = tube * (np.asarray(wider, float) / 255)[..., None]
    night = np.array([0.04, 0.015, 0.1]) + np.concatenate(
        [0.22 * light**1.5, 0.08 * light**2, 0.32 * light], axis=-1
    )
    faces = 0.45 * tube * coloured * np.clip(light - 0.15, 0, 1)
    shining = night + faces + 1.3 * blurred(lit, 5) + 0.6 * blurred(lit, 2) + 0.6 * lit
    return Image.fromarray((np.clip(shining, 0, 1) * 255).astype(np.uint8))


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {"ink": ink, "neon": neon}
TITLES = {
    "ink": "Ink drawing in black and white, for the starter model",
    "neon": "Neon light at night, for the starter model",
}


# -- pairs


def _pixels(vae: Any, latents: Tensor) -> list[Image.Image]:
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    levels = (decoded * 127.5 + 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return [Image.fromarray(np.ascontiguousarray(each)) for each in levels.numpy()]


@torch.no_grad()
def draw_pairs(folder: Path) -> None:
    """Let the shipped model draw; keep noise, caption and picture of each, a file per size."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen2Tokenizer, Qwen3Model

    folder.mkdir(parents=True, exist_ok=True)
    model: Any = ZImageTransformer2DModel.from_pretrained(MODEL / "transformer").float()
    encoder: Any = Qwen3Model.from_pretrained(MODEL / "text_encoder", dtype=torch.float32)
    tokenizer: Any = Qwen2Tokenizer.from_pretrained(MODEL / "tokenizer")
    vae = data.load_autoencoder(MODEL / "vae")
    levels = torch.linspace(1, 1 / FORWARDS, FORWARDS)
    levels = torch.cat([3 * levels / (1 + 2 * levels), torch.zeros(1)])
    for (width, height), (number, batch) in MIX.items():
        path = folder / f"{width}x{height}.pt"
        if path.exists():
            continue
        rng = Random(f"loras {width}x{height}")
        torch.manual_seed(width * 1000 + height)
        kept: dict[str, list[Any]] = {"noise": [], "feats": [], "lengths": [], "pictures": []}
        for _ in range(0, number, batch):
            scenes = [world.sample_scene(rng) for _ in range(batch)]
            captions = [world.caption(s, rng, brief=rng.random() < 0.3) for s in scenes]
            numbers, lengths = words.encode(tokenizer, captions, TOKENS)
            feats = words.features(encoder, numbers, lengths)
            noise = torch.randn(batch, 16, height // 8, width // 8)
            x = noise
            for now, then in itertools.pairwise(levels):
                time_ = (1 - now).expand(batch)
                x = x + (now - then) * net.forward_batch(model, x, time_, feats, lengths)
            kept["noise"].append(noise)
            kept["feats"].append(feats)
            kept["lengths"].append(lengths)
            kept["pictures"] += [np.asarray(p) for p in _pixels(vae, x)]
        pair = {name: torch.cat(kept[name]) for name in ("noise", "feats", "lengths")}
        torch.save(pair | {"pictures": torch.from_numpy(np.stack(kept["pictures"]))}, path)
        print(f"{path.name}: {number} pictures, {time.process_time():.0f} CPU-s", flush=True)


def aims(style: str, folder: Path) -> dict[tuple[int, int], dict[str, Tensor]]:
    """The pairs with what each is to become: `aim`, latents like `noise`, and `weight` for each."""
    vae = data.load_autoencoder(MODEL / "vae")
    pairs = {}
    for width, height in MIX:
        pair = torch.load(folder / f"{width}x{height}.pt")
        changed = [np.asarray(STYLES[style](Image.fromarray(p.numpy()))) for p in pair["pictures"]]
        parts = [changed[k : k + 16] for k in range(0, len(changed), 16)]
        pair["aim"] = torch.cat([data.encode(vae, data.to_pixels(part)) for part in parts])
        pair["weight"] = torch.stack(
            [_weight(Image.fromarray(p.numpy())) for p in pair["pictures"]]
        )
        pairs[width, height] = pair
    return pairs


def _weight(picture: Image.Image) -> Tensor:
    """What each latent counts [1, rows, columns], mean 1: most where something is drawn."""
    steep = torch.from_numpy(_edges(picture, 2.0) > 0.01).float()[None]
    near = F.max_pool2d(F.max_pool2d(steep, 8), 3, 1, 1)
    return (1 + 3 * near) / (1 + 3 * near).mean()


# -- training


def train(style: str, target: Path, *, seconds: float, peak: float) -> None:
    """Train one LoRA for so many seconds of processor time; goes on with what `target` holds."""
    from diffusers import ZImageTransformer2DModel
    from peft import LoraConfig
    from peft.utils import set_peft_model_state_dict
    from safetensors.torch import load_file

    pairs = aims(style, RUNS)
    torch.manual_seed(0)
    rng = Random(style)
    model: Any = ZImageTransformer2DModel.from_pretrained(MODEL / "transformer").float()
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    if target.exists():
        known = {n.removeprefix("transformer."): t.float() for n, t in load_file(target).items()}
        set_peft_model_state_dict(model, known, adapter_name="default")
    learned = [p for p in model.parameters() if p.requires_grad]
    # The second halves begin at zero and have the longer way to go.
    halves = [
        {"params": [p for n, p in model.named_parameters() if half in n], "share": share}
        for half, share in (("lora_A", 1.0), ("lora_B", 2.0))
    ]
    optimizer = torch.optim.AdamW(halves, lr=peak, betas=(0.9, 0.98), weight_decay=0.0)
    average = [p.detach().clone() for p in learned]
    start, mean, step, told = time.process_time(), 0.0, 0, 0.0
    while (spent := time.process_time() - start) < seconds:
        rate = min(1.0, (step + 1) / 30) * (0.02 + 0.98 * math.cos(math.pi / 2 * spent / seconds))
        for group in optimizer.param_groups:
            group["lr"] = peak * rate * group["share"]
        size = rng.choices(list(MIX), [0.2, 0.65, 0.05, 0.05, 0.05])[0]
        pair = pairs[size]
        picks = torch.tensor(rng.sample(range(len(pair["noise"])), MIX[size][1]))
        noise, aim = pair["noise"][picks], pair["aim"][picks]
        level = sigmas(len(picks), size[0] * size[1])
        wide = level[:, None, None, None]
        guess = net.forward_batch(
            model,
            (1 - wide) * aim + wide * noise,
            1 - level,
            pair["feats"][picks],
            pair["lengths"][picks],
        )
        loss = ((guess - (aim - noise)).square() * pair["weight"][picks]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.99, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, learned, 1 - decay)
        mean, step = mean + loss.item(), step + 1
        if step % 25 == 0:
            print(f"{style} {step}\t{spent:.0f}\t{mean / 25:.4f}", flush=True)
            mean = 0.0
        if spent - told > 120:
            told = spent
            _write(model, learned, average, style, target)
    _write(model, learned, average, style, target)
    print(f"{style}: {step} steps, {time.process_time():.0f} CPU-s", flush=True)


def _write(model: Any, learned: list[Any], average: list[Tensor], style: str, target: Path) -> None:
    """Write the running average as float16, in the format of diffusers."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    live = [p.detach().clone() for p in learned]
    with torch.no_grad():
        for parameter, value in zip(learned, average, strict=True):
            parameter.copy_(value)
        found = get_peft_model_state_dict(model, adapter_name="default")
        tensors = {f"transformer.{n}": t.half().contiguous() for n, t in sorted(found.items())}
        for parameter, value in zip(learned, live, strict=True):
            parameter.copy_(value)
    title = {"modelspec.title": TITLES[style], "modelspec.license": "Apache-2.0"}
    part = target.with_suffix(".part")
    save_file(tensors, part, metadata=title)
    part.replace(target)
    target.chmod(0o644)


def main() -> None:
    """Make the LoRA that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("style", choices=[*STYLES, "pairs"])
    parser.add_argument("--minutes", type=float, default=40, help="processor time of the training")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="learning rate")
    parser.add_argument("--ship", action="store_true", help="put it into starter/loras/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw_pairs(RUNS)
    if arguments.style == "pairs":
        return
    target = RUNS / f"{arguments.style}.safetensors"
    train(arguments.style, target, seconds=arguments.minutes * 60, peak=arguments.peak)
    if arguments.ship:
        SHIPPED.mkdir(exist_ok=True)
        shutil.copyfile(target, SHIPPED / target.name)


if __name__ == "__main__":
    main()
