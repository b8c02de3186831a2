"""How well the model folder draws what it is asked: prompt following on held-out scenes.

Ground colour, object colour and position are read from the pixels; object kind, scene, hour and
count are read by the judge. Every figure stands beside the same figure for true drawings of the
same scenes (what the judge itself is worth) and for those drawings after the autoencoder (the best
the transformer could reach).
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from starter import data, judge, world
from starter.sprites import COLOURS, KINDS

Picture = npt.NDArray[np.uint8]

HERE = Path(__file__).parent
PALETTE = np.array(list(COLOURS.values()), float)
ROWS = (
    "ground colour",
    "object colour",
    "object kind",
    "object kind, plain ground",
    "object kind, in landscapes",
    "scene",
    "time of day",
    "snow",
    "sky feature",
    "count",
    "position",
)


def held_out(number: int, first: int = 0) -> list[tuple[world.Scene, str, int]]:
    """Held-out scenes with one caption each and the seed they came from, `first` and on."""
    items = []
    for seed in range(first, first + number):
        rng = Random(f"score {seed}")
        scene = world.sample_scene(rng, held_out=True)
        items.append((scene, world.caption(scene, rng), seed))
    return items


def nearest_colour(pixels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Number of the palette's nearest colour for each pixel of [..., 3]."""
    flat = pixels.reshape(-1, 3).astype(float)
    distance = ((flat[:, None] - PALETTE[None]) ** 2).sum(-1)
    result: npt.NDArray[np.int64] = distance.argmin(1).reshape(pixels.shape[:-1])
    return result


def ground_of(image: Picture) -> int:
    """The palette number of the median colour of the picture's border."""
    border = np.concatenate(
        [
            image[:3].reshape(-1, 3),
            image[-3:].reshape(-1, 3),
            image[:, :3].reshape(-1, 3),
            image[:, -3:].reshape(-1, 3),
        ]
    )
    return int(nearest_colour(np.median(border, axis=0)))


def object_mask(image: Picture) -> npt.NDArray[np.bool_]:
    """Pixels [height, width] that differ clearly from the ground."""
    border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    mask: npt.NDArray[np.bool_] = np.abs(image.astype(float) - ground).sum(-1) > 90
    return mask


def colour_right(scene: world.Scene, image: Picture) -> bool:
    """Whether every named colour covers enough of what is not ground."""
    mask = object_mask(image)
    if mask.sum() < 40:
        return False
    shares = np.bincount(nearest_colour(image[mask]), minlength=len(PALETTE)) / mask.sum()
    # A thing also has shade, wheels, eyes: its colour need not cover more than a third of it.
    need = 0.33 if len(scene.things) == 1 else 0.12
    return all(shares[world.COLOUR_NAMES.index(t.colour)] >= need for t in scene.things)


def position_right(scene: world.Scene, image: Picture) -> bool:
    """Whether the object stands where the caption says, or the two of them as it says."""
    height, width = image.shape[:2]
    mask = object_mask(image)
    if scene.place:
        if mask.sum() < 40:
            return False
        ys, xs = np.nonzero(mask)
        x, y = xs.mean() / width - 0.5, ys.mean() / height - 0.5
        sure = {"left": -x, "right": x, "top": -y, "bottom": y}[scene.place]
        return bool(sure > 0.09)
    names = nearest_colour(image)
    middles = []
    for thing in scene.things:
        ys, xs = np.nonzero(mask & (names == world.COLOUR_NAMES.index(thing.colour)))
        if len(xs) < 25:
            return False
        middles.append((float(np.median(xs)) / width, float(np.median(ys)) / height))
    dx, dy = middles[0][0] - middles[1][0], middles[0][1] - middles[1][1]
    sure = {"left": -dx, "right": dx, "above": -dy, "below": dy}[scene.relation]
    return bool(sure > 0.12)


def _implied(scene: world.Scene) -> bool:
    """Whether the sky's feature shows at that hour anyway, so that nothing can be told from it."""
    return (scene.feature, scene.time) in (
        ("sun", "sunset"),
        ("sun", "sunrise"),
        ("clouds", "storm"),
    )


