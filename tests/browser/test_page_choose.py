"""Choosing pictures on the page: rated, compared, taken along, made into a new batch; real clicks and keys."""

import json
import re
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import Running
from eyes import LOOKS, Eyes
from playwright.sync_api import Browser, Page, expect
from test_page import Stage, barriers, seen
from test_rating import rating_in

HOW_MANY = 8


class Wall:
    """A record with some pictures, and the service on it; it may be killed and started again."""

    def __init__(self, folder: Path, number: int = HOW_MANY, **settings: Any) -> None:
        self.stage = Stage(folder, **settings)
        self.stage.pulse()
        text = "".join(f"- {{prompt: picture {n}, seed: {n}}}\n" for n in range(number))
        self.stage.add(text, "wall.yaml")
        self.ids = [self.stage.finish().id for _ in range(number)]
        self.service = Running(folder)

    def kill(self) -> None:
        self.service.process.send_signal(signal.SIGKILL)
        self.service.process.wait()

    def again(self) -> None:
        """The service at the address it had."""
        self.service = Running(self.stage.config.root, port=self.service.port)

    def rating(self, n: int) -> int:
        job = self.stage.store.job(self.ids[n])
        assert job is not None
        return job.rating

    def rated(self, n: int, rating: int) -> None:
        until(lambda: self.rating(n) == rating, what=f"picture {n} is rated {rating}")

    def sent(self) -> list[dict[str, Any]]:
        """What was queued since the last look."""
        files = list(self.stage.config.inbox.glob("api-*.json"))
        bodies = [json.loads(path.read_text()) for path in files]
        made = [job for body in bodies for job in (body if isinstance(body, list) else [body])]
        for path in files:
            path.unlink()
        return made

    def close(self) -> None:
        self.kill()
        self.stage.close()


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wall]:
    wall = Wall(tmp_path_factory.mktemp("wall") / "root")
    yield wall
    wall.close()


@pytest.fixture
def eyes(browser: Browser, wall: Wall) -> Iterator[Eyes]:
    for n, job_id in enumerate(wall.ids):
        if wall.rating(n):
            wall.stage.store.rate(job_id, 0)
    seeing = Eyes(browser, wall.service.url, **LOOKS["light"])
    yield seeing
    seeing.close()


def card(page: Page, wall: Wall, n: int) -> Any:
    return page.locator(f"#c-{wall.ids[n]}")


def pick(page: Page, wall: Wall, *some: int) -> None:
    for n in some:
        card(page, wall, n).get_by_role("checkbox").check()


