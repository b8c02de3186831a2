"""The page in a real browser: what people see and press, on real processes.

Two kinds of service. ``house``: api and watcher with the scripted engine, for what happens
over time. ``Stage``: the api alone on a record made by hand, for how each state looks.
"""

import base64
import http.client
import io
import json
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from conftest import until
from doors import Running, Watcher, running
from eyes import LOOKS, Eyes
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from roots import Root

from api.page.paint import STATIC
from watcher.config import Config
from watcher.jobs import Job
from watcher.pictures.outputs import Outputs, thumbnail_of
from watcher.store import JobStore

#: Of axe: all of them, with those that it leaves out by itself.
RULES = {
    "resultTypes": ["violations"],
    "rules": {
        name: {"enabled": True}
        for name in ("target-size", "identical-links-same-purpose", "color-contrast-enhanced")
    },
}
HOSTILE = "<img src=x onerror=window.pwned=1>\u202eevil\"'</title><script>window.pwned=1</script>"


class House:
    """Api and watcher on one root."""

    def __init__(self, root: Root, service: Running) -> None:
        self.root = root
        self.service = service
        self.watcher = root.watch()

    def post(self, path: str, body: Any = None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=20)
        data = None if body is None else json.dumps(body)
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status < 300, answer.read()
        connection.close()

    def job(self, prompt: str) -> dict[str, Any]:
        return until(
            lambda: next((j for j in self.root.jobs() if j["prompt"] == prompt), None),
            20, prompt, pause=0.05,
        )  # fmt: skip

    def done(self, prompt: str, state: str = "completed") -> dict[str, Any]:
        until(lambda: self.job(prompt)["state"] == state, 30, f"{prompt}: {state}", pause=0.05)
        return self.job(prompt)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = Root(tmp_path_factory.mktemp("house") / "root")
    with running(root.folder) as service:
        yield House(root, service)
    root.close()


@pytest.fixture
def eyes(browser: Browser, house: House) -> Iterator[Eyes]:
    house.post("/queue/resume")  # whatever the test before left
    house.post("/attention/dismiss", {"all": True})
    seeing = Eyes(browser, house.service.url, **LOOKS["light"])
    yield seeing
    seeing.close()


def drop(page: Page, *files: tuple[str, bytes]) -> None:
    """Let go of files over the page."""
    told = [[name, base64.b64encode(data).decode()] for name, data in files]
    carried = page.evaluate_handle(
        """files => { const carried = new DataTransfer();
            for (const [name, data] of files) carried.items.add(
                new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name));
            return carried; }""",
        told,
    )
    page.dispatch_event("#main", "drop", {"dataTransfer": carried})


def seen(page: Page, what: str, *given: Any) -> None:
    """Wait until ``what`` holds in the page (its policy forbids Playwright's own waiting)."""
    until(lambda: page.evaluate(what, *given), what=what, pause=0.05)


def submit(page: Page, prompt: str) -> None:
    page.locator("#prompt").fill(prompt)
    page.wait_for_load_state()  # before, nothing listens to the key
    page.locator("#prompt").press("Enter")
    expect(page.locator(".toast").last).to_contain_text("Queued")


def row(page: Page, kind: str, job: dict[str, Any] | Job) -> Any:
    return page.locator(f"#{kind}-{job['id'] if isinstance(job, dict) else job.id}")


# -- what happens over time


def test_a_prompt_becomes_a_picture_while_one_looks(eyes: Eyes, house: House):
    page = eyes.open()
    submit(page, "a red fox sleep=0.15")
    job = house.job("a red fox sleep=0.15")
    expect(row(page, "r", job).locator("[data-steps]")).to_have_text(re.compile(r"step [2-8] of 8"))
    seen(page, "/^[1-9][0-9]?%/.test(document.title)")
    card = row(page, "c", job)
    expect(card.locator("img")).to_have_attribute("alt", "a red fox sleep=0.15")
    seen(page, "id => document.querySelector(`#c-${id} img`).naturalWidth > 0", job["id"])
    expect(page).to_have_title("SteadyDiffusion")
    expect(row(page, "r", job)).to_have_count(0)


