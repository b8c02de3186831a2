"""Makes the starter model, stage after stage; each stage goes on from where it was interrupted.

    python -m starter.train                 every stage, starting from the shipped model
    python -m starter.train --fresh         every stage, starting from nothing
    python -m starter.train transformer     one stage

Everything lands under `starter/.runs/`, the finished folder in `starter/.runs/model`. The shipped
folder `starter/model/` is replaced only where `--ship` says so; compare the two first:
`python -m starter.score --model starter/.runs/model`.

Stages: `words` (tokenizer and text encoder), `autoencoder` (with its gate), `data` (drawings,
encoded), `transformer` (with the text encoder), `bake` (guidance made part of the weights),
`export` (the folder the service loads).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from starter import autoencoder, data, judge, net, score, text, words, world

HERE = Path(__file__).parent
MODEL = HERE / "model"
RUNS = HERE / ".runs"
LAYERS = 8  #: Main blocks of the transformer.
GATE = 0.95  #: The least share of object kinds the judge must still see after the autoencoder.
STAGES = ("words", "autoencoder", "data", "transformer", "bake", "export")

TRANSFORMER: dict[str, Any] = {
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
    "in_channels": 16,
    "dim": 192,
    "n_layers": LAYERS,
    "n_refiner_layers": 1,
    "n_heads": 6,
    "n_kv_heads": 6,
    "cap_feat_dim": text.WIDTH,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1024, 256, 256],
}  #: The real transformer's plan, small: dim / heads is the sum of axes_dims.


def stage_words(arguments: argparse.Namespace) -> None:
    """The tokenizer and the text encoder the transformer starts with."""
    from transformers import Qwen2Tokenizer

    start = RUNS / "start"
    if (start / "text_encoder").exists():
        return
    captions = words.corpus(12_000)
    if arguments.fresh:
        words.train(start / "tokenizer", captions)
        tokenizer: Any = Qwen2Tokenizer.from_pretrained(start / "tokenizer")
        text.pretrain(start / "text_encoder", tokenizer)
    else:
        fresh = words.extend(MODEL / "tokenizer", start / "tokenizer", captions)
        tokenizer = Qwen2Tokenizer.from_pretrained(start / "tokenizer")
        text.fit(MODEL / "text_encoder", start / "text_encoder", tokenizer, fresh)


def gate(folder: Path, number: int = 120) -> float:
    """Share of object kinds the judge still sees on plain grounds after an autoencoder."""
    if not judge.FILE.exists():
        judge.train()
    items = [item for item in score.held_out(4 * number) if item[0].things and not item[0].land]
    scenes = [scene for scene, _, _ in items[:number]]
    true = [np.asarray(world.draw(s, 128, 128, Random(k))[0]) for k, s in enumerate(scenes)]
    made = score.reconstruct(data.load_autoencoder(folder), true)
    return float(np.mean(score.grade(scenes, made, judge.load())["object kind"]))


def stage_autoencoder(arguments: argparse.Namespace) -> None:
    """Both halves from nothing, or the shipped one, its decoder refined where the gate asks for it."""
    folder = RUNS / "vae"
    if not folder.exists():
        if arguments.fresh:
            autoencoder.train(folder, minutes=arguments.minutes / 4)
        else:
            shutil.copytree(MODEL / "vae", folder)
    passed = gate(folder)
    if passed < GATE and not arguments.fresh:
        shutil.rmtree(folder)
        autoencoder.refine(MODEL / "vae", folder, minutes=arguments.minutes / 10)
        passed = gate(folder)
    print(f"gate: object kinds after the autoencoder {passed:.2f}, needed {GATE}", flush=True)
    if passed < GATE:
        shutil.rmtree(folder)
        sys.exit("the autoencoder is not good enough yet: give it more --minutes")


def stage_data(_: argparse.Namespace) -> None:
    """Draw and encode the training pictures."""
    data.produce(RUNS / "vae", RUNS / "data")


def _first_weights(arguments: argparse.Namespace) -> None:
    """The transformer's weights to start from: the shipped ones, deepened, or new ones."""
    import torch
    from diffusers import ZImageTransformer2DModel

    target = RUNS / "start" / "transformer"
    if target.exists():
        return
    if arguments.fresh:
        torch.manual_seed(4)
        model: Any = ZImageTransformer2DModel(**TRANSFORMER)
        net.initialise(model)
    else:
        model = ZImageTransformer2DModel.from_pretrained(
            MODEL / "transformer", torch_dtype=torch.float32
        )
        model = net.grow(model, max(LAYERS, len(model.layers)))
    model.save_pretrained(target)


