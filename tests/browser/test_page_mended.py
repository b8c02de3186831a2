"""What the page must not get wrong again: each a thing that a person stumbled over."""

import csv
import io
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from doors import Running, running
from eyes import LOOKS, Eyes
from playwright.sync_api import Browser, Page, expect
from store_children import new_jobs, record_jobs
from test_page import Stage, barriers, drop, seen, submit

from watcher.errors import ValueFault
from watcher.inbox import refused_rows
from watcher.jobfile.tables import Row
from watcher.refused import kept_line


@dataclass
class Scene:
    """A record in which much went wrong, and the service on it."""

    stage: Stage
    service: Running
    done: list[str]  #: ids of four jobs, of which one has a picture and three failed
    blank: list[str]  #: two whose picture was one colour
    mixed: str  #: a table of which two rows of four were refused


def lora_of_another_family() -> bytes:
    layer = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {
        f"{layer}.lora_{side}.weight": {
            "dtype": "F32",
            "shape": [1, 1],
            "data_offsets": [at, at + 4],
        }
        for side, at in (("A", 0), ("B", 4))
    }
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    stage = Stage(
        tmp_path_factory.mktemp("mended") / "root",
        model="starter",
        models={"base": {"source": "Tongyi-MAI/Z-Image", "steps": 28, "guidance": 4}},
    )
    stage.pulse()
    stage.config.loras.mkdir()
    (stage.config.loras / "other.safetensors").write_bytes(lora_of_another_family())
    done = stage.add("- good\n- bad\n- bad\n- bad\n", "harbour.yaml")
    stage.finish()
    for _ in range(3):
        stage.watcher.fail("engine_failed", "It failed.")
    blank = stage.add("- {prompt: one, seed: 7}\n- {prompt: two, seed: 8}\n", "plain.yaml")
    for _ in range(2):
        stage.watcher.fail("blank_picture", "The picture is one colour.")
    mixed = next(stage.tickets)
    stage.store.begin_reading(mixed, name="mixed.csv", suffix=".csv", source="file")
    record_jobs(stage.store, mixed, new_jobs(2), first_index=0, final=True, refused_rows=2,
               )  # fmt: skip
    stage.finish()
    stage.finish()
    with running(stage.config.root) as service:
        yield Scene(stage, service, done, blank, mixed)
    stage.close()


@pytest.fixture
def eyes(browser: Browser, scene: Scene) -> Iterator[Eyes]:
    seeing = Eyes(browser, scene.service.url, **LOOKS["light"])
    yield seeing
    seeing.close()


def ticket_of(scene: Scene, job_id: str) -> str:
    job = scene.stage.store.job(job_id)
    assert job is not None
    return job.ticket


def widths(page: Page, where: str) -> dict[str, float]:
    """The segments of a bar and how wide each is drawn, as parts of the whole."""
    return dict(page.evaluate(
        """where => { const bar = document.querySelector(where), all = bar.getBoundingClientRect();
            return [...bar.children].map(
                (r) => [r.getAttribute("class"), r.getBoundingClientRect().width / all.width]); }""",
        where,
    ))  # fmt: skip


@pytest.mark.parametrize("how", ["click", "Enter"])
def test_details_in_the_large_picture_lead_to_its_page(eyes: Eyes, scene: Scene, how: str):
    page = eyes.open("/pictures")
    page.locator(f"#c-{scene.done[0]} .shot").click()
    details = page.get_by_role("link", name="Details")
    if how == "click":
        details.click()
    else:
        details.press("Enter")
    expect(page).to_have_url(f"{scene.service.url}/jobs/{scene.done[0]}")


def test_a_bar_shows_what_failed_and_what_was_refused(eyes: Eyes, scene: Scene):
    ticket = ticket_of(scene, scene.done[0])
    for path, where in (("/batches", f"#b-{ticket} .split"), (f"/batches/{ticket}", ".split")):
        page = eyes.open(path)
        expect(page.locator(where)).to_have_accessible_name("1 done, 3 failed")
        assert widths(page, where) == pytest.approx({"completed": 0.25, "failed": 0.75}, abs=0.02)
    where = f"#b-{scene.mixed} .split"
    page = eyes.open("/batches")
    expect(page.locator(where)).to_have_accessible_name("2 done, 2 refused")
    assert widths(page, where) == pytest.approx({"completed": 0.5, "refused": 0.5}, abs=0.02)