def test_size_steps_seed_and_count_are_folded_away_and_heeded(eyes: Eyes, house: House):
    page = eyes.open()
    expect(page.locator("[name=seed]")).to_be_hidden()
    page.locator("#new summary").first.click()
    page.locator("#size").select_option("")
    page.locator("[name=width]").fill("96")
    page.locator("[name=height]").fill("128")
    page.locator("[name=seed]").fill("9007199254740993")  # one more than a double can tell
    page.locator("[name=count]").fill("2")
    submit(page, "a pair")
    jobs = until(lambda: [j for j in house.root.jobs() if j["prompt"] == "a pair"], what="both")
    seeds = [house_request(j)["seed"] for j in jobs]
    assert seeds == [9007199254740993, 9007199254740994]
    assert (house_request(jobs[0])["width"], house_request(jobs[0])["height"]) == (96, 128)


def house_request(job: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(job["request"]))


def test_a_dropped_file_is_shown_before_it_is_queued(eyes: Eyes, house: House):
    eyes.expected = ["422"]  # the browser itself notes the refusal of the second file
    page = eyes.open()
    good = (
        b"defaults: {width: 64, height: 64}\n"
        b"jobs: [one drop, {prompt: two drops, seed: 9007199254740993}, three drops]\n"
    )
    drop(page, ("cats.yaml", good), ("movie.yaml", b"prompt: a cat: the movie\n"))
    shown = page.locator("#preview")
    expect(shown).to_contain_text("3 pictures")
    expect(shown.locator("tr", has_text="two drops")).to_contain_text("seed 9007199254740993")
    expect(shown.locator("tr", has_text="one drop")).not_to_contain_text("seed")
    expect(shown.locator(".wrong")).to_contain_text("colon")
    expect(shown.locator(".place")).to_have_text("1: prompt: a cat: the movie")
    assert not [j for j in house.root.jobs() if j["prompt"].endswith("drops")]
    page.get_by_role("button", name="Queue 3 pictures").click()
    for prompt in ("one drop", "two drops", "three drops"):
        expect(row(page, "c", house.done(prompt))).to_be_visible()
    ticket = house.job("one drop")["ticket"]
    page.goto(f"/batches/{ticket}")
    expect(page.get_by_role("heading", level=1)).to_have_text("cats")
    expect(page.locator("#sheet .card")).to_have_count(3)


def test_a_dropped_folder_is_read(eyes: Eyes, house: House, tmp_path: Path):
    """Let go of as a person does: only the browser itself can make a folder's entry."""
    (tmp_path / "my jobs" / "deeper").mkdir(parents=True)
    (tmp_path / "my jobs" / "deeper" / "inner.yaml").write_text(
        "prompt: inside a folder\nwidth: 64\nheight: 64\n"
    )
    (tmp_path / "hollow").mkdir()
    for folder in ("my jobs", "hollow"):
        (tmp_path / folder / ".DS_Store").touch()
    (tmp_path / "beside.yaml").write_text("prompt: beside a folder\nwidth: 64\nheight: 64\n")
    page = eyes.open()
    page.evaluate("""() => { const { prototype } = DataTransferItem, own = prototype.webkitGetAsEntry;
        prototype.webkitGetAsEntry = function () {
            const entry = own.call(this), closed = (_, fail) => fail(new DOMException("closed"));
            if (entry.isFile) Object.getPrototypeOf(entry).file = closed;
            return entry;
        }; }""")
    wrong = page.locator("#preview .wrong")
    let_go(page, tmp_path / "hollow")
    expect(wrong).to_have_text("Nothing to read is in hollow.")
    let_go(page, tmp_path / "my jobs", tmp_path / "beside.yaml")
    expect(wrong).to_contain_text("the browser cannot read it: /my jobs/deeper/inner.yaml.")
    page = eyes.open()
    let_go(page, tmp_path / "my jobs", tmp_path / "beside.yaml")
    page.get_by_role("button", name="Queue 2 pictures").click()
    expect(page.locator("#preview .wrong")).to_have_count(0)
    for prompt in ("beside a folder", "inside a folder"):
        house.done(prompt)


def let_go(page: Page, *paths: Path) -> None:
    """Drag these from outside over the page, and let go."""
    hand = page.context.new_cdp_session(page)
    for step in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [*map(str, paths)], "dragOperationsMask": 1}
        hand.send("Input.dispatchDragEvent", {"type": step, "x": 300, "y": 300, "data": data})


