"""Larger pictures from file to output: sizes, limits, tiles, kills, and the page's button."""

import functools
import importlib.util
import json
import os
import sys
import types
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import until
from house_of_clients import house
from PIL import Image
from roots import Root
from safetensors.numpy import save_file

from watcher import jobfile
from watcher.engine import OutOfMemory
from watcher.engines.upscaler import _loaded, upscaler_of
from watcher.errors import SteadyError
from watcher.jobfile.planner import Planner
from watcher.jobs import JobRequest
from watcher.limits import Card, Limits
from watcher.models.upscalers import upscaler_file
from watcher.pictures.recipe import read_recipe

ABLE = Limits(Card(accepts=("image", "mask", "upscale"), max_side=1024, max_pixels=1024 * 1024))
LARGER = """
jobs:
  - {prompt: small, name: small, steps: 2}
  - {prompt: plain, name: plain, steps: 2, image: small, upscale: 2 lanczos}
  - prompt: tiled
    name: tiled
    steps: 4
    image: small
    upscale: {factor: 4, method: refine, strength: 0.5, tile: 128}
  - {prompt: both, name: both, steps: 2, upscale: 1.5 lanczos}
"""


@pytest.fixture
def tracing(make_root: Callable[..., Root]) -> Root:
    """A root whose engine gives back the picture a job starts from."""
    return make_root(engine="engines:Tracing")


def picture(root: Root, name: str) -> Image.Image:
    (job,) = [job for job in root.jobs() if job["image_name"] == name]
    with Image.open(root.folder / "outputs" / job["path"]) as image:
        return image.copy()


def read(text: str) -> JobRequest:
    return jobfile.parse(text.encode(), ".yaml", Planner(ABLE)).requests[0].request


def test_what_is_left_open_is_settled_when_the_job_is_read() -> None:
    settled = {"factor": 2.0, "method": "refine", "strength": 0.3, "tile": 1024}
    assert read("{prompt: a, upscale: 2}").upscale == settled
    assert read("prompt: a\nupscale: 2x  # twice").upscale == settled
    assert read("{prompt: a, upscale: 1.5 lanczos}").upscale == {
        "factor": 1.5, "method": "lanczos",
    }  # fmt: skip
    assert read("{prompt: a, upscale: {strength: 0.4}}").upscale == settled | {"strength": 0.4}
    for unable in (Limits(Card(accepts=("upscale",))), Limits(Card(accepts=None))):
        said = (
            jobfile.parse(b"{prompt: a, upscale: 2}", ".yaml", Planner(unable)).requests[0].request
        )
        assert said.upscale == {"factor": 2.0, "method": "lanczos"}
    request = read("{prompt: a, width: 512, height: 256, upscale: 4}")
    assert request.final_size == (2048, 1024)
    # two tiles and a part across, one and a part down: 3 forwards each, after the first 8
    assert ABLE.forwards(request) == 8 + 3 * 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{prompt: a, upscale: 9}", "FACTOR 1.5..4"),
        ("{prompt: a, upscale: [2]}", "FACTOR 1.5..4"),
        ("{prompt: a, upscale: 2 3}", "FACTOR 1.5..4"),
        ("{prompt: a, upscale: {faktor: 2}}", "FACTOR 1.5..4"),
        ("{prompt: a, upscale: {factor: 2, tile: 100}}", "FACTOR 1.5..4"),
        ("{prompt: a, image: x.png, width: 4096, height: 4096, upscale: 4}", "16384x16384"),
        (f"{{prompt: a, upscale: {{factor: {'1' * 350}}}}}", "FACTOR 1.5..4"),
    ],
)
def test_what_cannot_be_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(SteadyError) as caught:
        read(text)
    [problem] = caught.value.problems
    assert problem.key == "upscale" and words in problem.message


def test_a_model_that_cannot_start_from_pictures_refines_none() -> None:
    unable = Limits(Card(accepts=("upscale",)))
    with pytest.raises(SteadyError) as caught:
        jobfile.parse(b"{prompt: a, upscale: 2 refine}", ".yaml", Planner(unable))
    assert caught.value.code == "not_accepted" and "lanczos" in str(caught.value.problems[0].remedy)


def test_an_upscaler_is_looked_at_before_the_queue(tmp_path: Path) -> None:
    def refusal(name: str) -> SteadyError:
        with pytest.raises(SteadyError) as caught:
            upscaler_file(tmp_path, name)
        assert caught.value.code == "upscaler_unusable"
        return caught.value

    assert "lanczos" in refusal("lancos").remedy
    (tmp_path.parent / "outside.safetensors").write_bytes(b"")
    assert "no upscaler" in refusal("../outside").message
    save_file({"a": np.zeros((2, 2), np.float32)}, tmp_path / "flat.safetensors")
    assert "no convolution" in refusal("flat").message
    save_file({"a": np.zeros((8, 3, 3, 3), np.float32)}, tmp_path / "sharp.safetensors")
    if importlib.util.find_spec("spandrel") is None:
        assert "steadydiffusion[upscale]" in refusal("sharp").remedy
    else:
        assert upscaler_file(tmp_path, "sharp.safetensors") == tmp_path / "sharp.safetensors"
    whole = (tmp_path / "sharp.safetensors").read_bytes()
    (tmp_path / "sharp.safetensors").write_bytes(whole[:-5])
    assert "cut off" in refusal("sharp").message
    asked = replace(ABLE, upscaler=functools.partial(upscaler_file, tmp_path))
    with pytest.raises(SteadyError) as caught:
        jobfile.parse(b"{prompt: a, upscale: 2 sharp}", ".yaml", Planner(asked))
    assert caught.value.problems[0].code == "upscaler_unusable"


