"""Hot folders: ``presets/NAME.yaml`` makes ``inbox/NAME/`` an inbox of its own."""

import functools
import hashlib
import io
import json
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from history import faults
from PIL import Image
from roots import Root

from watcher.errors import SteadyError
from watcher.inbox import Claim
from watcher.inbox.arrivals import Arrivals, Glance
from watcher.inbox.hot import HotFolders
from watcher.inbox.watch import Inbox
from watcher.jobfile import parse
from watcher.jobfile.planner import Planner
from watcher.jobfile.presets import read_preset
from watcher.jobs import input_digest
from watcher.limits import Limits


class Box:
    """An inbox with its presets, and what was claimed from it."""

    def __init__(self, root: Path, *, rescan: float = 0.2) -> None:
        self.presets = root / "presets"
        self.presets.mkdir(exist_ok=True)
        self.folder = root / "inbox"
        self.inbox = Inbox(self.folder, settle=0.05, rescan=rescan)
        self.inbox.open()
        self.claims: list[Claim] = []

    def preset(self, name: str, text: str) -> None:
        draft = self.presets / f".{name}"
        draft.write_text(text)
        draft.rename(self.presets / f"{name}.yaml")

    def look(self) -> None:
        self.claims += self.inbox.scan()
        self.inbox.wait(0.05)

    def until(self, done: Callable[[], object], what: str) -> None:
        def looked() -> object:
            self.look()
            return done()

        until(looked, what=what)

    def hot(self, name: str) -> Path:
        """The folder of a preset, once it is watched."""
        folder = self.folder / name
        self.until(lambda: name in self.inbox.health()["hot"], f"{name}/ is hot")
        return folder


@pytest.fixture
def box(root: Path) -> Iterator[Box]:
    box = Box(root)
    yield box
    box.inbox.close()


def test_a_file_there_is_claimed_together_with_the_preset_as_it_is(box: Box) -> None:
    box.preset("ink", "prompt: old\n")
    folder = box.hot("ink")
    (folder / "a.yaml").write_text("prompt: a")
    box.until(lambda: box.claims, "the file is claimed")
    box.preset("ink", "prompt: new\n")
    box.until(lambda: box.hot("ink"), "the new preset lies still")
    (folder / "b.yaml").write_text("prompt: b")
    box.until(lambda: len(box.claims) == 2, "the second file is claimed")
    assert [(c.name, c.hot, c.stem, c.source) for c in box.claims] == [
        ("ink/a.yaml", "ink", "a", "file"),
        ("ink/b.yaml", "ink", "b", "file"),
    ]
    assert [c.preset and c.preset.read_text() for c in box.claims] == [
        "prompt: old\n",
        "prompt: new\n",
    ]
    assert list(folder.iterdir()) == []
    box.inbox.close()
    again = Inbox(box.folder, settle=0.05, rescan=0.2)
    again.open()
    assert again.leftovers() == box.claims, "the path alone tells all of it"
    for claim in box.claims:
        assert again.find(claim.ticket) == claim
    beside = [(".yaml.result.json", [b"{}"])]
    again.archive(box.claims[0].ticket, "ink/a.yaml", ".yaml", day="20260101", beside=beside)
    kept = box.folder / "done" / "20260101" / f"a~{box.claims[0].ticket[:8]}.yaml"
    assert kept.read_text() == "prompt: a"
    again.refuse(box.claims[1], {"code": "bad_yaml"})
    reason = json.loads((box.folder / "refused" / "b.yaml.error.json").read_text())
    assert reason["file"] == "ink/b.yaml"
    again.close()
    last = Inbox(box.folder, settle=0.05, rescan=0.2)
    last.open()
    last.close()
    assert list((box.folder / ".claimed").iterdir()) == [], "rooms go when nothing lies in them"