def test_a_dropped_picture_is_made_again(eyes: Eyes, house: House):
    page = eyes.open()
    submit(page, "to be dropped")
    first = house.done("to be dropped")
    picture = (house.root.folder / "outputs" / first["path"]).read_bytes()
    drop(page, ("picture.png", picture))
    expect(page.locator("#preview td").first).to_have_text("to be dropped")
    page.get_by_role("button", name="Queue 1 picture").click()

    def both() -> list[dict[str, Any]]:
        made = [j for j in house.root.jobs() if j["prompt"] == "to be dropped"]
        return made if [j["state"] for j in made] == ["completed"] * 2 else []

    twice = until(both, 30, "made twice")
    assert twice[0]["sha256"] != twice[1]["sha256"]  # each carries its own name
    assert house_request(twice[0])["seed"] == house_request(twice[1])["seed"]


def test_a_running_job_is_cancelled_and_the_cancel_undone(eyes: Eyes, house: House):
    page = eyes.open()
    prompt = "a long one sleep=0.3"
    submit(page, prompt)
    job = house.job(prompt)
    row(page, "r", job).get_by_role("button", name="Cancel").click()
    house.done(prompt, "cancelled")
    expect(row(page, "r", job)).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    house.done(prompt)


def test_a_failed_job_says_why_and_is_retried(eyes: Eyes, house: House):
    page = eyes.open()
    prompt = "out of luck oom once"
    submit(page, prompt)
    job = house.done(prompt, "failed")
    entry = row(page, "f", job)
    expect(page.locator("#why-out_of_memory")).to_contain_text("Ask for a smaller picture.")
    expect(entry.get_by_role("button", name="Run at 32 × 32")).to_be_visible()
    entry.get_by_role("button", name="Retry").click()
    expect(entry).to_have_count(0)
    expect(row(page, "c", house.done(prompt))).to_be_visible()


def test_a_failed_job_is_run_smaller_or_dismissed(eyes: Eyes, house: House):
    page = eyes.open()
    prompt = "too big oom once"
    submit(page, prompt)
    job = house.done(prompt, "failed")
    row(page, "f", job).get_by_role("button", name="Run at 32 × 32").click()
    expect(row(page, "f", job)).to_have_count(0)
    assert house.root.jobs()[-1]["prompt"] == prompt or until(
        lambda: house.root.jobs()[-1]["prompt"] == prompt, 20, "a smaller one"
    )
    until(lambda: house_request(house.root.jobs()[-1])["width"] == 32, what="32 wide")
    page.reload()
    expect(row(page, "f", job)).to_have_count(0)


def test_a_refused_file_shows_its_line_and_is_dismissed(eyes: Eyes, house: House):
    page = eyes.open()
    house.root.drop("typo.yaml", "prompt: a fox\nwidht: 640\n")
    entry = page.locator("#refused li", has_text="typo.yaml")
    expect(entry).to_contain_text("widht is not known. Did you mean width?")
    entry.get_by_text("Show where").click()
    expect(entry).to_contain_text("Line 2, column 1.")
    entry.get_by_role("button", name="Dismiss").click()
    expect(entry).to_have_count(0)


def test_run_again_from_the_jobs_own_page(eyes: Eyes, house: House):
    page = eyes.open()
    submit(page, "encore")
    job = house.done("encore")
    page.goto(f"/jobs/{job['id']}")
    expect(page.locator("#facts")).to_contain_text(str(house_request(job)["seed"]))
    expect(page.locator("#facts")).to_contain_text("scripted")
    page.get_by_role("button", name="Same seed").click()
    until(lambda: len([j for j in house.root.jobs() if j["prompt"] == "encore"]) == 2, what="two")
    page.get_by_role("button", name="Run again, new seed").click()
    three = until(
        lambda: (all_ := [j for j in house.root.jobs() if j["prompt"] == "encore"])[2:] and all_,
        30,
        "three of them",
    )
    seeds = [house_request(j)["seed"] for j in three]
    assert seeds[0] == seeds[1] != seeds[2]
    page.locator("#as-yaml summary").click()
    assert 'prompt: "encore"' in page.locator("#yaml").inner_text()
    page.get_by_role("link", name="Edit and run").click()
    expect(page.locator("#prompt")).to_have_value("encore")


