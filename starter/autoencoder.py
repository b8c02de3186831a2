"""Training of the autoencoder: first both halves together, later the decoder alone.

Once a transformer has learned the latents of an encoder, the encoder stays as it is; `refine` then
sharpens the decoder, which costs the transformer nothing.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starter import data, net, world
from starter.optim import Optimizer

CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (24, 48, 64, 96),
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 1,
    "sample_size": 128,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}  #: The real autoencoder's plan, narrow. One group: smaller group norms erase flat colours.


def fresh() -> Any:
    """An untrained autoencoder with the start that was found to train fast."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(**CONFIG)
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)
    with torch.no_grad():
        vae.encoder.conv_out.weight[16:] *= 0.1
        vae.encoder.conv_out.bias[16:] = -4.0
        vae.decoder.conv_out.weight *= 0.5
    return vae


def picture_loss(made: Tensor, true: Tensor) -> Tensor:
    """How far pictures [batch, 3, height, width] are from the true ones; edges count extra.

    The outermost pixels count three times: specks there are small to the eye but spoil outlines.
    """
    weight = torch.ones_like(true[:1, :1])
    weight[..., :3, :] = weight[..., -3:, :] = 3.0
    weight[..., :, :3] = weight[..., :, -3:] = 3.0
    error = made - true
    slope_x = (error[..., 1:] - error[..., :-1]).abs().mean()
    slope_y = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    coarse = F.avg_pool2d(error, 4).abs().mean()
    return (
        (error.abs() * weight).mean()
        + 0.6 * (slope_x + slope_y)
        + 0.5 * coarse
        + 2 * error.square().mean()
    )


def _optimizer(module: nn.Module) -> Optimizer:
    """Muon for convolutions, seen as matrices, Adam for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        outer = "conv_in" in name or "conv_out" in name
        (matrices if parameter.ndim == 4 and not outer else others).append(parameter)
    return Optimizer(matrices, others)


def _pixels(rng: Random, number: int, side: int, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """Training pictures drawn afresh, cut to squares of `side` pixels."""
    cuts = []
    for _ in range(number):
        width, height = rng.choice(sizes)
        image = world.make(rng.randrange(10**12), width, height).image
        x, y = rng.randint(0, width - side), rng.randint(0, height - side)
        cuts.append(image[y : y + side, x : x + side])
    return data.to_pixels(cuts)


def _average(shadow: list[Tensor], module: nn.Module, step: int, decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(
            shadow, list(module.parameters()), 1 - min(decay, (step + 1) / (step + 20))
        )


def _save(vae: Any, folder: Path) -> None:
    part = folder.with_name(folder.name + ".part")
    vae.half().save_pretrained(part)
    vae.float()
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def train(folder: Path, *, minutes: float) -> None:
    """Train both halves from nothing and write the autoencoder with its latents' scale."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rng = Random("autoencoder")
    vae = fresh().to(memory_format=torch.channels_last)
    optimizer = _optimizer(vae)
    shadow = [p.detach().clone() for p in vae.parameters()]
    start, step = time.monotonic(), 0
    while (spent := time.monotonic() - start) < minutes * 60:
        progress = spent / (minutes * 60)
        number, side = ((8, 48), (5, 64), (2, 128))[min(2, int(progress * 3))]
        true = _pixels(rng, number, side, ((128, 128), (256, 256)))
        with torch.autocast("cpu", torch.bfloat16, enabled=net.HALF):
            posterior = vae.encode(true).latent_dist
            made = vae.decode(
                posterior.sample() + 0.12 * torch.rand_like(posterior.mean)
            ).sample.float()
        loss = picture_loss(made, true) + 3e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step(1.5e-3 * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-5)
        _average(shadow, vae, step, 0.995)
        step += 1
        if step % 100 == 0:
            print(f"autoencoder step {step} loss {loss.item():.4f}", flush=True)
    with torch.no_grad():
        for parameter, value in zip(vae.parameters(), shadow, strict=True):
            parameter.copy_(value)
        latents = torch.cat(
            [vae.encode(_pixels(rng, 16, 128, ((128, 128),))).latent_dist.mean for _ in range(16)]
        )
    vae.register_to_config(
        scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item()
    )
    _save(vae, folder)


def refine(source: Path, folder: Path, *, minutes: float, peak: float = 6e-4) -> None:
    """Train the decoder alone on this world's pictures; saves every few minutes."""
    torch.set_num_threads(1)
    torch.manual_seed(2)
    rng = Random("decoder")
    vae = data.load_autoencoder(source)
    decoder = vae.decoder.train()
    optimizer = _optimizer(decoder)
    shadow = [p.detach().clone() for p in decoder.parameters()]
    start = saved = time.monotonic()
    step, mean = 0, 0.0

    def save() -> None:
        live = [p.detach().clone() for p in decoder.parameters()]
        with torch.no_grad():
            for parameter, value in zip(decoder.parameters(), shadow, strict=True):
                parameter.copy_(value)
            _save(vae, folder)
            for parameter, value in zip(decoder.parameters(), live, strict=True):
                parameter.copy_(value)

    while (spent := time.monotonic() - start) < minutes * 60:
        progress = spent / (minutes * 60)
        number, side = ((4, 128), (12, 64))[step % 2]
        true = _pixels(rng, number, side, ((128, 128), (128, 128), (256, 256)))
        with torch.autocast("cpu", torch.bfloat16, enabled=net.HALF):
            with torch.no_grad():
                latents = vae.encode(true).latent_dist.mean
            # The transformer's latents are never quite clean: the decoder must not mind.
            noisy = latents + 0.25 * torch.rand(number, 1, 1, 1) * torch.randn_like(latents)
            made = decoder(noisy).float()
        loss = picture_loss(made, true)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        warm = min(1.0, (step + 1) / 60)
        optimizer.step(peak * warm * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-6, decay=0.0)
        _average(shadow, decoder, step, 0.99)
        step, mean = step + 1, mean + loss.item() / 50
        if step % 50 == 0:
            print(f"decoder step {step} {spent:.0f} s loss {mean:.4f}", flush=True)
            mean = 0.0
        if time.monotonic() - saved > 180:
            save()
            saved = time.monotonic()
    save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--peak", type=float, default=6e-4)
    a = parser.parse_args()
    refine(a.source, a.folder, minutes=a.minutes, peak=a.peak)