def grade(
    scenes: list[world.Scene], images: list[Picture], critic: judge.Judge
) -> dict[str, list[bool]]:
    """Right or wrong for each question that a scene answers, by row of the table."""
    logits = judge.ask(critic, images)
    truth = judge.truth(scenes)
    right: dict[str, list[bool]] = {row: [] for row in ROWS}
    for k, (scene, image) in enumerate(zip(scenes, images, strict=True)):
        right["scene"].append(bool(logits["land"][k].argmax() == truth["land"][k]))
        if scene.things:
            kinds = {KINDS.index(t.kind) for t in scene.things}
            seen = set(logits["kinds"][k].topk(len(kinds)).indices.tolist())
            # The right kinds must be the largest seen, and each must be there at all.
            fine = seen == kinds and bool(logits["kinds"][k][list(kinds)].min() > 0.7)
            right["object kind"].append(fine)
            right[
                "object kind, in landscapes" if scene.land else "object kind, plain ground"
            ].append(fine)
        if scene.land:
            right["time of day"].append(bool(logits["time"][k].argmax() == truth["time"][k]))
            if scene.feature and not _implied(scene):
                right["sky feature"].append(
                    bool(logits["feature"][k].argmax() == truth["feature"][k])
                )
            if scene.land in ("mountains", "forest", "lake"):
                right["snow"].append(bool(logits["snowy"][k].argmax() == truth["snowy"][k]))
            continue
        right["ground colour"].append(ground_of(image) == world.COLOUR_NAMES.index(scene.ground))
        right["object colour"].append(colour_right(scene, image))
        if len(scene.things) == 1 and not scene.place:
            right["count"].append(int(logits["count"][k].argmax()) == int(truth["count"][k]))
        if scene.place or scene.relation not in ("", "and"):
            right["position"].append(position_right(scene, image))
    return right


