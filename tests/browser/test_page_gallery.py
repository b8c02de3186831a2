"""The gallery and what is light about the page: a thousand pictures, chosen by keys, in a real browser."""

import re
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import until
from eyes import LOOKS, PHONE, Eyes
from playwright.sync_api import Browser, Page, expect
from test_page import barriers, seen
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
def eyes(browser: Browser, wall: Wall) -> Iterator[Eyes]:
    seeing = Eyes(browser, wall.service.url, **LOOKS["light"])
    yield seeing
    seeing.close()


class Hand:
    """Presses keys and counts them."""

    def __init__(self, page: Page, wall: Wall) -> None:
        self.page = page
        self.wall = wall
        self.pressed = 0

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.pressed += 1

    def place(self) -> tuple[int, int]:
        """(which picture is in focus, counted from the newest; pictures in its row)."""
        on, across = self.page.evaluate(
            """() => { const top = (card) => card.getBoundingClientRect().top;
                const on = document.activeElement.closest(".card");
                return [on.dataset.id, [...on.parentNode.children].filter((c) => top(c) === top(on)).length]; }"""
        )
        return number(self.wall, on), int(across)


def number(wall: Wall, job_id: str | None) -> int:
    """Which picture it is, counted from the newest."""
    return THOUSAND - 1 - wall.ids.index(str(job_id))


@pytest.mark.timeout(420)
def test_twenty_of_a_thousand_are_chosen_by_keys(eyes: Eyes, wall: Wall):
    """Over a kill of the service and a reload; at most 1,050 key presses, nothing lost."""
    eyes.expected = ["ERR_", "Failed to load", "Failed to fetch"]
    page = eyes.open("/pictures")
    hand = Hand(page, wall)
    hand.press("j")
    for turn, wanted in enumerate(WANTED):
        at, across = hand.place()
        while at + across <= wanted:
            before = at
            hand.press("ArrowDown")
            until(lambda before=before: hand.place()[0] > before, what="the next row")
            at, across = hand.place()
        for _ in range(wanted - at):
            hand.press("ArrowRight")
        if turn == 10:
            wall.kill()
        hand.press("5")
        if turn == 10:
            wall.again()
        if turn == 15:
            until(lambda: "cursor=" in page.url, what="the address says where one is")
            page.reload()
            first = page.locator(".card").first.get_attribute("data-id")
            assert 0 < number(wall, first) <= wanted, "a reload comes back to where one was"
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


#: Every card that is in the page: its id, where it lies, and its stars.
CARDS = """() => [...document.querySelectorAll(".rows .card")].map((card) => {
    const { left, top, width, height } = card.getBoundingClientRect();
    return [card.dataset.id, [left, top + scrollY, width, height].map(Math.round),
        card.querySelector(".stars").textContent]; })"""
#: How many cards are in the page, of how many pictures, and is that of ``wanted`` there?
HOLDS = """wanted => { const ids = [...document.querySelectorAll(".rows .card")].map((card) => card.dataset.id);
    return [ids.length, new Set(ids).size, ids.includes(wanted)]; }"""
#: Of each list that goes on in the next part: how far its last row is from the right edge.
RAGGED = """() => [...document.querySelectorAll(".day.on > .cards")]
    .filter((list) => list.closest(".part").nextElementSibling.childElementCount)
    .map((list) => list.getBoundingClientRect().right - list.lastElementChild.getBoundingClientRect().right)
    .filter((far) => far > 2)"""
HELD = 400  #: pictures, at most, that the page holds at a time


def travel(page: Page, by: int, wanted: str) -> int:
    """Turns the wheel until the picture ``wanted`` is in the page; the most it held on the way."""
    most = 0

    def there() -> bool:
        nonlocal most
        page.mouse.wheel(0, by)
        held, different, found = page.evaluate(HOLDS, wanted)
        assert held == different, "none is there twice"
        most = max(most, held)
        return bool(found)

    until(there, 60, f"a picture {by} px at a time away")
    return most


def test_more_than_a_zip_holds_are_taken_in_parts(eyes: Eyes, wall: Wall):
    """As the button says before it is pressed."""
    page = eyes.open("/pictures")
    page.locator(f"#c-{wall.ids[-1]}").get_by_role("checkbox").check()
    page.mouse.move(500, 500)
    travel(page, 2000, wall.ids[0])
    page.get_by_role("button", name="Choose all here").click()
    expect(page.locator("#chosen-count")).to_have_text("1000 chosen")
    button = page.locator("#chosen-zip")
    names: set[str] = set()
    for first in range(1, THOUSAND, 200):
        expect(button).to_have_text(f"Download {first} to {first + 199} of 1000")
        with page.expect_download() as taken:
            button.click()
        names |= set(zipfile.ZipFile(taken.value.path()).namelist())
    assert len(names) == THOUSAND
    expect(button).to_have_text("Download 1 to 200 of 1000")
    page.get_by_role("button", name="Clear").click()
    page.locator(".card").first.get_by_role("checkbox").check()
    expect(button).to_have_text("Download")


