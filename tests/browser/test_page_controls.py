"""Every control of the page that no other test uses, used once: a record made by hand, the service on it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from eyes import LOOKS, Eyes
from playwright.sync_api import Browser, Page, expect
from test_page import barriers, seen
from test_page_choose import Wall, pick

from watcher.jobs import JobState
from watcher.store import Want


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wall]:
    large = {"source": "starter", "width": 320, "height": 192, "steps": 12}
    folder = tmp_path_factory.mktemp("controls") / "root"
    wall = Wall(folder, 130, models={"large": large})  # three pages of the gallery
    yield wall
    wall.close()


@pytest.fixture
def eyes(browser: Browser, wall: Wall) -> Iterator[Eyes]:
    seeing = Eyes(browser, wall.service.url, **LOOKS["light"])
    yield seeing
    seeing.close()


def press(page: Page, name: str, where: str = "#main") -> None:
    page.locator(where).get_by_role("button", name=name, exact=True).first.click()


def follow(page: Page, name: str, there: str, where: str = "#main") -> None:
    page.locator(where).get_by_role("link", name=name, exact=True).first.click()
    expect(page).to_have_url(re.compile(there))
    page.wait_for_load_state()  # a button pressed before that is pressed for nothing


def taken(page: Page, act: Callable[[], Any]) -> bytes:
    """What is downloaded by it."""
    with page.expect_download() as download:
        act()
    return download.value.path().read_bytes()


def waits(wall: Wall, *prompts: str) -> list[str]:
    """New jobs; whatever waited is cancelled first."""
    for job in wall.stage.store.upcoming(1000):
        wall.stage.store.cancel(job.id)
    return wall.stage.add("".join(f"- {prompt}\n" for prompt in prompts))


def fails(wall: Wall, number: int, code: str = "engine_failed") -> list[str]:
    ids = waits(wall, *(f"wrong {n}" for n in range(number)))
    for _ in ids:
        wall.stage.watcher.fail(code, "It failed.")
    return ids


def becomes(wall: Wall, job_id: str, state: JobState) -> None:
    until(lambda: wall.stage.store.job(job_id).state is state, what=state.value)  # type: ignore[union-attr]


def test_pages_are_reached_by_their_links(eyes: Eyes):
    page = eyes.open()
    for name, there in (("Pictures", "/pictures$"), ("Batches", "/batches$"),
                        ("System", "/system$"), ("Now", "/$"), ("SteadyDiffusion", "/$")):  # fmt: skip
        follow(page, name, there, "#head")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#main$"))
    follow(page, "All pictures", "/pictures$")
    follow(page, "API", "/docs$", "#foot")
    follow(page, "openapi.json", "/openapi.json$", "main")
    eyes.expected = ["404"]
    page.goto("/nowhere")
    follow(page, "Back to the first page", "/$")


def test_keys_are_switched_off_and_on(eyes: Eyes):
    page = eyes.open("/batches")
    for on in (False, True):
        page.locator("[data-help]").click()
        page.locator("#keys-on").set_checked(on)
        page.locator("#help").get_by_role("button", name="Close").click()
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.matches('a.open')") is on


def test_waiting_jobs_are_moved_and_given_another_priority(eyes: Eyes, wall: Wall):
    ids = waits(wall, *(f"waits {n}" for n in range(7)))
    page = eyes.open()
    follow(page, "All 7 waiting jobs", "/queue$")
    lines = page.locator("#waiting li")
    for name, where in (("Move to the front", 0), ("Move to the back", 6)):
        row = page.locator(f"#q-{ids[3]}")
        row.locator(".menu summary").click()
        row.get_by_role("button", name=name).click()
        expect(lines.nth(where)).to_have_id(f"q-{ids[3]}")
    for name in ("bulk", "normal", "interactive"):
        row.locator(".menu summary").click()
        row.get_by_role("button", name=f"Make it {name}").click()
        until(lambda name=name: wall.stage.store.job(ids[3]).priority.value == name, what=name)  # type: ignore[union-attr]
    page.locator(f"#q-{ids[0]}").get_by_role("button", name="Cancel").click()
    becomes(wall, ids[0], JobState.CANCELLED)


def test_what_is_about_to_be_pressed_stays_while_others_come_and_go(eyes: Eyes, wall: Wall):
    """The second look of a page begins when the answer to the first is dealt with."""
    store, ids = wall.stage.store, waits(wall, *(f"waits {n}" for n in range(5)))
    page = eyes.open("/queue")

    def changes(*what: Callable[[], Any]) -> None:
        for change in what:
            with page.expect_response("**/queue"):
                change()

    page.locator(f"#q-{ids[4]}").get_by_role("button", name="Cancel").hover()
    page.mouse.down()
    changes(lambda: store.reorder(ids[4], position="front"), lambda: store.cancel(ids[0]))
    page.mouse.up()
    becomes(wall, ids[4], JobState.CANCELLED)
    expect(page.locator("#waiting li")).to_have_count(3)
    page.locator(f"#q-{ids[3]} .menu summary").click()
    entry = page.get_by_role("button", name="Make it bulk").bounding_box()
    assert entry
    changes(lambda: store.reorder(ids[3], position="front"), lambda: store.cancel(ids[1]))
    page.mouse.click(entry["x"] + 9, entry["y"] + 9)
    until(lambda: store.job(ids[3]).priority.value == "bulk", what="bulk")  # type: ignore[union-attr]
    expect(page.locator("#waiting li")).to_have_count(2)


@pytest.mark.parametrize("path", ["/", "/queue"])
def test_all_that_waits_is_cancelled_once_a_person_is_sure(eyes: Eyes, wall: Wall, path: str):
    ids = waits(
        wall, *(f"{{prompt: a, priority: {each}}}" for each in ("interactive", "normal", "bulk"))
    )
    page = eyes.open(path)
    page.set_viewport_size({"width": 390, "height": 844})
    seen(page, """() => [...document.querySelectorAll("#now .row > *")].every(
        (each) => each.scrollWidth <= each.clientWidth)""")  # fmt: skip
    for answer, state in (("Keep", JobState.QUEUED), ("Cancel them", JobState.CANCELLED)):
        press(page, "Cancel all")
        expect(page.locator("#sure-words")).to_contain_text("Cancel 3 waiting jobs?")
        press(page, answer, "#sure")
        for job_id in ids:
            becomes(wall, job_id, state)
    expect(page.locator("#waiting li, #cancel-all")).to_have_count(0)


def test_messages_are_hidden_by_hand(eyes: Eyes, wall: Wall):
    page = eyes.open(f"/jobs/{wall.ids[64]}")
    page.locator("#as-yaml summary").click()
    for act in ("click", "Enter"):
        press(page, "Copy as YAML")
        hide = page.get_by_role("button", name="Hide this message")
        hide.click() if act == "click" else hide.press(act)
        expect(page.locator(".toast")).to_have_count(0)


def test_a_paused_queue_is_resumed_where_it_is_told(eyes: Eyes, wall: Wall):
    page = eyes.open()
    press(page, "Pause", "#head")
    expect(page.locator("#live")).to_have_text("Paused")
    page.set_viewport_size({"width": 390, "height": 844})
    brand, button = (page.locator(each).bounding_box() for each in (".brand", "#pause"))
    assert brand and button and button["y"] < brand["y"] + brand["height"], "one line"
    press(page, "Resume", "#t-paused")
    expect(page.locator("#t-paused")).to_have_count(0)
    assert not wall.stage.store.get("paused")
    press(page, "Pause", "#head")
    press(page, "Undo", "#toasts")
    expect(page.locator("#t-paused")).to_have_count(0)


def test_failed_jobs_are_retried_or_dismissed_together(eyes: Eyes, wall: Wall):
    ids = fails(wall, 5)
    page = eyes.open()
    why = page.locator("#why-engine_failed")
    why.get_by_text("2 more").click()
    why.locator(f"#f-{ids[0]}, #f-{ids[4]}").last.get_by_role("button", name="Dismiss").click()
    expect(why.locator("li")).to_have_count(4)
    press(page, "Retry all 4")
    expect(why).to_have_count(0)
    for name in ("Dismiss all", "Dismiss everything"):
        fails(wall, 2)
        page.reload()
        press(page, name, "#attention")
        expect(page.locator("#attention")).to_have_count(0)


def test_a_batch_is_paused_resumed_and_cancelled(eyes: Eyes, wall: Wall):
    ids = waits(wall, "first of three", "second", "third")
    ticket = wall.stage.store.job(ids[0]).ticket  # type: ignore[union-attr]
    wall.stage.finish()
    page = eyes.open("/batches")
    follow(page, "dropped.yaml", ticket, f"#b-{ticket}")
    press(page, "Pause", "#batch-head")
    press(page, "Resume", "#batch-head")
    expect(page.locator("#batch-head").get_by_role("button", name="Pause")).to_be_visible()
    archive = taken(page, page.get_by_role("link", name="Download all").click)
    assert archive.startswith(b"PK")
    press(page, "Cancel", "#batch-head")
    press(page, "Cancel them", "#sure")
    for job_id in ids[1:]:
        becomes(wall, job_id, JobState.CANCELLED)
    failed = fails(wall, 2)
    page.goto(f"/batches/{wall.stage.store.job(failed[0]).ticket}")  # type: ignore[union-attr]
    press(page, "Retry failed", "#batch-head")
    for job_id in failed:
        becomes(wall, job_id, JobState.QUEUED)
    follow(page, "Batches", "/batches$")


def test_a_long_batch_is_paged(eyes: Eyes, wall: Wall):
    ticket = wall.stage.store.job(wall.ids[0]).ticket  # type: ignore[union-attr]
    page = eyes.open(f"/batches/{ticket}")
    expect(page.locator("#sheet .card")).to_have_count(96)
    follow(page, "After", "after=95")
    expect(page.locator("#sheet .card")).to_have_count(34)
    follow(page, "Before", f"{ticket}$")


def test_a_jobs_page_is_used_whole(eyes: Eyes, wall: Wall):
    at = wall.ids[64]
    page = eyes.open(f"/jobs/{at}")
    for name, there in (("Older →", wall.ids[63]), ("← Newer", at)):
        follow(page, name, there)
    for fold, name, words in (
        ("#as-yaml", "Copy as YAML", "picture 64"),
        ("#as-curl", "Copy as curl", "/jobs"),
    ):
        page.locator(f"{fold} summary").click()
        press(page, name)
        expect(page.locator(".toast").last).to_have_text("Copied.")
        assert words in page.evaluate("getSelection().toString()")
    sent: list[dict[str, Any]] = []
    for name in ("Four variations", "Make it larger"):
        press(page, name)
        sent += until(wall.sent, what=name)
    assert sent[0]["count"] == 4 and "upscale" in sent[1]
    for name in ("Download", "Download without recipe"):
        link = page.locator("#verbs").get_by_role("link", name=name, exact=True)
        assert taken(page, link.click).startswith(b"\x89PNG")
    follow(page, "Start from this picture", rf"/\?start={at}")
    page.goto(f"/jobs/{at}")
    assert eyes.errors == []
    eyes.expected = ["Content Security Policy"]  # the browser's own dress for a picture alone
    page.locator("#stage .whole").click()
    expect(page).to_have_url(re.compile(f"/jobs/{at}/image$"))


def test_a_job_is_cancelled_retried_and_its_picture_deleted_on_its_page(eyes: Eyes, wall: Wall):
    (job_id,) = waits(wall, "for a moment")
    page = eyes.open(f"/jobs/{job_id}")
    press(page, "Cancel", "#verbs")
    becomes(wall, job_id, JobState.CANCELLED)
    press(page, "Retry", "#verbs")
    becomes(wall, job_id, JobState.QUEUED)
    wall.stage.watcher.fail("out_of_memory", "Too large.")
    page.reload()
    page.locator("#verbs").get_by_role("button", name="Run at").click()
    expect(page.locator(".toast").last).to_contain_text("Queued at")
    (smaller,) = wall.sent()
    assert smaller["prompt"] == "for a moment"
    waits(wall, "to be deleted")
    done = wall.stage.finish()
    page.goto(f"/jobs/{done.id}")
    press(page, "Delete", "#verbs")
    press(page, "Delete", "#sure")
    expect(page.get_by_role("heading", name="The picture was deleted")).to_be_visible()
    assert not (wall.stage.config.outputs / done.path).exists()


def test_the_large_picture_is_left_taken_and_made_again_by_buttons(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures")
    page.locator(f"#c-{wall.ids[100]} .shot").click()
    shown = page.locator("#box-img")
    expect(page.locator("#box-next")).to_be_focused()  # and not a star
    for name, n in (("Next picture", 99), ("Previous picture", 100)):
        press(page, name, "#box")
        expect(shown).to_have_attribute("src", f"/jobs/{wall.ids[n]}/image")
    seen(page, """() => { const [frame, image] = ["#box .frame", "#box-img"].map(
            (each) => document.querySelector(each).getBoundingClientRect());
        return image.height === frame.height && image.width === frame.width; }""")  # fmt: skip
    page.locator("#box .menu summary").click()
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")  # the menu alone
    expect(page.locator("#box .menu summary")).to_be_focused()
    expect(page.locator("#box-img")).to_be_visible()
    assert taken(page, page.locator("#box-save").click).startswith(b"\x89PNG")
    sent: list[dict[str, Any]] = []
    for name in ("Run again, new seed", "Twice as large"):
        page.locator("#box .menu summary").click()
        press(page, name, "#box")
        sent += until(wall.sent, what=name)
    assert "seed" not in sent[0] and sent[1]["upscale"] == 2
    page.locator("#box .menu summary").click()
    follow(page, "Edit and run", rf"/\?from={wall.ids[100]}", "#box")


def test_all_here_are_chosen_and_let_go(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures?text=picture+1")
    pick(page, wall, 1)
    press(page, "Choose all here")
    expect(page.locator("#chosen-count")).to_have_text(f"{page.locator('.pick').count()} chosen")
    archive = taken(page, page.locator("#chosen-zip").click)
    assert archive.startswith(b"PK")
    press(page, "Clear")
    expect(page.locator("#chosen")).to_be_hidden()


def test_the_gallery_is_narrowed_and_turned_by_hand(browser: Browser, wall: Wall):
    """Without JavaScript too: that is how one turns pages there."""
    fails(wall, 2)
    plain = Eyes(browser, wall.service.url, java_script_enabled=False, **LOOKS["light"])
    page = plain.open("/pictures")
    first = page.locator(".card").first.get_attribute("id")
    follow(page, "Older", "cursor=")
    expect(page.locator(f"#{first}")).to_have_count(0)
    follow(page, "Newest", "/pictures$")
    page.locator("[name=state]").select_option("failed")
    press(page, "Show", "#filter")
    expect(page.locator(".card").first).to_contain_text("failed")
    page.locator("[name=state]").select_option("")
    page.locator("[name=day]").fill("2020-01-01")
    press(page, "Show", "#filter")
    expect(page.locator(".empty")).to_contain_text("Nothing fits.")
    follow(page, "Show all pictures", "/pictures$")
    page.locator("#search").fill("picture 12")
    page.locator("#search").press("Enter")
    follow(page, "All", "/pictures$", "#filter")
    plain.close()


def test_files_are_chosen_and_words_are_pasted(eyes: Eyes, wall: Wall):
    page = eyes.open()
    given = {"name": "list.txt", "mimeType": "text/plain", "buffer": b"a red boat\na blue boat\n"}
    page.locator("#file").set_input_files(given)  # type: ignore[arg-type]
    press(page, "Queue 2 pictures", "#preview")
    expect(page.locator(".toast").last).to_contain_text("Queued 2 pictures")
    (sent,) = wall.stage.config.inbox.glob("api-*.txt")
    assert sent.read_bytes() == given["buffer"]
    sent.unlink()
    page.locator("#main").evaluate(
        """main => { const clipboardData = new DataTransfer();
            clipboardData.setData("text/plain", "prompt: pasted\\nwidth: 64\\nheight: 64\\n");
            main.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true})); }"""
    )
    expect(page.locator("#preview td").first).to_have_text("pasted")
    press(page, "Not now", "#preview")
    expect(page.locator("#preview")).to_be_hidden()


def test_steps_are_heeded(eyes: Eyes, wall: Wall):
    page = eyes.open()
    page.locator("#new summary").first.click()
    page.locator("[name=num_inference_steps]").fill("4")
    page.locator("#prompt").fill("four steps")
    press(page, "Make it", "#new")
    expect(page.locator(".toast")).to_contain_text("Queued 1 picture")
    (job,) = wall.sent()
    assert (job["prompt"], job["num_inference_steps"]) == ("four steps", 4)


def test_the_last_hours_are_a_table_too(eyes: Eyes):
    page = eyes.open("/system")
    page.locator("#hours summary").click()
    expect(page.locator("#hours td").first).to_be_visible()
    expect(page.locator("#telling")).to_have_text("Telling others nobody is told")
    expect(page.get_by_role("link", name="Deliveries")).to_have_count(0)  # there are none


def test_a_model_is_chosen_for_a_new_picture_and_its_sizes_come_along(eyes: Eyes, wall: Wall):
    page = eyes.open()
    page.locator("#new summary").first.click()
    page.locator("#new").get_by_label("Model").select_option("large")
    page.locator("#prompt").fill("a large fox")
    press(page, "Make it", "#new")
    (job,) = until(wall.sent, what="the job")
    asked = {name: job[name] for name in ("model", "width", "height", "num_inference_steps")}
    assert asked == {"model": "large", "width": 320, "height": 192, "num_inference_steps": 12}


def test_guidance_and_what_is_not_wanted_are_asked_where_the_model_takes_them(
    browser: Browser,
    wall: Wall,
    tmp_path: Path,
):
    other = Wall(tmp_path / "root", 1, engine="engines:Guided")
    for each, takes in ((wall, False), (other, True)):
        seeing = Eyes(browser, each.service.url, **LOOKS["light"])
        page = seeing.open()
        page.locator("#new summary").first.click()
        page.locator("#prompt").fill("a sharp fox")
        for name, words in (("Guidance", "4.5"), ("Negative prompt", "blurry")):
            field = page.locator("#new").get_by_label(name)
            expect(field).to_have_count(int(takes))
            if takes:
                field.fill(words)
        press(page, "Make it", "#new")
        (job,) = until(each.sent, what="the job")
        said = (job.get("guidance_scale"), job.get("negative_prompt"))
        assert said == ((4.5, "blurry") if takes else (None, None))
        seeing.close()
    other.close()


@pytest.mark.parametrize("script", [True, False])
@pytest.mark.parametrize("look", ["light", "phone"])
def test_pictures_are_found_by_model_lora_size_seed_and_words(
    browser: Browser,
    wall: Wall,
    look: str,
    script: bool,
):
    waits(wall, "{prompt: a harbour, model: large, seed: 4711, width: 64, height: 128, name: quay,"
                " label: Order 66, metadata: {client: Miller}, lora: ink}")  # fmt: skip
    [job] = wall.stage.store.claim_many([Want(("large",), "large")], usual="starter")
    done = wall.stage.finish(job)
    one = f"c-{done.id}"
    seeing = Eyes(browser, wall.service.url, java_script_enabled=script, **LOOKS[look])
    page = seeing.open("/pictures")
    for words in ("HARBOUR", "quay", "order 66", "miller", "dropped.yaml"):
        page.locator("#search").fill(words)
        page.locator("#search").press("Enter")
        expect(page.locator("#search")).to_have_value(words)
        expect(page.locator(".card").first).to_have_id(one)
    page.goto("/pictures")
    fold, more = page.locator("#filters > summary"), page.locator(".further > summary")
    for name, value in (
        ("lora", "ink"),
        ("size", "64 x 128"),
        ("seed", "4711"),
        ("model", "large"),
    ):
        if look == "phone":
            fold.click()
        if page.locator(".further").get_attribute("open") != "":
            more.click()
        field = page.locator(f"#filter [name={name}]")
        if name == "model":
            field.select_option(value)
        else:
            field.fill("wide")
            if name in ("size", "seed"):
                assert not field.evaluate("field => field.checkValidity()")
            field.fill(value)
        press(page, "Show", "#filter")
        expect(page.locator(".card").first).to_have_id(one)
        expect(page.locator(f"#filter [name={name}]")).to_have_value(value)
    if look == "phone":
        expect(fold).to_have_text("Filters (4)")
        fold.click()
    page.locator("#filter [name=model]").select_option("starter")
    press(page, "Show", "#filter")
    expect(page.locator(".empty")).to_contain_text("Nothing fits.")
    assert not script or barriers(page) == []
    seeing.close()


def test_a_running_batch_is_followed_to_its_newest_picture(eyes: Eyes, wall: Wall):
    ids = waits(wall, *(f"of many {n}" for n in range(120)))
    for _ in range(60):
        wall.stage.finish()
    page = eyes.open(f"/batches/{wall.stage.store.job(ids[0]).ticket}")  # type: ignore[union-attr]
    follow(page, "To the newest picture", "after=")
    expect(page.locator(f"#c-{ids[59]} img")).to_be_visible()
    expect(page.locator("#sheet .card").first).not_to_have_id(f"c-{ids[0]}")


def test_what_was_queued_is_opened_from_its_toast(eyes: Eyes, wall: Wall):
    page = eyes.open()
    page.locator("#prompt").fill("to be opened")
    press(page, "Make it", "#new")
    link = page.locator("#toasts").get_by_role("link", name="Open")
    expect(link).to_be_visible()
    (job_id,) = wall.stage.watcher.take_in()
    link.click()
    expect(page).to_have_url(re.compile(job_id))
    expect(page.locator("#main")).to_contain_text("to be opened")


def test_the_versions_that_made_a_picture_are_told(eyes: Eyes, wall: Wall):
    waits(wall, "by which torch")
    done = wall.stage.finish(versions={"torch": "2.9.1", "diffusers": "0.36"})
    page = eyes.open(f"/jobs/{done.id}")
    told = page.locator("#versions").get_by_text("torch 2.9.1, diffusers 0.36")
    expect(told).to_be_hidden()
    page.locator("#versions summary").click()
    expect(told).to_be_visible()


def test_all_that_failed_is_a_click_away(eyes: Eyes, wall: Wall):
    ids = fails(wall, 61)
    page = eyes.open()
    follow(page, "All failed jobs", r"/pictures\?state=failed$")
    expect(page.locator(".card").first).to_have_id(f"c-{ids[-1]}")
    page.goto("/")
    press(page, "Dismiss everything", "#attention")
    expect(page.locator("#attention")).to_have_count(0)
