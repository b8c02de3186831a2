"""The real diffusers pipeline through the whole service, with the starter model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import until
from PIL import Image
from roots import Root

from watcher.models.catalogue import starter_folder
from watcher.pictures.recipe import read_recipe
from watcher.store import JobStore

REAL = {"engine": "zimage", "engine_options": {}, "default_width": None, "default_height": None}


@pytest.fixture(scope="module")
def bare() -> Callable[..., Image.Image]:
    """The library alone, as its own documentation calls it."""
    import torch
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline.from_pretrained(starter_folder(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def make(prompt: str, width: int, height: int, steps: int, seed: int) -> Image.Image:
        forwards = max(1, steps - 1)
        return pipe(
            prompt,
            width=width,
            height=height,
            sigmas=[1 - i * (1 - 1 / forwards) / max(1, forwards - 1) for i in range(forwards)],
            num_inference_steps=forwards,
            guidance_scale=0.0,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]

    return make


@pytest.mark.timeout(400)  # two services that read the model, also on a busy machine
def test_a_picture_of_the_service_is_the_one_the_bare_pipeline_makes(
    make_root: Callable[..., Root], bare: Callable[..., Image.Image]
) -> None:
    root = make_root(model="starter", **REAL)
    asked = [
        {"prompt": "a beautiful sunset over mountains", "seed": 7},
        {"prompt": "a red heart on a blue background", "width": 96, "height": 64, "seed": 8,
         "num_inference_steps": 5},
    ]  # fmt: skip
    root.drop("two.json", json.dumps(asked))
    root.finish(timeout=180)
    for job in root.jobs():
        path = root.folder / "outputs" / job["path"]
        recipe = read_recipe(path.read_bytes())
        assert recipe is not None
        request = recipe["request"]
        expected = bare(
            request["prompt"], request["width"], request["height"],
            request["num_inference_steps"], recipe["seed"],
        )  # fmt: skip
        with Image.open(path) as picture:
            assert picture.convert("RGB").tobytes() == expected.tobytes()
        assert recipe["forwards"] == request["num_inference_steps"] - 1
    first = root.folder / "outputs" / root.jobs()[1]["path"]
    root.drop("again.png", first.read_bytes())
    root.finish(timeout=180)
    second = root.folder / "outputs" / root.jobs()[2]["path"]
    with Image.open(first) as one, Image.open(second) as two:
        assert one.tobytes() == two.tobytes()


def test_auto_takes_the_starter_without_a_device_and_keeps_it(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(model="auto", **REAL)
    assert root.watch(once=True, probe="cpu").wait(60) == 0
    root.watch(probe="cuda:0,cpu")
    until(lambda: root.pulse().get("state") == "running", 30, "the second start")
    assert root.pulse()["model"]["name"] == "starter"


def test_a_device_that_goes_away_pauses_the_queue_and_keeps_every_job(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(model="auto", **REAL)
    assert root.watch(once=True, probe="cuda:0,cpu").wait(60) in (0, 4)
    root.drop("a.yaml", "prompt: a cat\n")
    root.watch(probe="cpu")
    until(lambda: root.states() == ["queued"], 30, "the recording")
    trouble = until(
        lambda: [t for t in root.pulse().get("trouble", []) if t["code"] == "device_lost"],
        30,
        "the trouble",
    )
    assert trouble[0]["remedy"]
    assert "Z-Image-Turbo" in root.pulse()["model"]["name"]
    assert root.states() == ["queued"]
    record = JobStore(f"sqlite:///{root.folder / 'steady.db'}", checkpointer=False)
    assert record.counts()
    record.close()


def test_the_starter_lies_where_the_product_looks() -> None:
    assert (Path(starter_folder()) / "model_index.json").is_file()
