"""The pictures of the page in docs/screens/: made by the real service with the starter model.

    python docs/screens.py [--keep FOLDER] [--only NAME] [--browser /usr/bin/chromium]

Starts a service on a root of its own (``--keep`` uses the folder again, with its pictures),
drops files as a person would, and takes every page in light, dark and on a phone. Fonts are
the system's: with Inter or another interface font installed the pictures look as on a desktop.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
SCREENS = HERE / "screens"
SIZE = {"width": 1280, "height": 860}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}

SETTINGS = {
    "model": "starter",
    "settle_seconds": 0.2,
    "job_timeout_seconds": 25,
}

PROMPTS = """\
defaults: {num_inference_steps: 9}
jobs:
  - {prompt: a red boat on a lake with snowy mountains at sunset, width: 384, height: 256}
  - {prompt: a white lighthouse in the hills at night with stars, width: 256, height: 384}
  - {prompt: a grey hot air balloon flying over snowy mountains in the morning, width: 256, height: 256}
  - {prompt: a red house in the hills in the snow, width: 384, height: 256}
  - {prompt: two red butterflies flying over a lake at noon, width: 256, height: 256}
  - {prompt: a green cactus in the desert at sunset, width: 256, height: 384}
  - {prompt: a white rabbit in the hills in the morning, width: 256, height: 256}
  - {prompt: a sunrise over tall pine trees, width: 512, height: 256}
  - {prompt: a yellow car in a city at night, width: 384, height: 256}
  - {prompt: a palm tree on a beach at sunset, width: 256, height: 384}
  - {prompt: a storm over the sea with a lightning bolt, width: 384, height: 256}
  - {prompt: a red mushroom in the hills with clouds, width: 256, height: 256}
  - {prompt: a blue boat on the sea at night with the moon, width: 384, height: 256}
  - {prompt: snow capped mountains at night with the moon, width: 512, height: 256}
  - {prompt: a purple flower on a yellow background, width: 256, height: 256}
  - {prompt: an orange robot in the hills by day, width: 256, height: 384}
"""
MATRIX = """\
matrix:
  thing: [red boat on a lake, white house in the hills, green tree in the hills]
  time: [in the morning, at sunset, at night, in the snow]
jobs: ["a {thing} {time}"]
"""
REFUSED = "prompt: a cat: the movie\nsize: 256x256\n"
BULK = "prompt,seed\n" + "".join(f"a {c} balloon over the mountains,{n}\n" for n, c in enumerate(
    ["red", "blue", "white", "black", "yellow", "green"] * 12))  # fmt: skip


class Service:
    """``steady serve`` on a root of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inbox = root / "inbox"
        root.mkdir(parents=True, exist_ok=True)
        (root / "config.yaml").write_text(json.dumps(SETTINGS))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = (root / "service.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from watcher.cli import main; main()", "serve"],
            cwd=root,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | {"PYTHONPATH": str(HERE.parent), "STEADY_PORT": str(port)},
        )
        wait(self._answers, "the service answers", 60)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("/health")["watcher"]["alive"])
        return False

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or b"{}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        self._log.close()


def wait(condition: Callable[[], Any], what: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.2)