def test_far_pictures_leave_the_page_and_come_back(eyes: Eyes, wall: Wall):
    """As they were and where they were; what was chosen stays chosen, and is rated and taken along."""
    page = eyes.open("/pictures?until=2100-01-02")
    chosen = [wall.ids[THOUSAND - 1 - n] for n in (3, 1)]
    for job_id in chosen:
        page.locator(f"#c-{job_id}").get_by_role("checkbox").check()
    page.locator("#sizer input").focus()
    page.mouse.move(500, 500)
    travel(page, 100, wall.ids[THOUSAND - 120])
    before = page.evaluate(CARDS)[:60]
    assert travel(page, 2000, wall.ids[0]) <= HELD
    expect(page.locator(f"#c-{chosen[0]}")).to_have_count(0)
    expect(page.locator("#chosen-count")).to_have_text("2 chosen")
    page.locator("#chosen-rate").get_by_role("button", name="Rate 3 of 5").click()
    for job_id in chosen:
        wall.rated(wall.ids.index(job_id), 3)
    with page.expect_download() as taken:
        page.locator("#chosen-zip").click()
    names = zipfile.ZipFile(taken.value.path()).namelist()
    assert len(names) == 2, names

    assert travel(page, -2000, wall.ids[THOUSAND - 1]) <= HELD
    for job_id in chosen:
        expect(page.locator(f"#c-{job_id}").get_by_role("checkbox")).to_be_checked()
    rated = [[one, at, "rated 3 of 5★★★" if one in chosen else said] for one, at, said in before]
    until(lambda: page.evaluate(CARDS)[:60] == rated, what="all as it was")
    page.keyboard.press("u")
    expect(page.locator(f"#c-{chosen[0]} .stars")).to_be_empty()


def test_back_comes_back_to_the_same_pictures(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures?until=2100-01-04")
    page.mouse.move(500, 500)
    travel(page, 1000, wall.ids[THOUSAND // 2])
    middle = """() => document.elementFromPoint(innerWidth / 3, innerHeight / 2)
        .closest(".card")?.dataset.id"""
    until(
        lambda: page.evaluate("history.state?.card") == f"c-{page.evaluate(middle)}",
        what="the place is kept",
    )
    seen_there = page.evaluate(middle)
    page.goto("/batches")
    page.go_back()
    expect(page.locator(f"#c-{seen_there}")).to_be_in_viewport()
    expect(page.get_by_role("link", name="Newest")).to_be_attached()


def test_rows_are_full_when_the_window_is_another(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures?until=2100-01-03")
    page.mouse.move(500, 500)
    travel(page, 1000, wall.ids[THOUSAND // 2])
    assert page.evaluate(RAGGED) == []
    page.set_viewport_size({"width": 1000, "height": 860})
    until(lambda: page.evaluate(RAGGED) == [], what="rows are full again")
    travel(page, -1000, wall.ids[THOUSAND - 1])
    until(lambda: page.evaluate(RAGGED) == [], what="rows are full further up too")
    ids = [one for one, *_ in page.evaluate(CARDS)]
    assert ids == wall.ids[::-1][: len(ids)], "in their order"


def test_the_large_picture_goes_on_past_what_is_loaded(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures?until=2100-01-01")
    page.locator(".shot").nth(58).click()
    for n in (59, 60, 61):  # sixty are on a page
        page.keyboard.press("ArrowRight")
        at = THOUSAND - 1 - n
        expect(page.locator("#box-img")).to_have_attribute("src", f"/jobs/{wall.ids[at]}/image")
        expect(page.locator("#box .made")).to_have_text(f"seed {at} · 256 × 256")
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
    browser: Browser,
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


@pytest.mark.parametrize("width", [390, 700, 710, 768, 1280])
def test_heads_fit_any_width(eyes: Eyes, width: int):
    """Nothing is wider than the window, and the gallery's heading is one line, also when narrowed."""
    page = eyes.open("/static/icon.svg")
    page.set_viewport_size({"width": width, "height": 800})
    for path in ("/", "/pictures", "/pictures?text=fox", "/pictures?rating=4..&seed=3"):
        page.goto(path)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} wide"
        if path != "/":
            title = page.locator("h1").bounding_box()
            assert title and title["height"] < 45, path


def test_a_finger_swipes_to_the_next(browser: Browser, wall: Wall):
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


def test_a_batch_that_ended_is_told(browser: Browser, wall: Wall):
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
    until(lambda: page.evaluate("notes"), what="a notification")
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