def test_refused_rows_need_attention_until_they_are_dismissed(eyes: Eyes, scene: Scene):
    page = eyes.open("/batches")
    expect(page.locator(f"#b-{scene.mixed}")).to_contain_text("2 refused")
    page.goto("/")
    entry = page.locator(f"#x-{scene.mixed}")
    expect(entry).to_contain_text("2 rows could not be used; the others were queued (2 pictures).")
    entry.get_by_role("link", name="on its page").click()
    expect(page).to_have_url(re.compile(f"/batches/{scene.mixed}$"))
    page.goto("/")
    entry.get_by_role("button", name="Dismiss").click()
    expect(entry).to_have_count(0)
    page.goto(f"/batches/{scene.mixed}")
    expect(page.locator("#progress")).to_contain_text("2 refused")


def test_where_another_seed_helps_another_seed_is_tried(eyes: Eyes, scene: Scene):
    page = eyes.open(f"/?from={scene.blank[0]}")
    expect(page.locator("[name=seed]")).to_have_value("")
    ticket = ticket_of(scene, scene.blank[0])
    for path in (f"/jobs/{scene.blank[0]}", f"/batches/{ticket}"):
        page.goto(path)
        expect(page.get_by_role("button", name="Retry", exact=True)).to_have_count(0)
        expect(page.get_by_role("button", name="Try a new seed").first).to_be_visible()
    page.goto("/")
    page.get_by_role("button", name="Try new seeds for all 2").click()
    expect(page.locator("#why-blank_picture")).to_have_count(0)
    sent = [json.loads(p.read_text()) for p in scene.stage.config.inbox.glob("api-*.json")]
    assert sorted(job["prompt"] for job in sent) == ["one", "two"]
    assert not any("seed" in job for job in sent)
    for path in scene.stage.config.inbox.glob("api-*"):
        path.unlink()


def test_what_cannot_run_is_not_called_running(eyes: Eyes, scene: Scene):
    trouble = {"code": "model_missing", "message": "The `model` is not here.", "remedy": "Pull it."}
    (waits,) = scene.stage.add("prompt: waits\n", "waits.yaml")
    page = eyes.open()
    expect(page.locator("#live")).to_have_text("Running")
    expect(page.locator("#idle")).to_have_text("The next job begins in a moment.")
    scene.stage.pulse(trouble=[trouble], workers=[])
    page.reload()
    expect(page.locator("#live")).to_have_text("NOT READY")
    expect(page.locator("#idle")).to_have_text("The model is not here. Pull it.")
    page.goto(f"/jobs/{waits}")
    expect(page.locator("#stage p")).to_have_text("The model is not here. Pull it.")
    page.get_by_role("link", name="NOT READY").click()
    expect(page.locator("#alerts")).to_contain_text("Pull it.")
    page.goto("/")
    scene.stage.pulse(workers=[{"slot": 0, "state": "loading", "device": "cpu"}])
    page.reload()
    expect(page.locator("#live")).to_contain_text("The model is loading")
    scene.stage.pulse()
    scene.stage.finish()


_CUT_OFF = """() => {
  const whole = fetch;
  window.fetch = async () => new Response(new ReadableStream({ pull: (end) => end.error(Error()) }));
  document.dispatchEvent(new Event("stale"));
  window.fetch = whole;
}"""


def test_a_look_that_was_not_answered_is_made_again(eyes: Eyes):
    eyes.expected = ["ERR_FAILED"]
    page = eyes.open("/batches")
    expect(page.locator("#live")).to_have_text("Running")
    page.route("**/batches", lambda route: route.abort())
    page.evaluate("document.dispatchEvent(new Event('stale'))")
    expect(page.locator("#live")).to_have_text("Reconnecting …")
    page.unroute("**/batches")
    expect(page.locator("#live")).to_have_text("Running")
    page.evaluate(_CUT_OFF)  # one that ended in the middle
    expect(page.locator("#live")).to_have_text("Reconnecting …")
    expect(page.locator("#live")).to_have_text("Running")


