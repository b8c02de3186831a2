"""Engines of one's own through the whole service: the recipe says what they said, nothing else."""

import json
import os
from collections.abc import Callable
from typing import Any

from conftest import until
from PIL import Image
from roots import Root

from watcher.pictures.recipe import read_recipe

JOB = {"prompt": "a fox", "negative_prompt": "blurry", "guidance_scale": 7.5, "seed": 7}


def made_by(root: Root, **job: Any) -> tuple[dict[str, Any], str, list[str]]:
    """One job's recipe, its text for the web UI, and its warnings."""
    root.drop("fox.json", json.dumps(JOB | job))
    root.finish()
    [row] = root.wait_for("completed")
    path = root.folder / "outputs" / row["path"]
    recipe = read_recipe(path.read_bytes())
    assert recipe is not None
    with Image.open(path) as image:
        text = image.text["parameters"]  # type: ignore[attr-defined]
    return recipe, text, json.loads(row["warnings"] or "[]")


def test_no_word_of_a_recipe_is_another_engines(make_root: Callable[..., Root]) -> None:
    root = make_root(engine="engines:Guided", model="tiny", default_steps=30)
    recipe, text, warnings = made_by(root)
    assert warnings == []
    assert (recipe["forwards"], recipe["cfg_scale"]) == (30, 7.5)
    assert (recipe["sampler"], recipe["schedule"]) == ("DPM++ 2M", "Karras")
    assert text == (
        "a fox\nNegative prompt: blurry\nSteps: 30, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 7.5, Seed: 7, Size: 64x64, Model: tiny, Version: SteadyDiffusion"
    )


def test_an_engine_of_the_first_edition_runs_and_nothing_is_said_for_it(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(engine="engines:Old", model="tiny", default_steps=30)
    recipe, text, _ = made_by(root, guidance_scale=None)
    assert recipe["forwards"] == 3  # what it reported, whatever the steps were
    assert (recipe["sampler"], recipe["schedule"], recipe["cfg_scale"]) == (None, None, None)
    assert text.splitlines()[-1] == (
        "Steps: 3, Seed: 7, Size: 64x64, Model: tiny, Version: SteadyDiffusion"
    )


def test_what_an_engine_said_when_it_was_loaded_judges_the_jobs_after(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    loads = root.folder / "loads"
    os.mkfifo(loads)
    root.configure(engine_options={"log": str(root.log), "load_waits_for": str(loads)})
    root.drop("first.json", json.dumps(JOB | {"prompt": "first"}))
    watcher = root.watch(once=True)
    until(lambda: len(root.states()) == 1, what="on record: nobody knows yet")
    loads.write_bytes(b"")
    assert watcher.wait(60) == 0
    root.configure(engine_options={"log": str(root.log)})
    root.drop("second.json", json.dumps(JOB | {"prompt": "second"}))
    root.finish()
    first, second = (
        json.loads(job["warnings"] or "[]") for job in root.wait_for(*2 * ["completed"])
    )
    assert first == []  # nobody knew
    assert second == [
        "`guidance_scale` has no effect on this model.",
        "`negative_prompt` has no effect on this model.",
    ]


def test_a_picture_of_one_colour_is_no_picture_whoever_drew_it(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.drop("x.json", json.dumps({"prompt": "x blank"}))
    root.drop("y.json", json.dumps({"prompt": "y"}))
    root.watch(once=True).wait(60)
    codes = {job["error_code"] for job in root.jobs()}
    assert (sorted(root.states()), codes) == (["completed", "failed"], {None, "blank_picture"})
