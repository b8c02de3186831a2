"""A picture to start from, on the page: chosen, dropped, painted over, in a real browser."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import running
from engines import read_log
from eyes import LOOKS, Eyes
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect
from roots import Root
from test_page import House, barriers, let_go, seen, submit

from watcher.jobs import input_digest


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house") / "root"
    options = {"log": str(folder / "engine.log"), "accepts": ["image", "mask"]}
    root = Root(folder, engine_options=options)
    with running(root.folder) as service:
        house = House(root, service)
        house.post("/jobs", {"prompt": "so that the engine is known"})
        house.done("so that the engine is known")
        yield house
    root.close()


@pytest.fixture(params=["light"])
def eyes(browser: Browser, house: House, request: pytest.FixtureRequest) -> Iterator[Eyes]:
    seeing = Eyes(browser, house.service.url, **LOOKS[request.param])
    yield seeing
    seeing.close()


def drawn(width: int = 192, height: int = 128) -> bytes:
    image = Image.new("RGB", (width, height), "khaki")
    ImageDraw.Draw(image).rectangle((16, 16, 80, 80), fill="navy")
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


def choose(page: Page, data: bytes, name: str = "cat.png", kind: str = "image/png") -> None:
    page.locator("#from summary").click()
    page.locator("#source").set_input_files({"name": name, "mimeType": kind, "buffer": data})


def request_of(house: House, prompt: str) -> dict[str, Any]:
    return dict(json.loads(house.done(prompt)["request"]))


def mask_of(house: House, said: dict[str, Any]) -> Image.Image:
    digest = input_digest(said["mask"])
    assert digest
    folder: Path = house.root.folder
    return Image.open(folder / ".steady" / "inputs" / digest).convert("L")


def paint(page: Page, *places: tuple[float, float]) -> None:
    """One stroke with the mouse through these places, as parts of the canvas' sides."""
    expect(page.locator("#canvas")).to_be_visible()
    box = page.locator("#canvas").bounding_box()
    assert box
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*at[0])
    page.mouse.down()
    for place in at[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def test_a_chosen_picture_is_started_from(eyes: Eyes, house: House):
    page = eyes.open()
    choose(page, drawn())
    expect(page.locator("#canvas")).to_be_visible()
    expect(page.locator("#strength-shown")).to_have_text("0.6")
    submit(page, "started from a picture")
    said = request_of(house, "started from a picture")
    assert (said["width"], said["height"]) == (192, 128), "as the picture"
    assert (said["strength"], said["resize"]) == (0.6, "crop")
    assert "mask" not in said
    assert barriers(page) == []


def test_how_far_from_it_and_how_it_fits_are_heeded(eyes: Eyes, house: House):
    page = eyes.open()
    choose(page, drawn())
    page.locator("#strength").fill("0.35")
    expect(page.locator("#strength-shown")).to_have_text("0.35")
    page.locator("#resize").select_option("pad")
    submit(page, "set by hand")
    said = request_of(house, "set by hand")
    assert (said["strength"], said["resize"]) == (0.35, "pad")


def test_a_mask_is_painted_undone_cleared_and_sent(eyes: Eyes, house: House):
    page = eyes.open()
    choose(page, drawn())
    for name in ("#undo", "#clear", "#mask-only"):
        expect(page.locator(name)).to_be_disabled()
    page.locator("#brush").fill("20")
    paint(page, (0.2, 0.5), (0.4, 0.5))
    expect(page.locator("#strength-shown")).to_have_text("1")
    paint(page, (0.9, 0.9))
    page.locator("#undo").click()
    page.locator("#mask-only").check()
    submit(page, "painted over")
    said = request_of(house, "painted over")
    assert (said["strength"], said["mask_only"]) == (1, True)
    mask = mask_of(house, said)
    assert mask.size == (192, 128)
    assert mask.getpixel((58, 64)) == 255 and mask.getpixel((170, 115)) == 0
    top = next(y for y in range(128) if mask.getpixel((58, y)))
    assert 64 - top in range(11, 16), "a brush of a fifth of the shorter side"
    page.locator("#clear").click()
    expect(page.locator("#strength-shown")).to_have_text("0.6")
    submit(page, "not painted over")
    assert "mask" not in request_of(house, "not painted over")


def test_a_mask_is_painted_by_keys_alone(eyes: Eyes, house: House):
    page = eyes.open()
    choose(page, drawn())
    canvas = page.locator("#canvas")
    expect(canvas).to_be_visible()
    canvas.focus()
    canvas.press("ArrowLeft")
    canvas.press("Space")
    canvas.press("Shift+ArrowUp")
    canvas.press("Space")
    canvas.press("Control+z")
    submit(page, "painted by keys")
    mask = mask_of(house, request_of(house, "painted by keys"))
    step = 0.15 * 128 / 2
    assert mask.getpixel((round(96 - step), 64)) == 255
    assert mask.getpixel((round(96 - step), round(64 - step))) == 255
    assert mask.getpixel((140, 64)) == 0


@pytest.mark.parametrize("eyes", ["phone"], indirect=True)
def test_a_mask_is_painted_with_a_finger(eyes: Eyes, house: House):
    page = eyes.open()
    choose(page, drawn())
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    assert box
    brush = page.locator("#brush").bounding_box()
    assert brush and brush["width"] > 100
    page.touchscreen.tap(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    submit(page, "painted by hand")
    mask = mask_of(house, request_of(house, "painted by hand"))
    assert mask.getpixel((48, 64)) == 255 and mask.getpixel((150, 64)) == 0


def test_one_dropped_on_the_form_is_started_from_and_taken_away(eyes: Eyes, house: House):
    page = eyes.open()
    carried = page.evaluate_handle(
        """data => { const carried = new DataTransfer();
            carried.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))],
                "cat.png", {type: "image/png"}));
            return carried; }""",
        base64.b64encode(drawn()).decode(),
    )
    page.dispatch_event("#new", "drop", {"dataTransfer": carried})
    expect(page.locator("#canvas")).to_be_visible()
    expect(page.locator("#size")).to_have_value("picture")
    page.locator("#away").click()
    expect(page.locator("#canvas")).to_be_hidden()
    submit(page, "from words alone")
    said = request_of(house, "from words alone")
    assert "image" not in said and (said["width"], said["height"]) == (64, 64)


def test_a_picture_is_seen_growing_in_its_card_and_large(eyes: Eyes, house: House):
    house.post("/jobs", {"prompt": "it grows sleep=0.5 steps=30"})
    page = eyes.open()
    glance = page.locator(".run .glance")
    expect(glance.locator("img")).to_be_visible(timeout=30_000)
    glance.click()
    large = page.locator("#box-img")
    expect(large).to_be_visible()
    seen(page, "() => document.querySelector('#box-img').naturalWidth > 0")
    first = large.get_attribute("src")
    expect(large).not_to_have_attribute("src", first or "", timeout=30_000)
    page.locator("#box [data-close]").click()
    page.locator(".run [data-cancel]").click()


def test_previews_are_drawn_only_while_one_is_looked_at(eyes: Eyes, house: House):
    elsewhere = eyes.open("/system")
    hidden = eyes.context.new_page()
    hidden.add_init_script("Object.defineProperty(document, 'hidden', {value: true})")
    hidden.goto("/")
    for page in (elsewhere, hidden):
        expect(page.locator("#live")).to_contain_text("Running")
    house.post("/jobs", {"prompt": "nobody sees it grows sleep=0.1 steps=20"})
    house.done("nobody sees it grows sleep=0.1 steps=20")
    expect(elsewhere.locator("#record")).to_contain_text("done")
    happened = [entry["event"] for entry in read_log(house.root.log)]
    begun = len(happened) - happened[::-1].index("start")
    assert set(happened[begun:]) == {"step", "finish"}


def test_what_is_no_picture_is_said(eyes: Eyes):
    eyes.expected.append("422")
    page = eyes.open()
    choose(page, b"not at all", kind="image/png")
    expect(page.locator(".toast.bad")).to_contain_text("no picture")
    expect(page.locator("#canvas")).to_be_hidden()


def test_a_jobs_page_shows_what_it_started_from_and_edit_brings_it_back(eyes: Eyes, house: House):
    page = eyes.open()
    choose(page, drawn())
    paint(page, (0.5, 0.5))
    page.locator("#strength").fill("0.5")
    submit(page, "to be edited")
    first = request_of(house, "to be edited")
    page = eyes.open(f"/jobs/{house.job('to be edited')['id']}")
    shown = page.locator("#started img")
    expect(shown.first).to_be_visible()
    seen(page, "() => document.querySelector('#started img').naturalWidth === 192")
    assert shown.count() == 2, "the picture and the mask"
    page.get_by_role("link", name="Edit and run").click()
    expect(page.locator("#canvas")).to_be_visible()
    expect(page.locator("#kept")).to_be_visible()
    expect(page.locator("#strength-shown")).to_have_text("0.5")
    submit(page, "edited")
    said = request_of(house, "edited")
    for name in ("image", "mask"):
        assert input_digest(said[name]) == input_digest(first[name])
    assert (said["strength"], said["width"]) == (0.5, 192)


def test_each_picture_of_a_dropped_folder_is_started_from(eyes: Eyes, house: House, tmp_path: Path):
    folder = tmp_path / "shop"
    folder.mkdir()
    for n, (width, height) in enumerate(((192, 128), (128, 192))):
        (folder / f"{n}.png").write_bytes(drawn(width, height))
    page = eyes.open()
    let_go(page, folder)
    expect(page.locator("#preview .wrong")).to_contain_text("Write a prompt on the first page")
    page.locator("#preview [data-close]").click()
    page.locator("#prompt").fill("each of the shop's")
    let_go(page, folder)
    expect(page.locator("#preview")).not_to_contain_text("Not taken")
    page.get_by_role("button", name="Queue 2 pictures").click()
    expect(page.locator(".toast").last).to_contain_text("Queued 2 pictures")

    def both() -> list[dict[str, Any]]:
        made = [j for j in house.root.jobs() if j["prompt"] == "each of the shop's"]
        return [json.loads(j["request"]) for j in made] if len(made) == 2 else []

    said = until(both, 30, "one for each")
    assert {(s["width"], s["height"]) for s in said} == {(192, 128), (128, 192)}
    assert len({input_digest(s["image"]) for s in said}) == 2


def test_of_a_folder_too_large_it_is_said_what_is_not_taken(eyes: Eyes, tmp_path: Path):
    folder = tmp_path / "archive"
    (folder / ".hidden").mkdir(parents=True)
    for n in range(1001):
        (folder / f"{n}.png").touch()
    (folder / ".hidden" / "one.png").touch()
    (folder / "gone.png").symlink_to(folder / "nowhere")
    page = eyes.open()
    page.locator("#prompt").fill("each of them")
    let_go(page, folder)
    shown = page.locator("#preview")
    expect(shown).to_contain_text("1,000 pictures to start from")
    expect(shown).to_contain_text(
        re.compile(r"Only the first 1,000 files are taken: not /archive/\d+\.png")
    )