def load_pipeline(folder: Path) -> Any:
    """The model as the service loads it, quietly, in float32 on the CPU."""
    from diffusers import ZImagePipeline

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipe: Any = ZImagePipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def render(
    pipe: Any,
    captions: list[str],
    seeds: list[int],
    width: int,
    height: int,
    steps: int,
    guidance: float = 0.0,
) -> list[Picture]:
    """Draw captions, each from its own seed, as the service does; uint8 [height, width, 3] each."""
    images: list[Picture] = []
    batch = max(1, 16 * 128 * 128 // (width * height))
    for k in range(0, len(captions), batch):
        generators = [torch.Generator().manual_seed(s) for s in seeds[k : k + batch]]
        with torch.no_grad():
            result = pipe(
                prompt=list(captions[k : k + batch]),
                negative_prompt=None if guidance == 0 else [""] * len(generators),
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
                output_type="np",
            )
        images += list((result.images * 255).round().astype(np.uint8))
    return images


def reconstruct(vae: Any, images: list[Picture]) -> list[Picture]:
    """Pictures after the autoencoder."""
    result: list[Picture] = []
    for image in images:
        latents = data.encode(vae, data.to_pixels([image]))
        with torch.no_grad():
            pixels = vae.decode(
                latents / vae.config.scaling_factor + vae.config.shift_factor
            ).sample[0]
        result.append(((pixels.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().byte().numpy())
    return result


def variety(
    draw: Callable[[list[str], list[int]], list[Picture]],
    items: list[tuple[world.Scene, str, int]],
    size: tuple[int, int],
) -> tuple[float, float]:
    """Mean difference of pixels (0 to 255) between seeds of one caption: true drawings, model."""

    def spread(images: list[Picture]) -> float:
        pairs = [(a, b) for i, a in enumerate(images) for b in images[:i]]
        return float(np.mean([np.abs(a.astype(float) - b.astype(float)).mean() for a, b in pairs]))

    true, made = [], []
    for scene, caption, seed in items:
        width, height = size
        true.append(
            spread(
                [
                    np.asarray(world.draw(scene, width, height, Random(f"{seed} {k}"))[0])
                    for k in range(4)
                ]
            )
        )
        made.append(spread(draw([caption] * 4, [seed * 10 + k for k in range(4)])))
    return float(np.mean(true)), float(np.mean(made))


def contact_sheet(images: list[Picture], columns: int) -> Image.Image:
    """Pictures of one size side by side, each shrunk to at most 128 pixels a side."""
    cells = [Image.fromarray(image) for image in images]
    for cell in cells:
        cell.thumbnail((128, 128), Image.Resampling.LANCZOS)
    width, height = cells[0].size
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for k, cell in enumerate(cells):
        sheet.paste(cell, (k % columns * width, k // columns * height))
    return sheet


def table(columns: dict[str, dict[str, list[bool]]]) -> str:
    """A Markdown table: shares by row, one column for each judged set of pictures, and n."""
    lines = ["| | " + " | ".join(columns) + " | n |", "|---|" + "---|" * (len(columns) + 1)]
    for row in ROWS:
        cells = [f"{np.mean(c[row]):.2f}" if c[row] else "-" for c in columns.values()]
        count = len(next(iter(columns.values()))[row])
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {count} |")
    return "\n".join(lines)


def by_kind(scenes: list[world.Scene], right: dict[str, list[bool]]) -> str:
    """How often each kind was right, the worst first."""
    shown = [s for s in scenes if s.things]
    tally: dict[str, list[bool]] = {}
    for scene, fine in zip(shown, right["object kind"], strict=True):
        for thing in scene.things:
            tally.setdefault(thing.kind, []).append(fine)
    ranked = sorted(tally.items(), key=lambda item: (np.mean(item[1]), item[0]))
    return ", ".join(f"{kind} {sum(marks)}/{len(marks)}" for kind, marks in ranked)


def main(arguments: argparse.Namespace) -> None:
    """Render, grade, print."""
    torch.set_num_threads(arguments.threads)
    profile = json.loads((arguments.model / "profile.json").read_text())
    width = arguments.width or profile["native_width"]
    height = arguments.height or profile["native_height"]
    steps = arguments.steps or profile["default_steps"]
    if not judge.FILE.exists():
        judge.train()
    critic = judge.load()
    items = held_out(arguments.count, arguments.first)
    scenes = [scene for scene, _, _ in items]
    columns: dict[str, dict[str, list[bool]]] = {}
    true = [
        np.asarray(world.draw(s, width, height, Random(f"true {seed}"))[0]) for s, _, seed in items
    ]
    columns["true drawings"] = grade(scenes, true, critic)
    pipe = load_pipeline(arguments.model)
    if not arguments.quick:
        vae = data.load_autoencoder(arguments.model / "vae")
        columns["after the autoencoder"] = grade(scenes, reconstruct(vae, true), critic)

    def draw(captions: list[str], seeds: list[int]) -> list[Picture]:
        return render(pipe, captions, seeds, width, height, steps, arguments.guidance)

    images = draw([caption for _, caption, _ in items], [seed for _, _, seed in items])
    columns["the model"] = grade(scenes, images, critic)
    print(
        f"{len(items)} held-out captions, {width}x{height}, {steps} steps, guidance {arguments.guidance:g}\n"
    )
    print(table(columns))
    print(f"\nby kind, worst first: {by_kind(scenes, columns['the model'])}")
    wrong = [
        s.land for s, fine in zip(scenes, columns["the model"]["scene"], strict=True) if not fine
    ]
    print(f"scenes missed: {', '.join(w or 'plain' for w in wrong) or 'none'}")
    if not arguments.quick:
        real, made = variety(draw, items[:16], (width, height))
        print(
            f"variety between seeds (mean pixel difference of 255): true drawings {real:.1f}, the model {made:.1f}"
        )
    if arguments.sheet:
        contact_sheet(images[: arguments.sheet_count], 12).save(arguments.sheet)
        if arguments.captions:
            text = "\n".join(caption for _, caption, _ in items[: arguments.sheet_count])
            arguments.captions.write_text(text + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--count", type=int, default=260, help="held-out captions to render")
    parser.add_argument("--first", type=int, default=0, help="seed of the first held-out caption")
    parser.add_argument("--width", type=int, default=0, help="pixels; the native size if left out")
    parser.add_argument("--height", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the model's column only")
    parser.add_argument(
        "--sheet", type=Path, help="save unselected pictures here, small, in caption order"
    )
    parser.add_argument("--sheet-count", type=int, default=96)
    parser.add_argument("--captions", type=Path, help="save the sheet's captions here")
    main(parser.parse_args())