def _workers(
    arguments: argparse.Namespace, parts: Path, run: Path, minutes: float, extra: list[str]
) -> None:
    """Run the training workers side by side until they are done."""
    command = [
        sys.executable,
        "-m",
        "starter.transformer",
        str(parts),
        str(run),
        str(RUNS / "data"),
        "--minutes",
        str(minutes),
        *extra,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([*command, "--worker", str(k)], env=environment)
        for k in range(arguments.workers)
    ]
    if any(worker.wait() for worker in workers):
        sys.exit("a training worker failed; run the same command again to go on")


def stage_transformer(arguments: argparse.Namespace) -> None:
    """Train transformer and text encoder on the pictures."""
    _first_weights(arguments)
    # Trained weights forget what they know at the rate that suits new ones.
    peak = arguments.peak or (1.5e-3 if arguments.fresh else 1e-3)
    _workers(arguments, RUNS / "start", RUNS / "base", arguments.minutes, ["--peak", str(peak)])


def stage_bake(arguments: argparse.Namespace) -> None:
    """Make guidance part of the weights, from a frozen teacher."""
    parts, guide, peak = RUNS / "base" / "ema", arguments.guide, 4e-4
    if not parts.exists():
        # Straight from the shipped weights, from which the first stage would only take the
        # guidance out. They are their own teacher, and what divides their answers with and
        # without a caption is 1 + guide times as long: this share of it keeps what they have.
        _first_weights(arguments)
        parts, guide, peak = RUNS / "start", guide / (1 + guide), 1e-3
    elif not (parts / "tokenizer").exists():
        shutil.copytree(RUNS / "start" / "tokenizer", parts / "tokenizer")
    extra = ["--guide", str(guide), "--peak", str(peak), "--average", "0.99"]
    _workers(arguments, parts, RUNS / "bake", arguments.minutes / 4, extra)


def assemble(parts: Path, target: Path, native: int) -> None:
    """Put a folder together that `ZImagePipeline.from_pretrained` loads.

    Args:
        parts: folder of the trained `transformer` and `text_encoder`.
        target: the folder to write.
        native: width and height in pixels that a request gets when it names none.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("transformer", "text_encoder"):
        shutil.copytree(parts / name, target / name)
    shutil.copytree(RUNS / "start" / "tokenizer", target / "tokenizer")
    shutil.copytree(RUNS / "vae", target / "vae")
    shutil.copytree(MODEL / "scheduler", target / "scheduler")
    shutil.copyfile(MODEL / "model_index.json", target / "model_index.json")
    profile = json.loads((MODEL / "profile.json").read_text())
    profile.update(native_width=native, native_height=native)
    (target / "profile.json").write_text(json.dumps(profile, indent=2) + "\n")
    for file in target.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    # Where the weights were saved from is nobody's business.
    for config in target.rglob("config.json"):
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)
        config.write_text(json.dumps(content, indent=2) + "\n")


def stage_export(arguments: argparse.Namespace) -> None:
    """Assemble the folder from the last stage that ran; ship it where that is asked for."""
    baked = RUNS / "bake" / "ema"
    assemble(baked if baked.exists() else RUNS / "base" / "ema", RUNS / "model", arguments.native)
    if arguments.ship:
        shutil.rmtree(MODEL)
        shutil.copytree(RUNS / "model", MODEL)


def main() -> None:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="stage", help="all where none is named")
    parser.add_argument(
        "--fresh", action="store_true", help="start from nothing, not from the shipped model"
    )
    parser.add_argument(
        "--minutes", type=float, default=100, help="training time of the transformer"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="training processes of one thread each"
    )
    parser.add_argument("--peak", type=float, default=0.0, help="learning rate")
    parser.add_argument("--guide", type=float, default=2.0, help="guidance the last stage bakes in")
    parser.add_argument("--native", type=int, default=256, help="native side in pixels")
    parser.add_argument("--ship", action="store_true", help="replace the shipped folder at the end")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    RUNS.mkdir(exist_ok=True)
    for name in arguments.stages or STAGES:
        print(f"stage {name}", flush=True)
        globals()[f"stage_{name}"](arguments)


if __name__ == "__main__":
    main()