def test_an_upscaler_whose_library_does_not_load_fails_its_job_in_words(tracing: Root) -> None:
    """As a torchvision does that was built for another torch."""
    broken = tracing.folder / "libraries" / "spandrel"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    tracing.extra["PYTHONPATH"] = (
        f"{broken.parent}{os.pathsep}{tracing.environment()['PYTHONPATH']}"
    )
    (tracing.folder / "upscalers").mkdir()
    network = {"a": np.zeros((8, 3, 3, 3), np.float32)}
    save_file(network, tracing.folder / "upscalers" / "sharp.safetensors")
    tracing.drop("large.yaml", "{prompt: x, steps: 1, upscale: 2 sharp}")
    tracing.finish()
    [job] = tracing.jobs()
    assert (job["state"], job["error_code"]) == ("failed", "upscaler_unusable")
    assert "operator nms does not exist" in job["error_message"]


class Network:
    """Stands in for spandrel and for what it loads: twice as large, each pixel four times."""

    scale, input_channels = 2, 3
    fault = ""  #: what loading raises
    room = 1 << 20  #: pixels that it has memory for

    def __init__(self, device: str = "cpu") -> None:
        torch.device(device)  # which must be one of torch's, as for spandrel

    def load_from_file(self, file: str) -> "Network":
        if self.fault:
            raise RuntimeError(self.fault)
        return self

    def eval(self) -> "Network":
        return self

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[-2:]
        if width * height > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 64 MiB")
        return pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> type[Network]:
    library = types.ModuleType("spandrel")
    kind = type("Fresh", (Network,), {})
    library.__dict__.update(
        ImageModelDescriptor=kind, ModelLoader=kind, UnsupportedModelError=ValueError
    )
    monkeypatch.setitem(sys.modules, "spandrel", library)
    _loaded.cache_clear()
    return kind


def test_a_network_enlarges_in_tiles_that_are_as_few_as_can_be(
    network: type[Network], tmp_path: Path
) -> None:
    (tmp_path / "twice").touch()
    enlarge = upscaler_of(tmp_path / "twice", "server")  # of an engine on no device of ours
    image = Image.effect_noise((520, 256), 60).convert("RGB")
    expected = image.resize((1040, 512), Image.Resampling.NEAREST).tobytes()
    calls: list[None] = []
    assert enlarge(image, lambda: calls.append(None)).tobytes() == expected
    assert len(calls) == 3  # 174 pixels or less, and 16 around
    network.room = 100 * 100
    assert enlarge(image, lambda: calls.append(None)).tobytes() == expected
    network.room = 10
    with pytest.raises(OutOfMemory, match="64 MiB"):
        enlarge(image, lambda: calls.append(None))


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("CUDA out of memory", OutOfMemory, "out of memory"),
        ("CUDA error: an illegal memory access was encountered", RuntimeError, "illegal"),
        ("no such layer", SteadyError, "not supported: no such layer"),
    ],
)
def test_the_fault_of_a_device_is_not_told_of_an_upscaler_s_file(
    network: type[Network], tmp_path: Path, fault: str, kind: type[Exception], words: str
) -> None:
    (tmp_path / "twice").touch()
    network.fault = fault
    with pytest.raises(kind, match=words):
        upscaler_of(tmp_path / "twice", "cpu")


def test_larger_pictures_are_made_once_whatever_kills_the_watcher(tracing: Root) -> None:
    tracing.drop("larger.yaml", LARGER)
    for point in ("dispatched", "picture_received", "linked", "completed", "linked"):
        tracing.watch(point=point, once=True).wait(60)
    tracing.finish()
    assert tracing.states() == ["completed"] * 4
    assert len(list((tracing.folder / "outputs").rglob("*.png"))) == 4
    small = picture(tracing, "small")
    for name, side in (("plain", 128), ("tiled", 256)):
        # this engine changes nothing: the tiles put together are the enlarged picture
        expected = small.resize((side, side), Image.Resampling.LANCZOS)
        assert picture(tracing, name).tobytes() == expected.tobytes()
    assert picture(tracing, "both").size == (96, 96)
    jobs = {job["image_name"]: job for job in tracing.jobs()}
    assert [jobs[name]["forwards"] for name in ("small", "plain", "tiled")] == [2, 1, 9 * 2]
    recipe = read_recipe((tracing.folder / "outputs" / jobs["tiled"]["path"]).read_bytes())
    assert recipe is not None
    # what the engine really did: this one knows no strength
    assert (recipe["size"], recipe["forwards"]) == ([256, 256], 9 * 4)
    assert recipe["request"]["upscale"]["tile"] == 128
    assert recipe["request"]["width"] == 64


def test_any_picture_is_made_larger_from_its_page(tmp_path: Any) -> None:
    with house(tmp_path / "root", engine="engines:Tracing") as here:
        here.root.drop("fox.yaml", "{prompt: a fox, name: fox, steps: 2}")
        [job] = until(lambda: [j for j in here.root.jobs() if j["state"] == "completed"], 30)

        def post(job_id: str) -> str:
            address = f"{here.url}/jobs/{job_id}/again?larger=true"
            with urllib.request.urlopen(urllib.request.Request(address, method="POST")) as got:
                return str(json.loads(got.read())["job_id"])

        def larger(job_id: str) -> dict[str, Any]:
            with urllib.request.urlopen(f"{here.url}/jobs/{job_id}") as got:
                return dict(json.loads(got.read()))

        twice = post(job["id"])
        done = until(lambda: (j := larger(twice))["state"] == "completed" and j, 30)
        assert (done["width"], done["final_size"]) == (64, "128x128")
        assert done["upscale"]["method"] == "refine"
        again = post(twice)
        done = until(lambda: (j := larger(again))["state"] == "completed" and j, 30)
        assert (done["width"], done["final_size"]) == (128, "256x256")
