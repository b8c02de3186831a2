"""The starter model: its world is repeatable, its training forward is the library's, it loads and draws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from transformers import Qwen2Tokenizer  # noqa: E402

from starter import judge, net, score, sprites, transformer, words, world  # noqa: E402

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "starter" / "model"


@pytest.mark.parametrize("held_out", [False, True])
def test_a_seed_always_gives_the_same_sample(held_out: bool) -> None:
    for seed in range(12):
        first = world.make(seed, 128, 96, held_out=held_out)
        second = world.make(seed, 128, 96, held_out=held_out)
        assert first.caption == second.caption
        assert first.scene == second.scene
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.kinds, second.kinds)
        assert first.image.shape == (96, 128, 3)
        assert first.kinds.shape == first.colours.shape == (6, 8)


def test_seeds_differ() -> None:
    captions = {world.make(seed, 64, 64).caption for seed in range(40)}
    assert len(captions) == 40


def test_held_out_scenes_are_never_trained_on() -> None:
    trained = {world.sample_scene(Random(f"a{k}")).meaning() for k in range(4000)}
    held = {world.sample_scene(Random(f"b{k}"), held_out=True).meaning() for k in range(300)}
    assert not trained & held


def test_the_held_out_captions_are_those_the_card_shows() -> None:
    shown = (ROOT / "starter" / "samples.txt").read_text().splitlines()
    assert [words for _, words, _ in score.held_out(len(shown))] == shown


def test_a_boat_without_a_colour_may_be_a_sailing_boat() -> None:
    scene = world.Scene(land="sea", things=(world.Thing("boat", "red"),))
    brief = {world.caption(scene, Random(f"d{seed}"), brief=True) for seed in range(100)}
    whole = {world.caption(scene, Random(f"d{seed}")) for seed in range(100)}
    assert any("sailing boat" in words for words in brief)
    assert not any("red sailing boat" in words for words in brief)
    assert not any("sailing boat" in words for words in whole)


def test_a_brief_caption_names_the_colour_or_the_ground_but_never_both() -> None:
    told = set()
    for seed in range(300):
        rng = Random(f"c{seed}")
        scene = world.sample_scene(rng)
        if scene.land or len(scene.things) > 1:
            continue
        words = world.caption(scene, rng, brief=True).lower().replace("grey", "gray")
        told.add((scene.things[0].colour in words, scene.ground in words))
    assert told == {(True, False), (False, True), (False, False)}


def test_every_kind_can_be_drawn_in_every_colour() -> None:
    for kind in sprites.KINDS:
        for colour in sprites.COLOURS.values():
            layer = np.asarray(sprites.sprite(kind, colour, 24, Random(1)))
            assert layer[..., 3].mean() > 12


def test_the_pixel_grader_agrees_with_true_drawings() -> None:
    items = [i for i in score.held_out(160) if not i[0].land]
    pairs = [(s, np.asarray(world.draw(s, 128, 128, Random(n))[0])) for s, _, n in items]
    assert all(score.ground_of(image) == world.COLOUR_NAMES.index(s.ground) for s, image in pairs)
    assert np.mean([score.colour_right(s, image) for s, image in pairs]) >= 0.97
    placed = [(s, i) for s, i in pairs if s.place or s.relation not in ("", "and")]
    assert np.mean([score.position_right(s, image) for s, image in placed]) >= 0.97


@pytest.mark.skipif(not judge.FILE.exists(), reason="the judge has not been trained yet")
def test_the_judge_knows_true_drawings() -> None:
    items = score.held_out(80)
    images = [np.asarray(world.draw(s, 128, 128, Random(n))[0]) for s, _, n in items]
    right = score.grade([s for s, _, _ in items], images, judge.load())
    for row in ("object kind", "scene", "time of day", "count"):
        assert np.mean(right[row]) >= 0.9, row


def test_the_training_forward_is_the_librarys_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(
        dim=48, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 8, 8], axes_lens=[128, 32, 32], all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16,
    ).eval()  # fmt: skip
    net.initialise(model)
    final = model.all_final_layer[net.PATCH]
    torch.nn.init.normal_(final.linear.weight, std=0.1)
    for height, width in ((16, 16), (12, 20), (8, 8)):
        latents, features = torch.randn(3, 16, height, width), torch.randn(3, 32, 16)
        times, lengths = torch.rand(3), torch.tensor([5, 31, 32])
        with torch.no_grad():
            ours = net.forward_batch(model, latents, times, features, lengths)
            fast = net.forward_batch(
                model, latents, times, features, lengths, net.FastBlocks(compiled=False)
            )
            captions = [f[:n] for f, n in zip(features, lengths, strict=True)]
            theirs = model(list(latents.unsqueeze(2)), times, captions).sample
        assert torch.equal(ours, torch.stack(theirs).squeeze(2))
        assert torch.allclose(fast, ours, atol=1e-4)


def test_patches_near_an_object_weigh_more_and_the_whole_weighs_one() -> None:
    kinds = torch.zeros(2, 8, 8, dtype=torch.uint8)
    kinds[0, 3, 3] = 5
    weight = transformer.emphasis(kinds)
    assert weight.shape == (2, 1, 16, 16)
    assert weight.mean().item() == pytest.approx(1.0)
    near, far = weight[0, 0, 4:10, 4:10], weight[0, 0, 12:, 12:]
    assert torch.allclose(near, far.mean() * transformer.OBJECTS)
    assert torch.allclose(weight[1], far.mean())


def test_a_teacher_lays_out_what_is_large_at_half_the_size_and_leaves_the_rest_alone() -> None:
    networks = transformer.load_networks(MODEL)
    tokenizer = Qwen2Tokenizer.from_pretrained(MODEL / "tokenizer")
    teacher = transformer.Teacher(networks, tokenizer, 0.0)
    numbers, lengths = words.encode(tokenizer, ["a red heart on a white background"] * 2, 32)
    block = net.FastBlocks(compiled=False)
    torch.manual_seed(0)

    def change(side: int, levels: tuple[float, float]) -> tuple[torch.Tensor, ...]:
        latents, noise = torch.randn(2, 16, side, side), torch.randn(2, 16, side, side)
        level = torch.tensor(levels)
        wide = level[:, None, None, None]
        noisy = (1 - wide) * latents + wide * noise
        return latents, noisy, wide, teacher.change(latents, noisy, level, numbers, lengths, block)

    *_, known = change(32, (0.95, 0.5))
    assert not known.any(), "without guidance a size the teacher knows is left to the pictures"
    latents, noisy, wide, added = change(48, (0.95, 0.5))
    assert not added[1].any(), "where little noise is left as well"
    coarse = torch.nn.functional.avg_pool2d(latents + wide * added, 2)[:1]
    seen = torch.nn.functional.avg_pool2d(noisy, 2)[:1] / 0.525
    small = torch.tensor([0.475 / 0.525])
    features = words.features(networks.encoder, numbers[:1], lengths[:1])
    answer = net.forward_batch(networks.transformer, seen, 1 - small, features, lengths[:1], block)
    assert torch.allclose(coarse, seen + small * answer, atol=1e-4)
    blocks = added[0].unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    assert (blocks == blocks[..., :1]).all(), "the detail stays that of the true picture"


def test_noise_is_strong_more_often_in_large_pictures() -> None:
    torch.manual_seed(0)
    median = {side: transformer.sigmas(1001, side * side).median() for side in (64, 256, 512)}
    assert median[64] == pytest.approx(0.75, abs=0.01)
    assert median[256] == pytest.approx(0.75, abs=0.01)
    assert median[512] == pytest.approx(6 / 7, abs=0.01)


def test_a_deepened_transformer_computes_the_same() -> None:
    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(
        dim=48, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 8, 8], axes_lens=[128, 32, 32], all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16,
    ).eval()  # fmt: skip
    deeper = net.grow(model, 4).eval()
    latents, features, lengths = (
        torch.randn(2, 16, 8, 8),
        torch.randn(2, 32, 16),
        torch.tensor([9, 20]),
    )
    with torch.no_grad():
        before = net.forward_batch(model, latents, torch.rand(2) * 0 + 0.5, features, lengths)
        after = net.forward_batch(deeper, latents, torch.rand(2) * 0 + 0.5, features, lengths)
    assert len(deeper.layers) == 4
    assert torch.allclose(before, after, atol=1e-6)


def test_the_folder_is_small_and_plain() -> None:
    files = [f for f in MODEL.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 20_000_000
    profile = json.loads((MODEL / "profile.json").read_text())
    assert profile["native_width"] % 16 == 0 and profile["native_height"] % 16 == 0


DRAW_TWICE = """
import sys, warnings
warnings.simplefilter("error")
import torch
from diffusers import ZImagePipeline
pipe = ZImagePipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
def draw():
    generator = torch.Generator().manual_seed(7)
    made = pipe("a red heart on a white background", width=64, height=64, num_inference_steps=3,
                guidance_scale=0.0, generator=generator, output_type="np")
    return made.images
first, second = draw(), draw()
assert first.shape == (1, 64, 64, 3) and (first == second).all()
print("same")
"""


def test_it_loads_offline_without_a_warning_and_repeats_itself() -> None:
    offline = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", DRAW_TWICE, str(MODEL)]
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same"
    said = [line for line in done.stderr.splitlines() if "warn" in line.lower()]
    assert not said, said
