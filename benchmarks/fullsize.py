"""Z-Image at its true size with random weights: nothing is fetched, nothing lies on the disk.

    python -m benchmarks.fullsize [--side 256] [--forwards 4]

draws one picture on the processor with four layers of the true width (3840 wide, 30 heads, a text
encoder 2560 wide, the FLUX autoencoder) in bfloat16, by diffusers' own pipeline and by the engine,
and compares them to the bit. It takes some six gigabytes and, on two cores, many minutes.
"""

import argparse
import json
import resource
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from watcher.engine import EngineRequest, EngineSettings
from watcher.engines.plan import DevicePlan
from watcher.engines.zimage import ZImage
from watcher.models.catalogue import starter_folder

PROMPT = "a red circle on a blue background"
PARTS = ("transformer", "text_encoder", "vae")


def outline(folder: Path, layers: int = 30, text_layers: int = 36) -> Path:
    """Write a model folder whose weight files are whole but hold zeros, and so take no disk."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    with torch.device("meta"):
        parts: dict[str, Any] = {
            "transformer": ZImageTransformer2DModel(n_layers=layers),
            "text_encoder": Qwen3Model(
                Qwen3Config(
                    vocab_size=151_936, hidden_size=2560, intermediate_size=9728, head_dim=128,
                    num_hidden_layers=text_layers, num_attention_heads=32, num_key_value_heads=8,
                    max_position_embeddings=40_960,
                )
            ),
            "vae": AutoencoderKL(
                latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                sample_size=1024, scaling_factor=0.3611, shift_factor=0.1159,
                use_quant_conv=False, use_post_quant_conv=False,
            ),
        }  # fmt: skip
    starter = starter_folder()
    shutil.copytree(starter, folder, ignore=lambda _, names: [n for n in names if n in PARTS])
    (folder / "manifest.json").unlink(missing_ok=True)
    for name, part in parts.items():
        (folder / name).mkdir()
        kind = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        _empty(folder / name / f"{kind}.safetensors", part.state_dict())
        if name == "text_encoder":
            part.config.architectures = ["Qwen3Model"]
            part.config.save_pretrained(folder / name)
        else:
            part.save_config(folder / name)
    return folder


def _empty(path: Path, weights: dict[str, Any]) -> None:
    """A safetensors file of bfloat16 zeros: a header, and nothing behind it."""
    entries, end = {}, 0
    for name, weight in weights.items():
        begin, end = end, end + 2 * weight.numel()
        entries[name] = {
            "dtype": "BF16", "shape": list(weight.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)


class RandomWeights(ZImage):
    """The engine on an outline, with weights made on the plan's device; the same ones each time."""

    def _read(self, folder: Path, chosen: DevicePlan, single: Path | None) -> Any:
        pipe = super()._read(folder, chosen, single)
        generator = torch.Generator(chosen.device).manual_seed(0)
        for part in PARTS:
            for name, parameter in getattr(pipe, part).named_parameters():
                made = torch.empty(parameter.shape, dtype=parameter.dtype, device=chosen.device)
                if parameter.ndim == 1:  # of norms, and biases
                    made.fill_(1.0 if name.endswith("weight") else 0.0)
                else:
                    made.normal_(0.0, 0.02, generator=generator)
                parameter.data = made.cpu()
        return pipe


def nothing(done: int, total: int, preview: object = None) -> None:
    """A step nobody watches."""


def picture_of(made: Any) -> Any:
    """The picture of an engine's answer, bare or not."""
    return getattr(made, "image", made)


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.fullsize")
    options.add_argument("--side", type=int, default=256, help="pixels")
    options.add_argument("--forwards", type=int, default=4, help="of the transformer")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = outline(Path(scratch) / "model", layers=4, text_layers=4)
        engine = RandomWeights(EngineSettings(str(folder), "cpu", "bfloat16", {"warm_up": False}))
        begun = time.monotonic()
        engine.load()
        pipe = engine._pipe
        # A processor without instructions for bfloat16 convolves this layout many times faster.
        pipe.vae.to(memory_format=torch.channels_last)
        weights = sum(p.numel() for part in PARTS for p in getattr(pipe, part).parameters())
        print(f"{weights:,} weights, made in {time.monotonic() - begun:.0f} s", flush=True)
        begun = time.monotonic()
        ours = engine.generate(a_request(given.side, steps=given.forwards + 1), nothing)
        took = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in ours.timings.items())
        print(f"engine {time.monotonic() - begun:.0f} s ({took})", flush=True)
        begun = time.monotonic()
        bare = pipe(
            PROMPT, width=given.side, height=given.side, num_inference_steps=given.forwards,
            guidance_scale=0.0, generator=torch.Generator("cpu").manual_seed(5),
        ).images[0]  # fmt: skip
        print(f"bare {time.monotonic() - begun:.0f} s")
    pixels = np.asarray(ours.image)
    same = np.array_equal(pixels, np.asarray(bare))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{given.side} x {given.side}, forwards: {given.forwards}; peak {peak:.1f} GiB")
    print(f"std of the pixels {pixels.std():.1f}; {'the same to the bit' if same else 'DIFFERENT'}")
    return 0 if same else 1


def a_request(side: int, *, steps: int = 9) -> EngineRequest:
    """A request for a square picture, resolved."""
    return EngineRequest(prompt=PROMPT, width=side, height=side, num_inference_steps=steps, seed=5)


if __name__ == "__main__":
    sys.exit(main())
