"""Half-made pictures: right enough, drawn only for those who look, and never another's."""

import base64
import io
import statistics
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from conftest import until
from doors import Bench
from engines import a_job
from PIL import Image
from test_redraw import HOUSE, decibels
from test_zimage import STARTER, ask

from watcher import live, wire
from watcher.engine import EngineSettings, Preview
from watcher.engines.preview import ENOUGH, PreviewMap
from watcher.engines.zimage import ZImage
from watcher.executor import Picture, Previewed, Started, WorkerSpec
from watcher.executor.local import LocalExecutor
from watcher.previews import Previews

WORDS = ("a red house by the sea", "a green tree on a hill", "a yellow boat", "a blue bird")


def loaded(keep: Path | None = None) -> ZImage:
    engine = ZImage(EngineSettings(str(STARTER), "cpu", options={"warm_up": False}, keep=keep))
    engine.load()
    return engine


def grown(engine: ZImage, prompt: str, seed: int) -> tuple[Image.Image, list[Image.Image | None]]:
    """The picture, and its preview at each step."""
    seen: list[Image.Image | None] = []

    def report(done: int, total: int, preview: Preview = None) -> None:
        seen.append(preview() if callable(preview) else None)

    return engine.generate(ask(prompt, size="128x128", seed=seed), report).image, seen


def unseen(done: int, total: int, preview: Preview = None) -> None:
    """Nobody looks."""


def test_previews_are_like_the_picture_and_change_nothing(tmp_path: Path) -> None:
    engine = loaded(tmp_path)
    plain = [
        engine.generate(ask(prompt, size="128x128", seed=i), unseen).image
        for i, prompt in enumerate(WORDS)
    ]
    assert engine.counters["previews"] == 0  # nobody looked: nothing was drawn
    assert len(WORDS) > ENOUGH
    for again in (engine, loaded(tmp_path)):  # the second knows from the file
        likeness = []
        for i, prompt in enumerate(WORDS):
            image, seen = grown(again, prompt, i)
            assert image.tobytes() == plain[i].tobytes()
            assert seen[0] is None
            small = image.resize((16, 16), Image.Resampling.BOX)
            likeness += [decibels(each, small) for each in seen[2:] if each is not None]
        assert len(likeness) == 6 * len(WORDS)
        assert statistics.median(likeness) >= 18
    [kept] = tmp_path.iterdir()
    kept.write_text("{")
    assert grown(loaded(tmp_path), HOUSE, 1)[1] == [None] * 8  # anew, from its own pictures


class OnApple(torch.Tensor):
    """A tensor that lies on an Apple chip, which has no numbers of 64 bits."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # as torch calls it
        if func is torch.Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        made = super().__torch_function__(func, types, args, kwargs or {})
        return made.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else made


def test_a_preview_needs_no_numbers_that_a_chip_has_not() -> None:
    seen = PreviewMap(16, None, "any")
    latents = torch.randn(1, 16, 8, 8).as_subclass(OnApple)
    for _ in range(ENOUGH):
        seen.learn(latents, Image.new("RGB", (64, 64), "teal"))
    drawn = seen.draw(latents)
    assert drawn is not None and drawn.size == (8, 8)


def test_a_masked_picture_is_previewed_with_what_stays() -> None:
    engine = loaded()
    for i, prompt in enumerate(WORDS):
        image = engine.generate(ask(prompt, size="128x128", seed=i), unseen).image
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (64, 0, 128, 128))
    request = ask(HOUSE, size="128x128").model_copy(
        update={"image": image, "mask": mask, "strength": 1.0}
    )
    seen: list[Any] = []
    engine.generate(request, lambda d, t, p=None: seen.append(p and p()))
    left = (0, 0, 7, 16)
    assert (
        decibels(seen[1].crop(left), image.resize((16, 16), Image.Resampling.BOX).crop(left)) > 18
    )


def test_only_those_who_look_are_shown_and_at_most_twice_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    log = tmp_path / "log"
    spec = WorkerSpec("engines:Scripted", "none", options={"log": str(log)})
    executor = LocalExecutor(spec, launch=forked.launch)
    executor.start()
    try:
        for number, looks in ((1, False), (2, True)):
            until(lambda: [executor.events(0.05)] and executor.wants(), 60)
            request = ask("a fox grows sleep=0.2 steps=10")
            executor.send(0, a_job(str(number), request), {})
            found: list[Any] = []
            while not any(isinstance(event, Picture) for event in found):
                found += executor.events(1)
                if looks and any(isinstance(event, Started) for event in found):
                    executor.look(str(number))
            shown = [event for event in found if isinstance(event, Previewed)]
            assert (not shown) != looks
            assert len(shown) <= 5
            assert all(event.job_id == str(number) for event in shown)
        levels = [
            Image.open(io.BytesIO(event.jpeg)).convert("L").getextrema()[1] for event in shown
        ]
        assert levels == sorted(levels) and len(levels) >= 2
        assert log.read_text().count('"preview"') == len(shown)
    finally:
        executor.stop(1)


@pytest.mark.parametrize(
    "jpeg", ["", "%%%%", 7, None, base64.b64encode(bytes(wire.MAX_PREVIEW + 1)).decode()]
)
def test_what_is_no_small_picture_costs_the_worker(jpeg: Any) -> None:
    with pytest.raises(wire.BadFrame):
        wire.heard({"type": "preview", "job_id": "a", "attempt": 1, "jpeg": jpeg})


def test_a_preview_is_there_while_its_job_runs(bench: Bench) -> None:
    answer = bench.client.post("/jobs", json={"prompt": "a fox"})
    job_id = answer.json()["job_id"]
    bench.watcher.take_in()
    address = f"/jobs/{job_id}/preview"
    assert bench.client.get(address).json()["code"] == "no_preview"
    job = bench.watcher.claim()
    bench.config.state.mkdir(exist_ok=True)
    previews = Previews(bench.config.state)
    previews.begin()
    entry = {"job_id": job_id, "attempt": job.attempt, "slot": 0, "step": 3, "steps": 8}

    def pulse(**more: Any) -> None:
        live.write(bench.config.state, {"state": "ready", "running": [entry | more], "workers": []})

    pulse(preview=None)
    until(lambda: bench.client.get(address) and previews.looked_at() == {job_id})
    assert bench.client.get(address).status_code == 404
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(jpeg, "JPEG")
    previews.put(job_id, jpeg.getvalue())
    pulse(preview=3)
    got = until(lambda: (a := bench.client.get(address)).status_code == 200 and a)
    assert got.headers["content-type"] == "image/jpeg" and got.content == jpeg.getvalue()
    previews.end(job_id)
    live.write(bench.config.state, {"state": "ready", "running": [], "workers": []})
    until(lambda: bench.client.get(address).status_code == 404)
    assert bench.client.get("/jobs/nothing/preview").json()["code"] == "job_not_found"