def test_words_for_programs_stand_as_code(eyes: Eyes, scene: Scene):
    page = eyes.open()
    drop(page, ("rows.csv", b"prompt,width\nfine,64\n,64\n"))
    wrong = page.locator("#preview .wrong")
    expect(wrong.locator("code").first).to_have_text("prompt")
    expect(wrong).not_to_contain_text("`")
    page.goto("/docs")
    assert "`" not in page.locator("main > p").all_inner_texts()[0]
    page.goto(f"/batches/{ticket_of(scene, scene.done[0])}")
    expect(page.locator("#progress .meta code").first).to_be_visible()


def test_the_disk_is_as_full_as_the_words_beside_it_say(eyes: Eyes):
    page = eyes.open("/system")
    bar = page.locator("#disk progress")
    total, used = (int(bar.get_attribute(name) or 0) for name in ("max", "value"))
    words = page.locator("#disk .meta").inner_text().replace("\u00a0", " ")
    free = (total - used) / 1e9
    assert words.startswith(f"{free:.0f} GB of" if free >= 10 else f"{free:.1f} GB of")


def test_a_browser_that_looks_for_an_icon_finds_one(eyes: Eyes, scene: Scene):
    answer = eyes.context.request.get("/favicon.ico")
    assert answer.ok and answer.headers["content-type"].startswith("image/svg")
    page = eyes.open("/docs")
    expect(page.locator("link[rel=icon]")).to_have_attribute("href", "/static/icon.svg")


def test_what_is_pressed_is_large_enough(eyes: Eyes):
    page = eyes.open("/pictures")
    seen(page, """() => [...document.querySelectorAll("input[type=checkbox]")].every(
        (box) => !box.checkVisibility() || box.getBoundingClientRect().width >= 24)""")  # fmt: skip
    page.locator("[data-help]").click()
    box = page.locator("#keys-on").bounding_box()
    assert box and box["width"] >= 24 and box["height"] >= 24


def test_a_long_prompt_is_scrolled_by_keys(eyes: Eyes, scene: Scene):
    long = "a harbour at dawn with many boats and gulls, " * 60
    (job,) = scene.stage.add(f"prompt: {long}\n", "long.yaml")
    scene.stage.finish()
    page = eyes.open(f"/jobs/{job}")
    page.locator("#prompt-text").focus()
    page.keyboard.press("End")
    seen(page, "() => document.querySelector('#prompt-text').scrollTop > 0")


def test_without_javascript_the_form_works(browser: Browser, scene: Scene):
    plain = Eyes(browser, scene.service.url, java_script_enabled=False, **LOOKS["light"])
    page = plain.open()
    expect(page.get_by_text("Choosing files needs JavaScript.")).to_be_visible()
    expect(page.get_by_text("or drop files anywhere")).to_be_hidden()
    page.locator("#prompt").fill("a boat, by hand")
    page.locator("#new summary").first.click()
    page.locator("#size").select_option("")
    page.locator("[name=width]").fill("96")
    page.locator("[name=height]").fill("64")
    page.locator("[name=seed]").fill("9007199254740993")
    page.get_by_role("button", name="Make it").click()
    expect(page).to_have_url(re.compile("/batches/"))
    (sent,) = scene.stage.config.inbox.glob("api-*.json")
    job = json.loads(sent.read_text())
    sent.unlink()
    assert {
        "prompt": "a boat, by hand",
        "width": 96,
        "seed": 9007199254740993,
    }.items() <= job.items()
    plain.close()


def test_prompts_and_loras_are_picked(eyes: Eyes, scene: Scene):
    page = eyes.open()
    page.locator("#prompts button").first.click()
    expect(page.locator("#prompt")).to_have_value("a red boat on a lake at sunset")
    page.locator("#new summary").first.click()
    field = page.locator("#new [name=lora]")
    field.fill("neon:0.5")
    chip = page.locator("[data-lora=ink]")
    expect(page.locator("[data-lora=neon]")).to_have_attribute("aria-pressed", "true")
    chip.click()
    expect(field).to_have_value("neon:0.5, ink")
    expect(chip).to_have_attribute("aria-pressed", "true")
    assert barriers(page) == []
    chip.click()
    expect(field).to_have_value("neon:0.5")