def test_folders_come_and_go_with_their_presets_while_it_runs(root: Path) -> None:
    (root / "presets").mkdir()
    box = Box(root, rescan=600)  # so that only events tell
    box.preset("ink", "prompt: x\n")
    folder = box.hot("ink")
    box.preset("pen", "prompt: y\n")
    second = box.hot("pen")
    for each in (folder, second):
        (each / "a.yaml").write_text("prompt: a")
    box.until(lambda: len(box.claims) == 2, "both folders are heard of")
    (box.presets / "pen.yaml").unlink()
    box.inbox.ring()  # that something went makes no event
    (second / "b.yaml").write_text("prompt: b")
    words = "pen/ is no hot folder any more, as presets/pen.yaml is gone."
    box.until(lambda: any(words in n for n in box.inbox.health()["notices"]), "it is said")
    assert len(box.claims) == 2
    box.preset("pen", "prompt: z\n")
    box.until(lambda: len(box.claims) == 3, "what waited is taken")
    assert box.inbox.health()["notices"] == []
    box.inbox.close()


def test_a_folder_that_was_made_anew_is_watched_again(root: Path) -> None:
    (root / "presets").mkdir()
    box = Box(root, rescan=600)
    box.preset("ink", "prompt: x\n")
    folder = box.hot("ink")
    folder.rename(root / "elsewhere")
    box.inbox.ring()
    box.until(folder.exists, "it is made anew")
    (folder / "a.yaml").write_text("prompt: a")
    box.until(lambda: box.claims, "its file is heard of")
    box.inbox.close()


class Left(Arrivals):
    """A folder that is taken away as soon as it was looked at."""

    def look(self, now: float, apart: Collection[str] = ()) -> Glance:
        found = super().look(now, apart)
        if self.folder.name == "ink":
            self.folder.rename(self.folder.with_name("gone"))
        return found


def test_a_folder_may_go_while_it_is_looked_at(tmp_path: Path) -> None:
    presets, inbox = tmp_path / "presets", tmp_path / "inbox"
    for folder in (presets, inbox / "ink"):
        folder.mkdir(parents=True)
    (presets / "ink.yaml").write_text("prompt: x\n")
    (inbox / "ink" / "a.yaml").write_text("label: a\n")
    hot = HotFolders(inbox, presets, functools.partial(Left, settle=0))
    found: list[str] = []
    for now in range(3):
        found += [arrival.hot for arrival in hot.look(float(now)).ready]
        assert set(found) <= hot.folders.keys()
        if (inbox / "gone").exists():
            break
    assert found == ["ink"]


def test_nothing_is_claimed_while_the_preset_is_being_written(box: Box) -> None:
    box.preset("ink", "prompt: x\n")
    folder = box.hot("ink")
    with (box.presets / "ink.yaml").open("w") as writer:
        writer.write("prompt: half")
        writer.flush()
        (folder / "a.yaml").write_text("prompt: a")
        begun = time.monotonic()
        while time.monotonic() < begun + 0.6:
            box.look()
        assert box.claims == []
        writer.write(" and whole\n")
    box.until(lambda: box.claims, "the preset is whole")
    assert box.claims[0].preset and box.claims[0].preset.read_text() == "prompt: half and whole\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("done", "presets/done.yaml makes no hot folder: a folder of this name means"),
        ("a@b", "presets/a@b.yaml makes no hot folder: `@`, `~`, `\\` and control"),
        ("ink.yml", "presets/ink.yml.yaml"),
    ],
)
def test_what_makes_no_hot_folder_is_said(box: Box, name: str, words: str) -> None:
    if name == "ink.yml":
        (box.presets / "ink.yml").write_text("prompt: x")
        words = "presets/ink.yml is no job file."
    else:
        box.preset(name, "prompt: x\n")
    box.until(lambda: any(words in n for n in box.inbox.health()["notices"]), words)