def test_rated_rejected_and_undone_by_keys(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures")
    last = HOW_MANY - 1
    page.keyboard.press("j")
    page.keyboard.press("4")
    expect(card(page, wall, last).locator(".stars")).to_contain_text("★★★★")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("-")
    expect(card(page, wall, last - 1).locator(".stars")).to_contain_text("rejected")
    wall.rated(last, 4)
    wall.rated(last - 1, -1)
    page.keyboard.press("u")
    wall.rated(last - 1, 0)
    page.keyboard.press("u")
    wall.rated(last, 0)
    expect(page.locator(".stars:not(:empty)")).to_have_count(0)


def test_rated_by_clicks_in_the_large_picture_and_on_its_page(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures")
    card(page, wall, 2).locator(".shot").click()
    stars = page.locator("#box .rate")
    stars.get_by_label("Rate 5 of 5").click()
    expect(stars.get_by_label("Rate 5 of 5")).to_have_attribute("aria-pressed", "true")
    wall.rated(2, 5)
    page.get_by_role("link", name="Details").click()
    expect(page.locator("#rating .stars")).to_contain_text("★★★★★")
    page.locator("#rating").get_by_label("Reject").click()
    wall.rated(2, -1)
    page.locator("#rating").get_by_label("Reject").click()  # what is pressed is taken back
    wall.rated(2, 0)


def test_a_finger_rates(browser: Browser, wall: Wall):
    hand = Eyes(browser, wall.service.url, **LOOKS["phone"])
    page = hand.open("/pictures")
    card(page, wall, 1).locator(".shot").tap()
    page.locator("#box .rate").get_by_label("Rate 3 of 5").tap()
    wall.rated(1, 3)
    page.locator("#box").get_by_role("button", name="Close").tap()
    pick(page, wall, 0, 1)
    page.locator("#chosen-compare").tap()
    frames = page.locator("#pair .frame").all()
    assert all((box := frame.bounding_box()) and box["height"] > 200 for frame in frames)
    seen(page, """() => { const { scrollHeight, clientHeight, scrollWidth, clientWidth }
        = document.querySelector("#pair");
        return scrollHeight <= clientHeight && scrollWidth <= clientWidth; }""")  # fmt: skip
    hand.close()


def test_a_rating_outlives_a_dead_service_and_a_reload(eyes: Eyes, wall: Wall):
    eyes.expected = ["ERR_", "Failed to load", "Failed to fetch"]
    page = eyes.open("/pictures")
    page.keyboard.press("j")
    page.keyboard.press("5")
    wall.rated(HOW_MANY - 1, 5)
    wall.kill()  # what was answered is on the disk
    page.keyboard.press("j")
    page.keyboard.press("2")
    expect(page.locator(".toast.bad")).to_contain_text("Your ratings are kept")
    wall.again()
    page.reload()
    wall.rated(HOW_MANY - 2, 2)
    assert wall.rating(HOW_MANY - 1) == 5
    expect(card(page, wall, HOW_MANY - 2).locator(".stars")).to_contain_text("★★")


def test_the_gallery_is_narrowed_to_ratings(eyes: Eyes, wall: Wall):
    for n, rating in ((0, 5), (1, 4), (2, 2), (3, -1)):
        wall.stage.store.rate(wall.ids[n], rating)
    page = eyes.open("/pictures")
    for value, found in (("4..", {0, 1}), ("rejected", {3}), ("0", {4, 5, 6, 7}), ("5", {0})):
        page.locator("[name=rating]").select_option(value)
        page.get_by_role("button", name="Show", exact=True).click()
        expect(page).to_have_url(re.compile(f"rating={re.escape(value)}"))
        expect(page.locator(".card")).to_have_count(len(found))
        for n in found:
            expect(card(page, wall, n)).to_be_visible()
    page.goto("/pictures?rating=4..")
    with page.expect_download() as download:
        page.get_by_role("link", name="all pictures rated so").click()
    archive = zipfile.ZipFile(download.value.path())
    assert len(archive.namelist()) == 2
    assert {rating_in(archive.read(name)) for name in archive.namelist()} == {4, 5}


def test_two_are_compared_under_one_zoom(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures")
    pick(page, wall, 0)
    expect(page.locator("#chosen-compare")).to_be_disabled()
    pick(page, wall, 3)
    page.keyboard.press("Escape")
    page.locator("#chosen-compare").click()
    pair = page.locator("#pair")
    expect(pair.locator("img")).to_have_count(2)
    expect(pair.get_by_role("button", name="Close")).to_be_focused()
    expect(pair.locator(".made")).to_have_text([f"seed {n} · 256 × 256" for n in (0, 3)])
    seen(page, "() => [...document.querySelectorAll('#pair img')].every((i) => i.naturalWidth)")
    frame = pair.locator(".frame").first.bounding_box()
    assert frame
    page.mouse.move(frame["x"] + frame["width"] / 4, frame["y"] + frame["height"] / 4)
    page.mouse.wheel(0, -200)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] / 3, frame["y"] + frame["height"] / 3)
    page.mouse.up()
    moved = page.evaluate(
        "[...document.querySelectorAll('#pair img')].map((i) => i.style.transform)"
    )
    assert moved[0] == moved[1] and "scale(1)" not in moved[0] and "translate(0px" not in moved[0]
    pair.locator(".rate").nth(1).get_by_label("Rate 4 of 5").click()
    until(lambda: {wall.rating(0), wall.rating(3)} == {0, 4}, what="one of them is rated")
    assert barriers(page) == []
    page.keyboard.press("z")
    assert "scale(1)" in page.evaluate("document.querySelector('#pair img').style.transform")
    page.keyboard.press("Escape")
    expect(pair).to_be_hidden()


@pytest.mark.parametrize(
    ("press", "made"),
    [
        ("Twice as large", lambda n, ids: {"image": f"job:{ids[n]}", "upscale": 2}),
        ("Four variations of each", lambda n, ids: {"count": 4, "prompt": f"picture {n}"}),
        ("Run again, new seeds", lambda n, ids: {"prompt": f"picture {n}"}),
    ],
)
def test_a_new_batch_is_made_of_the_chosen(eyes: Eyes, wall: Wall, press: str, made: Any):
    page = eyes.open("/pictures")
    pick(page, wall, 2, 5)
    page.locator("#chosen .menu summary").click()
    page.get_by_role("button", name=press).click()
    expect(page.locator(".toast")).to_contain_text("Queued")
    jobs = sorted(wall.sent(), key=lambda job: str(job["prompt"]))
    assert len(jobs) == 2
    for n, job in zip((2, 5), jobs, strict=True):
        assert made(n, wall.ids).items() <= job.items()
        assert ("seed" in job) == press.startswith("Twice")
    expect(page.locator("#chosen")).to_be_hidden()


def test_the_chosen_are_made_with_another_prompt_on_their_seeds(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures")
    pick(page, wall, 1, 4)
    page.locator("#chosen .menu summary").click()
    page.get_by_role("button", name="Another prompt or LoRA").click()
    assert barriers(page) == []
    page.locator("#other textarea").fill("a boat at sunset")
    page.locator("#other").get_by_role("button", name="Queue").click()
    expect(page.locator(".toast")).to_contain_text("Queued 2 pictures, on the same seeds.")
    jobs = sorted(wall.sent(), key=lambda job: int(job["seed"]))
    assert [(job["prompt"], job["seed"]) for job in jobs] == [
        ("a boat at sunset", 1), ("a boat at sunset", 4)]  # fmt: skip


def test_many_are_rated_at_once_and_taken_back(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures")
    pick(page, wall, 0, 1, 2)
    page.locator("#chosen-rate").get_by_label("Rate 2 of 5").click()
    for n in range(3):
        wall.rated(n, 2)
    page.get_by_role("button", name="Undo").click()
    for n in range(3):
        wall.rated(n, 0)


def test_ratings_are_read_without_javascript(browser: Browser, wall: Wall):
    wall.stage.store.rate(wall.ids[0], 3)
    plain = Eyes(browser, wall.service.url, java_script_enabled=False, **LOOKS["light"])
    page = plain.open("/pictures?rating=1..")
    expect(card(page, wall, 0).locator(".stars")).to_contain_text("rated 3 of 5")
    plain.close()
