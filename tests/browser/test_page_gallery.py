"""The gallery and what is light about the page: a thousand pictures, chosen by keys, in a real browser."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import until
from playwright.sync_api import Browser, Page, expect
from test_page import LOOKS, PHONE, Eyes, barriers, browser, seen  # noqa: F401
from test_page_choose import Wall

from watcher.store import JobFilter

THOUSAND = 1000
WANTED = range(25, THOUSAND, 50)  #: twenty of them, as seen from the newest


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wall]:
    wall = Wall(tmp_path_factory.mktemp("gallery") / "root", THOUSAND)
    yield wall
    wall.close()


@pytest.fixture
def eyes(browser: Browser, wall: Wall) -> Iterator[Eyes]:  # noqa: F811
    seeing = Eyes(browser, wall.service.url, **LOOKS["light"])
    yield seeing
    seeing.close()


class Hand:
    """Presses keys and counts them."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.pressed = 0

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.pressed += 1

    def place(self) -> tuple[int, int]:
        """(index of the picture in focus, pictures in a row)."""
        index, across = self.page.evaluate(
            """() => { const all = [...document.querySelectorAll(".rows .card")];
                const top = all[0].offsetTop, on = document.activeElement.closest(".card");
                return [all.indexOf(on), all.filter((c) => c.offsetTop === top).length]; }"""
        )
        return int(index), int(across)


@pytest.mark.timeout(420)
def test_twenty_of_a_thousand_are_chosen_by_keys(eyes: Eyes, wall: Wall):
    """Over a kill of the service and a reload; at most 1,050 key presses, nothing lost."""
    eyes.expected = ["ERR_", "Failed to load", "Failed to fetch"]
    page = eyes.open("/pictures")
    hand = Hand(page)
    hand.press("j")
    first = 0  #: the number of the first picture on the page, counted from the newest
    for number, wanted in enumerate(WANTED):
        at, across = hand.place()
        while first + at + across <= wanted:
            before = at
            hand.press("ArrowDown")
            until(lambda before=before: hand.place()[0] > before, what="the next row")
            at, across = hand.place()
        for _ in range(wanted - first - at):
            hand.press("ArrowRight")
        if number == 10:
            wall.kill()
        hand.press("5")
        if number == 10:
            wall.again()
        if number == 15:
            until(lambda: "cursor=" in page.url, what="the address says where one is")
            page.reload()
            there = page.locator(".card").first.get_attribute("data-id")
            first = THOUSAND - 1 - wall.ids.index(str(there))
            assert 0 < first <= wanted, "a reload comes back to where one was"
            hand.press("j")
    wanted_ids = {wall.ids[THOUSAND - 1 - n] for n in WANTED}
    found = JobFilter(rating=(5, 5))
    until(
        lambda: {j.id for j in wall.stage.store.all_jobs(found)} == wanted_ids, what="all are kept"
    )
    assert hand.pressed <= 1050, hand.pressed


def test_rows_keep_shapes_and_their_height_is_chosen(eyes: Eyes):
    page = eyes.open("/pictures")

    def row() -> list[float]:
        return list(
            page.evaluate(
                """() => { const all = [...document.querySelectorAll(".rows .card .shot")];
                const top = all[0].getBoundingClientRect().top;
                return all.filter((c) => c.getBoundingClientRect().top === top)
                    .map((c) => c.getBoundingClientRect().height); }"""
            )
        )

    small = row()
    page.locator("#row-size").fill("18")
    large = row()
    assert len(large) < len(small) and large[0] > small[0] > 60
    page.reload()
    assert len(row()) == len(large)
    seen(page, "() => document.querySelector('#main').clientWidth === innerWidth - (innerWidth - document.documentElement.clientWidth)")  # fmt: skip
    expect(page.locator("#how-many")).to_have_text("1,000 pictures")
    expect(page.locator("#months li")).to_have_count(1)
    page.locator("#months a").click()
    expect(page).to_have_url(re.compile("until="))
    expect(page.locator(".card").first).to_be_visible()