def test_a_link_in_its_place_is_not_followed(box: Box, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.yaml").write_text("prompt: a")
    os.symlink(elsewhere, box.folder / "ink")
    box.preset("ink", "prompt: x\n")
    words = "The hot folder ink/ cannot be used"
    box.until(lambda: any(words in n for n in box.inbox.health()["notices"]), words)
    assert box.claims == []


# ---------------------------------------------------------------- what a preset says


def read(text: str, suffix: str, preset: str) -> list[dict[str, object]]:
    limits = Limits()
    parsed = parse(
        text.encode(), suffix, Planner(limits, preset=read_preset(preset.encode(), limits))
    )
    return [each.request.model_dump(exclude_none=True) for each in parsed.requests]


PRESET = "prompt: a fox in ink\nsteps: 5\nsize: 512x256\nlabel: ours\n"


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("prompt: a cat\nlabel: mine\n", ".yaml"),
        ('[{"prompt": "a cat", "label": "mine"}]', ".json"),
        ("defaults: {label: mine}\njobs: [a cat]\n", ".yaml"),
        ('{"prompt": "a cat", "label": "mine"}\n', ".jsonl"),
        ("prompt,label\na cat,mine\n", ".csv"),
    ],
)
def test_what_the_file_says_goes_before_the_preset(text: str, suffix: str) -> None:
    (made,) = read(text, suffix, PRESET)
    assert (made["prompt"], made["label"]) == ("a cat", "mine")
    assert (made["num_inference_steps"], made["width"], made["height"]) == (5, 512, 256)


def test_a_table_needs_no_prompt_column_where_the_preset_has_one() -> None:
    made = read("seed\n1\n2\n", ".csv", PRESET)
    assert [(m["prompt"], m["seed"]) for m in made] == [("a fox in ink", 1), ("a fox in ink", 2)]
    with pytest.raises(SteadyError, match="one of them `prompt`"):
        read("seed\n1\n", ".csv", "steps: 4\n")


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("stepps: 4\n", "`stepps` is not known"),
        ("steps: 400\n", "Line 1: `steps` must be"),
        ("prompt: x\nkey: k\n", "`key` cannot stand in a preset."),
        ("- prompt: x\n", "A preset is one mapping"),
        ("jobs: [x]\n", "A preset is one mapping"),
        ("prompt: a: b\n", "Line 1"),
        ("name: a/b\n", "`name` may hold"),
    ],
)
def test_a_preset_that_is_wrong_is_refused_in_words(preset: str, words: str) -> None:
    with pytest.raises(SteadyError) as refused:
        read_preset(preset.encode(), Limits())
    assert words in str(refused.value)


# ---------------------------------------------------------------- from the drop to the picture