class Camera:
    """Takes a page as it is seen: light, dark, phone."""

    def __init__(self, browser: Browser, url: str, only: str | None) -> None:
        self._only = only
        self._url = url
        self._contexts = {
            "light": browser.new_context(viewport=SIZE, color_scheme="light"),
            "dark": browser.new_context(viewport=SIZE, color_scheme="dark"),
            "phone": browser.new_context(color_scheme="light", **PHONE),
        }

    def take(self, name: str, path: str, act: Callable[[Page], Any] = lambda page: None) -> None:
        if self._only and self._only not in name:
            return
        for kind, context in self._contexts.items():
            page = context.new_page()
            page.goto(self._url + path)
            page.wait_for_load_state("load")
            act(page)
            page.wait_for_timeout(1500)
            data = page.screenshot()
            page.close()
            image = Image.open(io.BytesIO(data)).convert("RGB")
            palette = image.quantize(160, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
            palette.save(SCREENS / f"{name}-{kind}.png", optimize=True)


@contextlib.contextmanager
def service(root: Path) -> Iterator[Service]:
    made = Service(root)
    try:
        yield made
    finally:
        made.stop()


def states(given: Service) -> dict[str, int]:
    return dict(given.ask("/queue")["counts"])


def idle(given: Service) -> bool:
    counts = states(given)
    return counts["completed"] > 0 and counts["queued"] + counts["generating"] == 0


def prepare(given: Service) -> None:
    """A day's work: files dropped, one refused, one job that takes too long."""
    for name, text in (
        ("sketches.yaml", PROMPTS),
        ("seasons.yaml", MATRIX),
        ("note.yaml", REFUSED),
    ):
        (given.inbox / name).write_text(text)
    wait(lambda: states(given)["completed"], "the first picture")
    wait(lambda: idle(given), "the files are done")
    pictures = given.ask("/jobs?state=completed&limit=100")["jobs"]
    for n, job in enumerate(pictures):
        if n % 3 == 1:
            given.ask(f"/jobs/{job['id']}", "PATCH", {"rating": (5, 3, 4, -1)[n % 4]})
    given.ask("/jobs", "POST", {"prompt": "a city by the sea in every detail", "width": 1024,
                                "height": 1024, "num_inference_steps": 100})  # fmt: skip
    wait(lambda: states(given)["failed"] and idle(given), "the long job failed")


def shoot(given: Service, camera: Camera) -> None:
    """Every page, while a table runs."""
    slow = {"width": 384, "height": 384, "num_inference_steps": 100}
    for prompt in ("a sailing boat under the moon", "a lighthouse at sunset"):
        given.ask("/jobs", "POST", {"prompt": prompt, **slow})
    (given.inbox / "birds.csv").write_text(BULK)
    wait(lambda: states(given)["queued"] > 50 and states(given)["generating"], "it runs")
    time.sleep(3)  # the page looks up what waits every two seconds: its estimate knows of all
    camera.take("now", "/")
    camera.take("queue", "/queue")
    batches = given.ask("/batches")["batches"]
    ticket = {b["name"]: b["ticket"] for b in reversed(batches)}  # the newest of a name
    camera.take("preview", "/", dropped)
    camera.take("pictures", f"/pictures?batch={ticket['sketches.yaml']}")
    camera.take("chosen", f"/pictures?batch={ticket['sketches.yaml']}", choose_two)
    camera.take("compare", f"/pictures?batch={ticket['sketches.yaml']}", compare_two)
    camera.take("seasons", f"/batches/{ticket['seasons.yaml']}")
    done = given.ask(f"/jobs?state=completed&batch={ticket['sketches.yaml']}")["jobs"]
    job = next(j for j in done if "balloon" in j["prompt"])
    camera.take("job", f"/jobs/{job['id']}")
    camera.take(
        "large",
        f"/pictures?batch={ticket['sketches.yaml']}",
        lambda page: page.locator(".shot").nth(3).click(),
    )
    camera.take("batches", "/batches")
    camera.take("system", "/system")
    birds = ticket["birds.csv"]
    wait(lambda: given.ask(f"/batches/{birds}")["progress"]["completed"] >= 14, "some birds")
    camera.take("batch", f"/batches/{birds}")
    camera.take("lost", "/nowhere")


def dropped(page: Page) -> None:
    page.set_input_files("#file", files=[
        {"name": "animals.yaml", "mimeType": "", "buffer": MATRIX.encode()},
        {"name": "movie.yaml", "mimeType": "", "buffer": REFUSED.encode()},
    ])  # fmt: skip
    page.locator("#preview .wrong").first.wait_for()


def choose_two(page: Page) -> None:
    for n in (1, 2):
        page.locator(".pick input").nth(n).check()


def compare_two(page: Page) -> None:
    choose_two(page)
    page.locator("#chosen-compare").click()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="a folder to work in, and to use again")
    parser.add_argument("--only", help="only the pages whose name holds this")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    chosen = parser.parse_args()
    SCREENS.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        root = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(
            executable_path=chosen.browser,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        stack.callback(browser.close)
        with service(root / "empty") as given:
            Camera(browser, given.url, chosen.only).take("empty", "/")
        given = stack.enter_context(service(root / "full"))
        if not states(given)["completed"]:
            prepare(given)
        wait(lambda: idle(given), "what was left is done")
        shoot(given, Camera(browser, given.url, chosen.only))
    total = sum(path.stat().st_size for path in SCREENS.glob("*.png"))
    print(f"{len(list(SCREENS.glob('*.png')))} pictures, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