def test_the_large_picture_goes_on_past_what_is_loaded(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures?until=2100-01-01")
    page.locator(".shot").nth(58).click()
    for n in (59, 60, 61):  # sixty are on a page
        page.keyboard.press("ArrowRight")
        at = THOUSAND - 1 - n
        expect(page.locator("#box-img")).to_have_attribute("src", f"/jobs/{wall.ids[at]}/image")
        expect(page.locator("#box-facts")).to_have_text(f"seed {at} · 256 × 256")
    box = page.locator("#box").bounding_box()
    assert box and (box["width"], box["height"]) == (1280, 860), "the whole screen"
    page.keyboard.press("z")
    seen(page, "() => /scale\\((?!1\\))/.test(document.querySelector('#box-img').style.transform)")
    page.keyboard.press("z")
    page.locator("#box .menu summary").click()
    page.locator("#box").get_by_role("button", name="Four variations").click()
    expect(page.locator(".toast")).to_contain_text("four variations")
    (job,) = wall.sent()
    assert job["count"] == 4 and "seed" not in job
    page.locator("#box .menu summary").click()
    page.get_by_role("link", name="Start from this picture").click()
    expect(page).to_have_url(re.compile(r"/\?start="))
    expect(page.locator("#prompt")).to_have_value(f"picture {at}")


@pytest.mark.parametrize("scripted", [True, False])
def test_a_phone_shows_a_picture_on_its_first_screen(
    browser: Browser,  # noqa: F811
    wall: Wall,
    scripted: bool,
):
    """At the start and in the gallery, whose filters are folded and work when they are opened."""
    hand = Eyes(browser, wall.service.url, java_script_enabled=scripted, **LOOKS["phone"])
    page = hand.open("/")
    for path in ("/", "/pictures", "/pictures?rating=0"):
        page.goto(path)
        first = page.locator(".shot").first.bounding_box()
        assert first and first["y"] < PHONE["viewport"]["height"] - 100, path
        wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], f"{path} is {wide[0]} wide"
    expect(page.locator("[name=rating]")).to_be_hidden()
    page.get_by_text("Filters (1)").tap()
    page.locator("[name=rating]").select_option("rejected")
    page.get_by_role("button", name="Show", exact=True).tap()
    expect(page).to_have_url(re.compile("rating=rejected"))
    expect(page.locator(".shot")).to_have_count(0)
    hand.close()


def test_a_finger_swipes_to_the_next(browser: Browser, wall: Wall):  # noqa: F811
    hand = Eyes(browser, wall.service.url, **LOOKS["phone"])
    page = hand.open("/pictures")
    page.locator(".shot").first.click()
    frame = page.locator("#box .frame")
    for kind, x in (("down", 300), ("move", 150), ("up", 100)):
        event = {
            "pointerId": 1,
            "clientX": x,
            "clientY": 300,
            "pointerType": "touch",
            "isPrimary": True,
        }
        frame.dispatch_event(f"pointer{kind}", event)
    before = wall.ids[THOUSAND - 2]
    expect(page.locator("#box-img")).to_have_attribute("src", f"/jobs/{before}/image")
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    hand.close()


def test_a_batch_that_ended_is_told(browser: Browser, wall: Wall):  # noqa: F811
    """The browser's own notifications, as far as a page can hear of them."""
    seeing = Eyes(browser, wall.service.url, permissions=["notifications"], **LOOKS["light"])
    page = seeing.open("/batches")
    page.evaluate(
        """() => { window.notes = []; const Real = Notification;
            window.Notification = class extends Real {
                constructor(title, how) { super(title, how); notes.push([title, how.body]); } }; }"""
    )
    page.get_by_role("button", name="Tell me when a batch ends").click()
    expect(page.locator(".toast")).to_contain_text("You are told when a batch ends")
    wall.stage.add("- one more\n- and another\n", "evening.yaml")
    wall.stage.finish()
    wall.stage.watcher.fail("engine_failed", "It failed.")
    until(lambda: page.evaluate("notes"), 20, "a notification")
    assert page.evaluate("notes") == [["evening.yaml is done", "1 done, 1 failed"]]
    seeing.close()


def test_the_page_can_be_installed(eyes: Eyes):
    page = eyes.open("/")
    at = page.locator("link[rel=manifest]").get_attribute("href")
    answer: Any = eyes.context.request.get(str(at))
    manifest = answer.json()
    assert answer.headers["content-type"].startswith("application/manifest+json")
    assert manifest["display"] == "standalone" and manifest["start_url"] == "/"
    assert eyes.context.request.get(manifest["icons"][0]["src"]).ok
    assert barriers(page) == []


def test_pictures_are_found_by_seed_size_and_words(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures")
    page.locator(".further summary").click()
    page.locator("[name=seed]").fill("123")
    page.locator("[name=size]").fill("256 x 256")
    page.locator("#filter").get_by_role("button", name="Show").click()
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator(f"#c-{wall.ids[123]}")).to_be_visible()
    expect(page.locator("[name=seed]")).to_have_value("123")
    page.locator("#filter [name=lora]").fill("none such")
    page.keyboard.press("Enter")
    expect(page.locator(".empty")).to_contain_text("Nothing fits")
    page.get_by_role("link", name="All", exact=True).click()
    page.locator("#search").fill("PICTURE 77")
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(11)