def test_what_the_chosen_model_takes_is_asked_and_what_fits_it_is_offered(eyes: Eyes, scene: Scene):
    page = eyes.open()
    page.locator("#new summary").first.click()
    chips, guidance = (
        page.locator("[data-lora]:visible"),
        page.locator("#new").get_by_label("Guidance"),
    )
    expect(chips).to_have_text(["ink", "neon"])
    expect(guidance).to_be_hidden()
    page.locator("#model").select_option("base")  # which is not here: what fits it is not known
    expect(chips).to_have_count(0)
    guidance.fill("5")
    assert barriers(page) == []
    page.locator("#model").select_option("")
    expect(chips).to_have_text(["ink", "neon"])
    expect(guidance).to_be_hidden()
    submit(page, "a boat without guidance")
    (sent,) = scene.stage.config.inbox.glob("api-*.json")
    assert "guidance_scale" not in json.loads(sent.read_text())
    sent.unlink()
    eyes.expected = ["422"]
    page.locator("#new [name=lora]").fill("other")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator(".toast.bad code")).to_have_text("other")
    expect(page.locator(".toast.bad")).not_to_contain_text("Line 1")


def test_refused_rows_are_mended_where_they_are_shown(eyes: Eyes, scene: Scene):
    table = '\ufeffprompt,width,error\r\n"a ""fine"" boat, at sea",65,`width` must be a multiple of 16.\r\n,64,`prompt` is missing.\r\n'
    boat, none = {"prompt": 'a "fine" boat, at sea', "width": "65"}, {"prompt": "", "width": "64"}
    said = ("`width` must be a multiple of 16.", "`prompt` is missing.")
    bad = [Row(n, n + 1, cells, (ValueFault("out_of_range", words),))
           for n, (cells, words) in enumerate(zip((boat, none), said, strict=True), 1)]  # fmt: skip
    (rows := refused_rows(scene.stage.config.inbox, scene.mixed)).parent.mkdir()
    rows.write_bytes(b"".join(map(kept_line, bad)))
    page = eyes.open(f"/batches/{scene.mixed}")
    mend = page.locator("#mend")
    expect(mend.locator(".wrong").first).to_have_text("width must be a multiple of 16.")
    assert barriers(page) == []
    with page.expect_download() as download:
        mend.get_by_role("link", name="as a table").click()
    assert download.value.path().read_bytes() == table.encode()
    mend.get_by_label("width, row 1").fill("64")
    mend.get_by_role("button", name="Check and send again").click()
    expect(page.locator("#preview .wrong")).to_contain_text("prompt is missing")
    page.locator("#preview [data-close]").click()
    mend.get_by_label("prompt, row 2").fill("a lighthouse")
    mend.get_by_role("button", name="Check and send again").click()
    page.get_by_role("button", name="Queue 2 pictures").click()
    expect(page.locator(".toast").last).to_contain_text("Queued 2 pictures")
    (sent,) = scene.stage.config.inbox.glob("api-*.csv")
    rows = list(csv.DictReader(io.StringIO(sent.read_text())))
    assert [(r["prompt"], r["width"]) for r in rows] == [
        ('a "fine" boat, at sea', "64"), ("a lighthouse", "64")]  # fmt: skip
    sent.unlink()


def test_a_batch_is_taken_along_and_its_captions_tell_pictures_apart(eyes: Eyes, scene: Scene):
    ids = scene.stage.add("- a red boat at sea\n- a blue boat at sea\n", "boats.yaml")
    scene.stage.finish()
    scene.stage.finish()
    ticket = ticket_of(scene, ids[0])
    done = scene.stage.config.inbox / "done" / "20260102"
    done.mkdir(parents=True)
    (scene.stage.config.inbox / ".claimed").mkdir(exist_ok=True)
    (done / f"boats~{ticket[:8]}.yaml").write_text("- a red boat at sea\n")
    page = eyes.open(f"/batches/{ticket}")
    expect(page.locator(".card .prompt")).to_have_text(["red", "blue"])
    expect(page.locator("#main")).to_contain_text("took")
    for name, begin in (("its file", "- a red boat"), ("result table", "\ufeffrow,state")):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        assert download.value.path().read_text().startswith(begin)
    same = scene.stage.add(
        "- {prompt: a boat, seed: 7}\n- {prompt: a boat, seed: 8}\n", "same.yaml"
    )
    page.goto(f"/batches/{ticket_of(scene, same[0])}")
    expect(page.locator(".card .prompt")).to_have_text(["seed 7", "seed 8"])