def test_a_reload_in_the_middle_loses_nothing(eyes: Eyes, house: House):
    page = eyes.open()
    prompt = "seen twice sleep=0.3"
    submit(page, prompt)
    job = house.job(prompt)
    expect(row(page, "r", job).locator("[data-steps]")).to_contain_text("step")
    page.reload()
    expect(row(page, "r", job).get_by_role("link", name=prompt)).to_be_visible()
    house.done(prompt)
    expect(row(page, "c", job)).to_be_visible()


def test_a_killed_watcher_is_seen_to_go_on(eyes: Eyes, house: House):
    page = eyes.open()
    prompt = "survives sleep=0.25"
    submit(page, prompt)
    job = house.job(prompt)
    expect(row(page, "r", job).locator("[data-steps]")).to_contain_text(re.compile("step [1-7]"))
    house.watcher.send_signal(signal.SIGKILL)
    house.watcher.wait()
    house.watcher = house.root.watch()
    expect(row(page, "r", job)).to_contain_text("begun again: the service died")
    house.done(prompt)
    expect(row(page, "c", job)).to_be_visible()
    assert house.job(prompt)["attempt"] == 2


def test_by_keys_alone(eyes: Eyes, house: House):
    page = eyes.open()
    for prompt in ("key one", "key two"):
        submit(page, prompt)
        expect(row(page, "c", house.done(prompt))).to_be_visible()
    page.locator("#latest-title").click()  # out of the prompt, where keys are letters
    press = page.keyboard.press
    press("p")
    expect(page.locator("#t-paused")).to_be_visible()
    press("n")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("typed pxr?")  # keys that mean something elsewhere
    press("Enter")
    job = house.job("typed pxr?")
    expect(row(page, "q", job)).to_be_visible()
    press("Tab")
    page.locator("#latest-title").click()
    press("j")
    expect(row(page, "q", job).locator("a.open")).to_be_focused()
    press("x")
    house.done("typed pxr?", "cancelled")
    press("p")
    expect(page.locator("#t-paused")).to_have_count(0)
    press("?")
    expect(page.locator("#help")).to_be_visible()
    press("Escape")
    page.goto("/pictures")
    press("j")
    focused = page.evaluate("document.activeElement.closest('.card').id")
    press("Enter")
    expect(page.locator("#box")).to_be_visible()
    press("ArrowRight")
    press("Escape")
    # The focus goes to the picture seen last.
    seen(
        page,
        "id => ![id, undefined].includes(document.activeElement.closest('.card')?.id)",
        focused,
    )
    press("k")
    assert page.evaluate("document.activeElement.closest('.card').id") == focused
    press("/")
    page.keyboard.type("encore")
    press("Enter")
    expect(page).to_have_url(re.compile(r"/pictures\?text=encore"))


def test_focus_stays_where_it_is_when_rows_change(eyes: Eyes, house: House):
    page = eyes.open()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#t-paused")).to_be_visible()
    for prompt in ("waits first", "waits second", "waits third"):
        submit(page, prompt)
    third = house.job("waits third")
    link = row(page, "q", third).locator("a.open")
    link.focus()
    row(page, "q", third).locator(".menu summary").click()
    row(page, "q", third).get_by_role("button", name="Run next").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#waiting li").first).to_contain_text("waits third")
    link.focus()
    first = row(page, "q", house.job("waits first"))
    page.evaluate("id => fetch('/jobs/' + id, {method: 'DELETE'})", house.job("waits first")["id"])
    expect(first).to_have_count(0)
    expect(link).to_be_focused()
    # … and moves to its neighbour when its own row goes.
    page.evaluate("id => fetch('/jobs/' + id, {method: 'DELETE'})", third["id"])
    expect(row(page, "q", house.job("waits second")).locator("a.open")).to_be_focused()
    page.locator("#pause").click()
    house.done("waits second")