def test_the_preset_of_the_claim_decides_also_after_a_crash(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.preset("ink", "prompt: old steps=1\n")
    root.drop("ink/a.yaml", "label: mine\n")
    assert root.watch(point="claimed", once=True).wait(60) == -signal.SIGKILL
    (root.folder / "presets" / "ink.yaml").unlink()
    root.finish()
    assert [(job["prompt"], job["state"]) for job in root.jobs()] == [("old steps=1", "completed")]


def test_a_file_under_a_wrong_preset_is_refused_and_told_which_line(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.preset("ink", "prompt: x\nstepps: 3\n")
    root.drop("ink/a.yaml", "label: mine\n")
    root.finish()
    reason = json.loads((root.inbox / "refused" / "a.yaml.error.json").read_text())
    assert reason["code"] == "bad_preset"
    assert reason["message"] == "presets/ink.yaml: Line 2: `stepps` is not known."
    assert [(p["file"], p["line"]) for p in reason["problems"]] == [("presets/ink.yaml", 2)]


def test_a_prompt_and_a_file_are_submitted_under_a_preset(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.preset("ink", "steps: 3\nlabel: ours\n")
    (root.folder / "many.csv").write_text("prompt,label\na cat,\na dog,mine\n")
    assert root.steady("submit", "--preset", "ink", "a fox").returncode == 0
    assert root.steady("submit", "--preset", "ink", str(root.folder / "many.csv")).returncode == 0
    refused = root.steady("submit", "--preset", "oil", "never")
    assert refused.returncode == 2 and "no preset `oil`" in refused.stderr
    assert "There are: ink." in refused.stderr
    root.finish()
    made = [json.loads(job["request"]) for job in root.jobs()]
    assert [(job["prompt"]) for job in root.jobs()] == ["a fox", "a cat", "a dog"]
    assert [(m["num_inference_steps"], m["label"]) for m in made] == [
        (3, "ours"),
        (3, "ours"),
        (3, "mine"),
    ]


def test_a_body_is_posted_under_a_preset(bench: Any) -> None:
    folder = bench.config.presets
    folder.mkdir()
    (folder / "ink.yaml").write_text("steps: 3\n")
    body = {"prompt": "a fox"}
    plan = bench.client.post("/jobs?preset=ink&dry_run=true", json=body).json()
    assert plan["jobs"][0]["num_inference_steps"] == 3
    assert bench.client.post("/jobs?preset=ink", json=body).status_code == 202
    keyed = {"key": "night", "expand": "wildcards", "jobs": ["a {red|blue|grey} {seed}"] * 2}
    once, again = (bench.client.post("/jobs?preset=ink", json=keyed) for _ in range(2))
    assert once.json()["ticket"] == again.json()["ticket"]
    assert "idempotency-replayed" in again.headers
    key = {"headers": {"Idempotency-Key": "once"}}
    tickets = {bench.client.post("/jobs?preset=ink", json=body, **key).json()["ticket"]}
    bench.watcher.take_in()
    for change in ("steps: 4\n", "steps: nonsense\n"):  # what was sent is the same
        (folder / "ink.yaml").write_text(change)
        answer = bench.client.post("/jobs?preset=ink", json=body, **key)
        assert "idempotency-replayed" in answer.headers, answer.json()
        tickets.add(answer.json()["ticket"])
    assert len(tickets) == 1
    (folder / "pen.yaml").write_text("steps: 3\n")
    for other in ("/jobs?preset=pen", "/jobs"):
        assert bench.client.post(other, json=body, **key).json()["code"] == "key_conflict"
    answer = bench.client.post("/jobs?preset=oil", json=body)
    assert answer.status_code == 422 and "no preset `oil`" in answer.json()["detail"]


# ---------------------------------------------------------------- pictures


def drawn(colour: str = "orange", kind: str = "PNG", size: tuple[int, int] = (96, 64)) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, colour).save(made, kind)
    return made.getvalue()


@pytest.fixture
def pictured(make_root: Callable[..., Root], tmp_path: Path) -> Root:
    """A root whose engine takes pictures, and knows it from the start."""
    options = {"log": str(tmp_path / "root" / "engine.log"), "accepts": ["image", "mask"]}
    root = make_root(engine_options=options)
    root.drop("first.yaml", "prompt: first steps=1\n")
    root.finish()
    return root


def test_a_picture_dropped_there_is_a_job_that_starts_from_it(pictured: Root) -> None:
    root = pictured
    root.preset("ink", "prompt: drawn in ink steps=1\nstrength: 0.4\nfolder: ink\n")
    made = drawn()
    root.drop("ink/Cat 1.png", made)
    root.drop("ink/scan.TIF", drawn("navy", "TIFF"))
    recipe = next((root.folder / "outputs").rglob("*.png"))
    root.drop("ink/again.png", recipe.read_bytes())
    root.finish()
    jobs = {job["image_name"]: job for job in root.jobs()[1:]}
    assert sorted(job["path"] for job in jobs.values()) == [
        "ink/Cat-1.png", "ink/again.png", "ink/scan.png",
    ]  # fmt: skip
    assert {job["prompt"] for job in jobs.values()} == {"drawn in ink steps=1"}, "not made again"
    said = json.loads(jobs["Cat-1"]["request"])
    assert (said["strength"], said["width"], said["height"]) == (0.4, 96, 64)
    assert input_digest(said["image"]) == hashlib.sha256(made).hexdigest()
    kept = sorted(p.name.split("~")[0] for p in (root.inbox / "done").rglob("*.result.json"))
    assert kept == ["Cat 1", "again", "first", "scan"]
    assert faults(root.folder, expected=4, log=root.log) == []


def test_a_job_file_there_may_name_a_picture_of_its_own(pictured: Root) -> None:
    root = pictured
    (root.folder / "inputs").mkdir()
    (root.folder / "inputs" / "cat.png").write_bytes(drawn())
    root.preset("ink", "prompt: x steps=1\nstrength: 0.4\nname: '{image}-{strength}'\n")
    root.drop("ink/a.csv", "image,strength\ncat.png,\ncat.png,0.9\n")
    root.finish()
    assert [job["image_name"] for job in root.jobs()[1:]] == ["cat-0.4", "cat-0.9"]


@pytest.mark.parametrize(
    ("preset", "data", "code", "words"),
    [
        ("strength: 0.4\n", drawn(), "bad_preset", "presets/ink.yaml: There is no `prompt`"),
        ("prompt: x\n", b"no picture", "bad_picture", "`ink/a.png` is no picture"),
        ("prompt: x\n", drawn()[:-40], "bad_picture", "`ink/a.png` is damaged or cut off"),
        ("prompt: x\nimage: a.png\n", drawn(), "bad_preset", "`image` cannot stand in a preset"),
        ("prompt: x\nmask: gone.png\n", drawn(), "input_missing", "gone.png"),
    ],
)
def test_what_cannot_be_started_from_is_refused_in_words(
    pictured: Root, preset: str, data: bytes, code: str, words: str
) -> None:
    root = pictured
    root.preset("ink", preset)
    root.drop("ink/a.png", data)
    root.finish()
    reason = json.loads((root.inbox / "refused" / "a.png.error.json").read_text())
    assert (reason["code"], reason["file"]) == (code, "ink/a.png")
    assert words in reason["message"]
    assert (root.inbox / "refused" / "a.png").read_bytes() == data


@pytest.mark.parametrize("point", ["claimed", "input_written", "input_noted", "parsed", "recorded"])
def test_a_picture_is_one_job_wherever_the_watcher_dies(pictured: Root, point: str) -> None:
    root = pictured
    root.preset("ink", "prompt: old steps=1\n")
    root.drop("ink/a.png", drawn())
    assert root.watch(point=point, once=True).wait(60) == -signal.SIGKILL
    root.preset("ink", "prompt: new steps=1\n")
    root.watch(point="*", once=True).wait(60)
    root.finish()
    assert [job["prompt"] for job in root.jobs()[1:]] == ["old steps=1"]
    assert faults(root.folder, expected=2, log=root.log, kills=2) == []


def test_a_burst_of_pictures_is_taken_whole(pictured: Root) -> None:
    root = pictured
    root.preset("ink", "prompt: x steps=1\n")
    for number in range(300):
        root.drop(f"ink/{number:04}.png", drawn(f"#{number:06x}", size=(16, 16)))
    root.finish(300)
    assert root.states() == ["completed"] * 301
    names = {job["image_name"] for job in root.jobs()[1:]}
    assert names == {f"{number:04}" for number in range(300)}


def test_the_example_is_a_preset(pictured: Root) -> None:
    example = Path(__file__).parents[2] / "examples" / "presets" / "restyle.yaml"
    pictured.preset("restyle", example.read_text())
    pictured.drop("restyle/house.png", drawn())
    pictured.finish()
    assert [job["path"] for job in pictured.jobs()[1:]] == ["restyled/house.png"]
