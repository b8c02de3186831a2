"""What is asked on the page is made once and whole: nothing twice, nothing left out, nothing unsaid."""

import json
import re
from collections.abc import Iterator

import pytest
from conftest import until
from eyes import LOOKS, Eyes
from playwright.sync_api import Browser, Page, Route, expect
from store_children import new_jobs, record_jobs
from test_page import drop
from test_page_choose import Wall, card, pick

from watcher.errors import ValueFault
from watcher.inbox import refused_rows
from watcher.jobfile.tables import Row
from watcher.refused import kept_line


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wall]:
    wall = Wall(
        tmp_path_factory.mktemp("once") / "root",
        4,
        models={"base": {"source": "Tongyi-MAI/Z-Image", "steps": 28, "guidance": 4}},
    )
    yield wall
    wall.close()


@pytest.fixture
def eyes(browser: Browser, wall: Wall) -> Iterator[Eyes]:
    wall.sent()
    seeing = Eyes(browser, wall.service.url, **LOOKS["light"])
    yield seeing
    seeing.close()


def losing_answers(page: Page, address: str) -> None:
    """What is sent there arrives, and its answer does not."""

    def lost(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route(address, lost)


def test_pressed_twice_or_after_a_lost_answer_it_is_made_once(eyes: Eyes, wall: Wall):
    eyes.expected = ["ERR_FAILED"]
    page = eyes.open()
    page.fill("#prompt", "a red boat")
    page.locator("#new button.main").dblclick()
    expect(page.locator(".toast").last).to_contain_text("Queued 1 picture")
    assert [job["prompt"] for job in wall.sent()] == ["a red boat"]
    page.fill("#prompt", "a white lighthouse")
    losing_answers(page, "**/jobs")
    page.locator("#new button.main").click()
    expect(page.locator(".toast.bad")).to_contain_text("does not answer")
    page.unroute("**/jobs")
    page.locator("#new button.main").click()
    expect(page.locator(".toast").last).to_contain_text("Queued 1 picture")
    assert len(wall.sent()) == 1
    page.locator("#new button.main").click()  # it was answered: now another is meant
    assert len(until(wall.sent, what="one more")) == 1


def test_chosen_ones_are_made_once_when_the_answer_is_lost(eyes: Eyes, wall: Wall):
    eyes.expected = ["ERR_FAILED"]
    page = eyes.open("/pictures")
    pick(page, wall, 0, 1)
    losing_answers(page, "**/jobs/again")
    for _ in range(2):
        page.locator("#chosen .menu summary").click()
        page.get_by_role("button", name="Run again, new seeds").click()
        expect(page.locator(".toast").last).to_be_visible()
        page.unroute("**/jobs/again")
    expect(page.locator("#chosen")).to_be_hidden()
    assert len(wall.sent()) == 2


def test_without_javascript_a_form_is_taken_once(browser: Browser, wall: Wall):
    plain = Eyes(browser, wall.service.url, java_script_enabled=False, **LOOKS["light"])
    page, other = plain.open(), plain.open()
    for each in (page, other):
        each.fill("#prompt", "a boat, twice")
        each.get_by_role("button", name="Make it").click()
        expect(each).to_have_url(re.compile("/batches/"))
    assert page.url == other.url
    assert len(wall.sent()) == 1
    page.goto("/")
    page.fill("#prompt", "a boat, twice")
    page.get_by_role("button", name="Make it").click()
    expect(page).to_have_url(re.compile("/batches/"))
    assert page.url != other.url
    assert len(wall.sent()) == 1
    plain.close()


def test_new_seeds_are_tried_once_each_when_one_cannot_be(eyes: Eyes, wall: Wall):
    eyes.expected = ["ERR_FAILED"]
    ids = wall.stage.add("- {prompt: one, seed: 7}\n- {prompt: two, seed: 8}\n", "plain.yaml")
    for _ in ids:
        wall.stage.watcher.fail("blank_picture", "One colour.")
    page = eyes.open()
    page.route(f"**/jobs/{ids[0]}/again?*", lambda route: route.abort())
    page.get_by_role("button", name="Try new seeds for all 2").click()
    expect(page.locator(".toast.bad")).to_contain_text("does not answer")
    expect(page.locator("#why-blank_picture .line")).to_have_count(1)
    page.unroute(f"**/jobs/{ids[0]}/again?*")
    page.get_by_role("button", name="Try a new seed").click()
    expect(page.locator("#why-blank_picture")).to_have_count(0)
    assert sorted(job["prompt"] for job in wall.sent()) == ["one", "two"]


def test_every_file_is_taken_and_one_that_cannot_be_stays(eyes: Eyes, wall: Wall):
    eyes.expected = ["ERR_FAILED"]
    page = eyes.open()
    files = [(f"f{n}.json", json.dumps({"prompt": f"boat {n}"}).encode()) for n in range(59)]
    drop(page, *files, ("own.json", b'{"prompt": "boat 59", "key": "mine"}'))
    go = page.locator("#preview-go")
    expect(go).to_have_text("Queue 60 pictures")
    page.route("**/jobs?filename=f7.json", lambda route: route.abort())
    go.click()
    expect(go).to_have_text("Queue 1 picture")
    expect(page.locator("#preview section")).to_have_count(1)
    expect(page.locator("#preview .wrong")).to_contain_text("does not answer")
    page.unroute("**/jobs?filename=f7.json")
    go.click()
    expect(page.locator("#preview")).to_be_hidden()
    assert {job["prompt"] for job in wall.sent()} == {f"boat {n}" for n in range(60)}


def test_in_the_large_picture_what_is_said_can_be_pressed(eyes: Eyes, wall: Wall):
    page = eyes.open("/pictures")
    pick(page, wall, 0, 1)
    card(page, wall, 2).locator(".shot").click()
    page.locator("#box .rate").get_by_label("Rate 4 of 5").click()
    wall.rated(2, 4)
    page.get_by_role("button", name="Undo").click()
    wall.rated(2, 0)
    page.locator("#box .menu summary").click()
    page.locator("#box [data-one=again]").click()
    expect(page.locator(".toast").last).to_contain_text("Queued 1 picture")
    page.keyboard.press("Escape")
    expect(page.locator("#chosen-count")).to_have_text("2 chosen")
    expect(page.locator("body > #toasts .toast").last).to_contain_text("Queued 1 picture")
    page.locator(".toast a").last.click()
    expect(page).to_have_url(re.compile("/jobs/"))


def test_a_picture_that_grows_has_no_rating_and_is_shown_when_done(eyes: Eyes, wall: Wall):
    (job_id,) = wall.stage.add("- {prompt: it grows, seed: 1}\n")
    job = wall.stage.watcher.claim()
    running = {"job_id": job_id, "attempt": job.attempt, "slot": 0, "step": 2, "steps": 8}
    wall.stage.pulse(running=[running])
    page = eyes.open()
    eyes.expected = ["404"]  # there is no preview yet
    page.locator(".run .glance").dispatch_event("click")
    expect(page.locator("#box")).to_be_visible()
    page.keyboard.press("5")
    wall.stage.finish(job)
    wall.stage.pulse()
    expect(page.locator("#box-img")).to_have_attribute("src", f"/jobs/{job_id}/image")
    expect(page.locator("#box .rate")).to_be_visible()
    assert page.locator(".toast").count() == 0


ODD = {
    "prompt": "an odd one", "model": "base", "width": 1536, "height": 64, "seed": 9007199254740993,
    "guidance_scale": 5.5, "negative_prompt": "fog", "upscale": {"factor": 2, "method": "lanczos"},
    "label": "order 7", "metadata": {"shop": "<north> \"1\"", "order": 9007199254740993},
}  # fmt: skip


@pytest.mark.parametrize("script", [True, False])
def test_an_edited_job_keeps_what_the_form_does_not_show(
    browser: Browser,
    wall: Wall,
    script: bool,
):
    (job_id,) = wall.stage.add(json.dumps(ODD), "odd.json")
    eyes = Eyes(browser, wall.service.url, java_script_enabled=script, **LOOKS["light"])
    page = eyes.open(f"/?from={job_id}")
    expect(page.locator("#kept-fields")).to_contain_text("label, metadata, upscale")
    for name in ("guidance_scale", "negative_prompt"):
        expect(page.locator(f"[name={name}]")).to_have_value(str(ODD[name]))
    page.locator("[name=seed]").fill("")
    page.locator("#new button.main").click()
    (said,) = until(wall.sent, what="the edited job")
    assert said.pop("num_inference_steps") == 28
    assert said.pop("upscale")["factor"] == 2
    said = {name: value for name, value in said.items() if name not in ("count", "format")}
    assert said == {name: ODD[name] for name in ODD if name not in ("seed", "upscale")}
    wall.stage.store.cancel(job_id)
    eyes.close()


def test_without_javascript_a_picture_is_started_from(browser: Browser, wall: Wall):
    plain = Eyes(browser, wall.service.url, java_script_enabled=False, **LOOKS["light"])
    page = plain.open(f"/?start={wall.ids[0]}")
    expect(page.get_by_text("It starts from a picture.")).to_be_visible()
    page.get_by_role("button", name="Make it").click()
    (said,) = until(wall.sent, what="a job")
    assert said["image"] == f"job:{wall.ids[0]}"
    plain.close()


def refuse_rows(wall: Wall, ticket: str, *prompts: str) -> None:
    """A table of which these rows could not be used, and one could."""
    store, inbox = wall.stage.store, wall.stage.config.inbox
    store.begin_reading(ticket, name="t.csv", suffix=".csv", source="file")
    record_jobs(store, ticket, new_jobs(1), first_index=0, final=True, refused_rows=len(prompts),
               )  # fmt: skip
    wall.stage.finish()
    wrong = (ValueFault("out_of_range", "No."),)
    rows = [
        Row(n, n + 1, {"prompt": prompt, "width": "64"}, wrong) for n, prompt in enumerate(prompts)
    ]
    place = refused_rows(inbox, ticket)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"".join(map(kept_line, rows)))


def test_a_cell_of_any_length_does_not_hide_the_batch(eyes: Eyes, wall: Wall):
    ticket = "a0000000-0000-4000-8000-000000000000"
    refuse_rows(wall, ticket, "x" * 135_000)
    page = eyes.open(f"/batches/{ticket}")
    expect(page.locator("#mend")).to_contain_text("too long to be shown here")
    expect(page.locator("#mend").get_by_role("link", name="as a table")).to_be_visible()


def test_rows_that_were_not_shown_still_need_attention(eyes: Eyes, wall: Wall):
    ticket = "b0000000-0000-4000-8000-000000000000"
    refuse_rows(wall, ticket, *(f"boat {n}" for n in range(201)))
    page = eyes.open(f"/batches/{ticket}")
    expect(page.locator("#mend")).to_contain_text("The first 200 are shown.")
    page.get_by_role("button", name="Check and send again").click()
    page.get_by_role("button", name="Queue 200 pictures").click()
    expect(page.locator(".toast").last).to_contain_text("Queued 200 pictures")
    page.goto("/")
    expect(page.locator(f"#x-{ticket}")).to_contain_text("201 rows could not be used")