def test_chosen_pictures_are_taken_home_run_again_and_deleted(eyes: Eyes, house: House):
    page = eyes.open()
    for prompt in ("keep one", "keep two"):
        submit(page, prompt)
    jobs = [house.done("keep one"), house.done("keep two")]
    page.goto("/pictures?text=keep")
    for job in jobs:
        row(page, "c", job).get_by_role("checkbox").check()
    expect(page.locator("#chosen-count")).to_have_text("2 chosen")
    with page.expect_download() as download:
        page.locator("#chosen-zip").click()
    archive = subprocess.run(
        ["python3", "-m", "zipfile", "-l", str(download.value.path())],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert archive.count(".png") == 2
    page.locator("#chosen").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep").click()
    expect(row(page, "c", jobs[0])).to_be_visible()
    page.locator("#chosen").get_by_role("button", name="Delete").click()
    page.locator("#sure-yes").click()
    expect(page.locator(".card")).to_have_count(0)
    assert not any((house.root.folder / "outputs" / job["path"]).exists() for job in jobs)


def test_twelve_tabs_share_one_stream(eyes: Eyes, house: House):
    streams: list[Page] = []  # who opened one; again with previews, while one looks
    eyes.context.on(
        "request",
        lambda r: (
            streams.append(r.frame.page) if r.url.partition("?")[0].endswith("/events") else None
        ),
    )
    tabs = [eyes.open()]
    for _ in range(11):
        tabs.append(eyes.beside(tabs[0]))
    until(lambda: tabs[0].evaluate("1") and streams, what="a stream")
    submit(tabs[5], "seen by all")
    job = house.done("seen by all")
    for tab in tabs:
        expect(row(tab, "c", job)).to_be_visible()
    assert set(streams) == {tabs[0]}
    tabs[0].close()  # whoever came first leads
    submit(tabs[5], "seen by the rest")
    job = house.done("seen by the rest")
    for tab in tabs[1:]:
        expect(row(tab, "c", job)).to_be_visible()
    assert len(set(streams)) == 2


# -- how each state looks


class Stage:
    """The api on a record made by hand; the pulse says what the test wants.

    ``settings``: what config.yaml says.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir()
        (folder / "config.yaml").write_text(json.dumps(settings))
        self.config = Config.load(folder, model="starter")
        self.outputs = Outputs(self.config.outputs)
        self.outputs.open()
        self.config.inbox.mkdir()
        self.store = JobStore(self.config.database_url, synchronous="normal")
        self.watcher = Watcher(self.config, self.store)
        self._says: dict[str, Any] = {}
        self._saying = threading.Lock()  #: they share one temporary file
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat)
        self.tickets = iter(f"00000000-0000-4000-8000-{n:012d}" for n in range(1000))

    def add(self, text: str, name: str = "dropped.yaml") -> list[str]:
        return self.watcher.drop(text, next(self.tickets), name)

    def finish(self, job: Job | None = None, **facts: Any) -> Job:
        job = job or self.watcher.claim()
        file = io.BytesIO()
        colour = tuple(job.id.encode()[-3:])
        picture = Image.new("RGB", (64, 64), colour)
        picture.save(file, "PNG")
        small = self.outputs.thumbnail(job)
        small.parent.mkdir(parents=True, exist_ok=True)
        small.write_bytes(thumbnail_of(picture))
        return self.watcher.finish(job, file.getvalue(), **facts)

    def refuse(self, name: str, error: dict[str, Any]) -> str:
        ticket = next(self.tickets)
        self.store.begin_reading(ticket, name=name, suffix=".yaml", source="file")
        self.store.refuse(ticket, error)
        return ticket

    def pulse(self, **members: Any) -> None:
        """What the watcher says from now on, again and again, until ``close``."""
        with self._saying:
            self._says = members
            self.watcher.pulse(**members)
        if not self._heart.is_alive():
            self._heart.start()

    def _beat(self) -> None:
        while not self._stop.wait(1):
            with self._saying:
                self.watcher.pulse(**self._says)

    def close(self) -> None:
        self._stop.set()
        if self._heart.is_alive():
            self._heart.join()
        self.store.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Stage]]:
    made: list[Stage] = []

    def make(name: str) -> Stage:
        made.append(Stage(tmp_path_factory.mktemp(name) / "root"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def empty(stage: Stage) -> list[str]:
    stage.pulse()
    return ["/", "/queue", "/pictures", "/batches", "/system", "/nowhere"]


def busy(stage: Stage) -> list[str]:
    stage.add("jobs: [a fox, an owl, a cat, a boat]\n", "done.yaml")
    done = [stage.finish() for _ in range(4)]
    ids = stage.add(
        "- a {red} fox runs\n" + "- another\n" * 8,
        "a rather long name of a file that came in the night.yaml",
    )
    job = stage.watcher.claim()
    stage.add("prompt: later\nnot_before: 2099-01-01\n", "later.yaml")
    stage.pulse(
        running=[{"job_id": job.id, "attempt": job.attempt, "slot": 0, "step": 3, "steps": 8,
                  "started_at": job.started_at}]
    )  # fmt: skip
    return ["/", "/queue", "/pictures", f"/jobs/{done[0].id}", f"/jobs/{job.id}", f"/jobs/{ids[3]}",
            "/batches", f"/batches/{job.ticket}", "/system"]  # fmt: skip


def failed(stage: Stage) -> list[str]:
    ids = stage.add("- too big\n- too big as well\n- broken\n- never mind\n", "bad.yaml")
    stage.watcher.fail("out_of_memory", "The device ran out of memory at 64 x 64.")
    stage.watcher.fail("out_of_memory", "The device ran out of memory at 64 x 64.")
    stage.watcher.fail("engine_failed", HOSTILE)
    stage.store.cancel(ids[3])
    problem = {"code": "bad_yaml", "message": "A colon.", "line": 1, "column": 14, "value": HOSTILE}
    refused = stage.refuse(
        "movie.yaml",
        {
            "code": "bad_yaml",
            "message": "Line 1: A colon.",
            "remedy": "Quote it.",
            "problems": [problem],
        },
    )
    stage.store.put("paused", {"by": "failures", "reason": "Five in a row.", "since": 1})
    return ["/", f"/jobs/{ids[0]}", f"/jobs/{ids[3]}", f"/batches/{refused}", "/system",
            f"/batches/{stage.store.job(ids[0]).ticket}", "/pictures?state=failed"]  # type: ignore[union-attr]  # fmt: skip


def barriers(page: Page, *tags: str) -> list[Any]:
    """What axe finds on this page, and where; by its rules with one of these ``tags`` alone."""
    if not page.evaluate("'axe' in window"):  # it need be read once by each document
        page.evaluate(AXE_SCRIPT)
    rules = RULES | ({"runOnly": tags} if tags else {})
    found = page.evaluate("rules => axe.run(rules).then(found => found.violations)", rules)
    return [(v["id"], [(n["target"], n["failureSummary"]) for n in v["nodes"]][:3]) for v in found]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("state", "looks"),
    [
        (empty, ["phone"]),
        (busy, ["dark"]),
        (failed, ["light"]),
        *(pytest.param(state, [*LOOKS], marks=pytest.mark.slow) for state in (empty, busy, failed)),
    ],
)
def test_no_barriers_in_any_state(
    state: Callable[[Stage], list[str]],
    looks: list[str],
    browser: Browser,
    stage: Callable[[str], Stage],
):
    """axe finds nothing, nothing sticks out sideways, no console error."""
    made = stage(state.__name__)
    paths = state(made)
    with running(made.config.root) as service:
        for look in looks:
            seeing = Eyes(browser, service.url, **LOOKS[look])
            seeing.expected = ["404"] if "/nowhere" in paths else []
            page = seeing.open("/")
            for path in paths:
                page.goto(path)
                for fold in page.locator("main details").all():
                    fold.evaluate("fold => fold.open = !fold.classList.contains('menu')")
                assert barriers(page) == [], f"{look} {path}"
                wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
                assert wide[0] <= wide[1], f"{look} {path} is {wide[0]} wide"
            seeing.close()


@pytest.mark.timeout(300)
def test_dialogs_have_no_barriers(browser: Browser, stage: Callable[[str], Stage]):
    """All that opens over a page or in it, each seen in every look."""
    made = stage("dialogs")
    busy(made)
    with running(made.config.root) as service:
        seeing = Eyes(browser, service.url, **LOOKS["light"])
        seeing.expected = ["422"]  # a refused dry run
        page = seeing.open("/pictures")
        found: list[Any] = []

        def look(what: str) -> None:
            for name, how in LOOKS.items():
                page.emulate_media(color_scheme=how["color_scheme"])
                page.set_viewport_size(how["viewport"])
                other = ["cat.color"] if name == "dark" else []  # all else is as when it is light
                found.extend((what, name, barrier) for barrier in barriers(page, *other))
                wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
                assert wide[0] <= wide[1], f"{what}, {name}, is {wide[0]} wide"
            page.set_viewport_size(LOOKS["light"]["viewport"])

        page.locator(".shot").first.click()
        seen(page, "document.querySelector('#box-img').naturalWidth > 0")
        page.locator("#box .menu summary").click()
        look("a large picture and what to make of it")
        page.locator("#box [data-close]").click()
        for n in (0, 1):
            page.locator(".pick input").nth(n).check()
        page.locator("#filters").evaluate("fold => fold.open = true")
        page.locator("#chosen .menu summary").click()
        look("filters, and what to make of the chosen")
        page.locator("[data-many=other]").click()
        look("the chosen, another way")
        page.locator("#other button").first.click()
        page.locator("#chosen-compare").click()
        seen(page, "[...document.querySelectorAll('#pair img')].every((i) => i.naturalWidth)")
        look("two side by side")
        page.locator("#pair [data-close]").click()
        page.locator("#chosen .danger").click()
        look("are you sure")
        page.locator("#sure button").first.click()
        drop(page, ("a.yaml", b"- one\n- two\n"), ("movie.yaml", b"prompt: a cat: the movie\n"))
        page.locator("#preview .wrong").first.wait_for()
        look("what files become")
        page.locator("#preview [data-close]").click()
        page.locator("[data-help]").click()
        look("keys")
        page.goto("/")
        page.locator("#from summary").click()
        picture = io.BytesIO()
        Image.new("RGB", (96, 64), "khaki").save(picture, "PNG")
        given = {"name": "a.png", "mimeType": "image/png", "buffer": picture.getvalue()}
        page.locator("#source").set_input_files(given)  # type: ignore[arg-type]
        expect(page.locator("#canvas")).to_be_visible()
        look("a picture to paint on")
        page.goto("/docs")
        look("the API")
        seeing.close()
    assert found == [], "\n".join(map(str, found))


def test_hostile_words_are_words_on_every_page(browser: Browser, stage: Callable[[str], Stage]):
    made = stage("hostile")
    made.pulse(inbox={"watch": "events", "notices": [HOSTILE], "problems": []})
    long = (HOSTILE + " ") * 40
    prompt = json.dumps(HOSTILE)
    ids = made.add(
        f"- {{prompt: {prompt}, label: {prompt}, metadata: {{a: {prompt}}}}}\n"
        f"- {{prompt: {json.dumps(long[:4000])}}}\n- {prompt}\n",
        f"{HOSTILE}.yaml",
    )
    made.finish()
    made.watcher.fail("engine_failed", HOSTILE)
    made.refuse(HOSTILE, {"code": "bad_yaml", "message": HOSTILE, "remedy": HOSTILE,
                          "problems": [{"message": HOSTILE, "value": HOSTILE}]})  # fmt: skip
    made.store.put("paused", {"by": "http", "reason": HOSTILE, "since": 1})
    ticket = made.store.job(ids[0]).ticket  # type: ignore[union-attr]
    with running(made.config.root) as service:
        seeing = Eyes(browser, service.url, **LOOKS["phone"])
        page = seeing.open("/")
        expect(page.locator("#refused")).to_contain_text("<img src=x onerror=window.pwned=1>")
        for path in ("/", "/queue", "/pictures", "/batches", f"/batches/{ticket}", "/system",
                     *(f"/jobs/{i}" for i in ids), f"/?from={ids[0]}", "/pictures?text=%3Cimg"):  # fmt: skip
            page.goto(path)
            page.wait_for_load_state("load")
            assert page.evaluate("window.pwned") is None, path
            assert page.locator("img[src=x]").count() == 0, path
            assert "\u202e" not in page.title(), path
            wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide[0] <= wide[1], f"{path} is {wide[0]} wide"
        seeing.close()


def test_it_reads_without_javascript(browser: Browser, stage: Callable[[str], Stage]):
    made = stage("plain")
    paths = busy(made)
    with running(made.config.root) as service:
        seeing = Eyes(browser, service.url, java_script_enabled=False, **LOOKS["light"])
        page = seeing.open()
        for path in paths:
            page.goto(path)
            expect(page.get_by_role("heading", level=1)).to_have_count(1)
            expect(page.get_by_role("button", name="Pause")).to_be_hidden()
        page.goto("/")
        expect(page.locator("#now")).to_contain_text("step 3 of 8")
        page.get_by_role("link", name="All pictures").click()
        expect(page.locator(".card img")).to_have_count(4)
        seeing.close()


def test_programs_get_json_and_people_pages(stage: Callable[[str], Stage]):
    from starlette.testclient import TestClient

    from api.app import create_app

    made = stage("both")
    paths = busy(made)
    with TestClient(create_app(made.config, made.store), base_url="http://127.0.0.1") as client:
        for path in paths:
            page = client.get(path, headers={"accept": "text/html,*/*;q=0.8"})
            assert page.status_code == 200
            assert page.headers["content-type"].startswith("text/html"), path
            assert page.headers["vary"] == "Accept, Accept-Encoding"
            assert len(page.content) < 150_000
            assert not re.search(r"<script(?! type=\"module\" src=\"/static/)|\sstyle=|\son\w+=",
                                 page.text), path  # fmt: skip
        for path in ("/queue", "/batches", *(p for p in paths if p.startswith("/jobs/"))):
            assert client.get(path).headers["content-type"] == "application/json", path
        lost = client.get(
            "/jobs/00000000-0000-4000-8000-00000000ffff", headers={"accept": "text/html"}
        )
        assert lost.status_code == 404 and "There is no job with this id." in lost.text
        assert client.get("/nowhere").headers["content-type"] == "application/problem+json"
        script = client.get("/static/page.js", headers={"accept-encoding": "gzip"})
        files = [f"/static/{path.name}" for path in STATIC.glob("*.js")]
        sent = sum(int(client.get(file).headers["content-length"]) for file in files)
        assert sent <= 25_000, "the scripts over the wire"
        again = client.get("/static/page.js", headers={"if-none-match": script.headers["etag"]})
        assert again.status_code == 304


def test_a_phone_in_the_house_logs_in_and_asks_for_a_picture(
    browser: Browser, stage: Callable[[str], Stage]
):
    """By a name of the network, without HTTPS, a browser says less of where a form is from."""
    with running(stage("phone").config.root, STEADY_TOKEN="s3cret") as service:
        phone = Eyes(browser, f"http://pictures.lan:{service.port}", **LOOKS["phone"])
        phone.expected.append("Cross-Origin-Opener-Policy")
        page = phone.open()
        page.get_by_label("Token").fill("s3cret")
        page.get_by_role("button", name="Log in").click()
        submit(page, "seen from the sofa")
        expect(page.locator("#idle")).to_have_text("Files and jobs wait until the watcher runs.")
        phone.close()


def test_older_pictures_come_in_pages_that_nothing_shifts(stage: Callable[[str], Stage]):
    from starlette.testclient import TestClient

    from api.app import create_app

    made = stage("pages")
    made.add("".join(f"- picture {n}\n" for n in range(130)), "many.yaml")
    for _ in range(130):
        made.finish()
    made.store.mark_deleted(made.store.jobs()[5].id)
    with TestClient(create_app(made.config, made.store), base_url="http://127.0.0.1") as client:
        seen: list[str] = []
        path: str | None = "/pictures"
        while path:
            text = client.get(path, headers={"accept": "text/html"}).text
            seen += re.findall(r'id="c-([0-9a-f-]{36})"', text)
            found = re.search(r'rel="next" href="([^"]+)"', text)
            path = found[1].replace("&amp;", "&") if found else None
            if len(seen) == 60:
                made.add("prompt: a newcomer\n")
                made.finish()
        assert len(seen) == len(set(seen)) == 129
        for query, hits in (("text=picture+12", 10), ("state=failed", 0), ("day=2020-01-01", 0)):
            text = client.get(f"/pictures?{query}", headers={"accept": "text/html"}).text
            assert text.count('id="c-') == hits, query
