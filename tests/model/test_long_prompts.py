"""A prompt longer than the model reads: said at every way in and wherever the job is shown."""

import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from house_of_clients import House, house

from watcher.jobfile import parse
from watcher.jobfile.planner import Planner
from watcher.limits import Card, Limits
from watcher.models.catalogue import starter_folder
from watcher.models.tokens import cut_of, unknown_words

pytestmark = pytest.mark.timeout(300)  # the real model is loaded, on machines that may be busy

LIMITS = Limits(Card(folder=starter_folder()))
LONG = "a red house, " * 200  #: of 2,600 characters, beyond the 512 tokens of the encoder
SAID = "The prompt is longer than this model reads: 512 tokens of "


def warned(text: str) -> str | None:
    """The warning of its length that a job file of this prompt gives."""
    [plan] = parse(json.dumps({"prompt": text}).encode(), ".json", Planner(LIMITS)).requests
    return next((words for words in plan.warnings if words.startswith(SAID)), None)


def test_it_says_from_which_words_on_nothing_is_read() -> None:
    said = warned(LONG + "a red balloon")
    assert said is not None and said.startswith(SAID)
    place = int(said.split("from character ")[1].split(" ")[0])
    shown = said.split('on: "')[1].removesuffix(' …"')
    assert LONG[place - 1 :].startswith(shown) and LONG[place - 2] == " "


def test_an_exact_fit_is_no_cut() -> None:
    words = next(n for n in range(1, 600) if warned(" ".join(["fox"] * n)))
    assert warned(" ".join(["fox"] * (words - 1))) is None
    fits = " ".join(["fox"] * (words - 1) + ["balloon"])  # one token where another fox takes two
    assert warned(fits) is None
    said = warned(fits + " balloon")
    assert said is not None and said.endswith(f'character {len(fits) + 2} on: "balloon"')


@pytest.mark.parametrize(
    "text", ["\U0001f98a" * 200, "狐" * 300, "é" * 700, "İ" * 600, "\n".join(["x"] * 900)]
)
def test_any_script_is_counted(text: str) -> None:
    assert (warned(text) or "").startswith(SAID)


def test_short_prompts_and_unknown_models_get_no_word(tmp_path: Path) -> None:
    assert warned("a fox " * 20) is None
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    assert cut_of(tmp_path, LONG) is None and cut_of(None, LONG) is None


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("A red house, covered in SNOW, at night", None),
        ("a red fox in the snow", "`fox`,"),
        ("ein Haus", "`ein`, `haus`,"),
        ("一只猫", "`一只猫`,"),
        ("one two wolf bear lion tiger eagle otter crow", "`wolf`, `bear`, `lion`, `tiger`, `eagle` and 2 more,"),
    ],
)  # fmt: skip
def test_a_small_model_names_the_words_it_does_not_know(prompt: str, named: str | None) -> None:
    said = unknown_words(starter_folder(), prompt)
    assert said is None if named is None else said and f"does not know {named} so" in said
    [plan] = parse(json.dumps({"prompt": prompt}).encode(), ".json", Planner(LIMITS)).requests
    assert plan.warnings == ((said,) if said else ())


def test_a_model_that_lists_no_words_knows_them_all(tmp_path: Path) -> None:
    for profile in (None, "{}", '{"words": ""}', "[]", "{"):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        if profile is not None:
            (folder / "profile.json").write_text(profile)
        assert unknown_words(folder, "a fox") is None
    assert unknown_words(None, "a fox") is None


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("long") / "root"
    with house(folder, watch=False, engine="zimage", model="starter", engine_options={}) as made:
        made.root.watch()
        yield made


def get(here: House, path: str, body: Any = None, **headers: str) -> str:
    request = urllib.request.Request(here.url + path, headers=headers)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=250) as answer:
        return str(answer.read().decode())


def test_every_way_in_and_every_place_says_it(here: House) -> None:
    job = {"prompt": LONG, "seed": 3, "width": 64, "height": 64, "num_inference_steps": 2}
    dry = here.root.steady("submit", "--dry-run", LONG, "--size", "64x64")
    assert SAID in dry.stdout + dry.stderr
    assert SAID in get(here, "/jobs?dry_run=true", job)
    assert SAID in " ".join(json.loads(get(here, "/jobs", job))["warnings"])
    answer = json.loads(get(here, "/v1/images/generations", {"prompt": LONG, "size": "64x64"}))
    assert len([w for w in answer["warnings"] if SAID in w]) == 1
    here.root.drop("long.json", json.dumps([{**job, "prompt": "a red house"}, job]))
    result = until(lambda: next(here.root.folder.rglob("long~*.result.json"), None), 250)
    told = json.loads(result.read_text())
    short, long = told["jobs"]
    assert SAID in long["warnings"][0] and not short.get("warnings")
    shown = here.root.steady("status", long["id"])
    assert SAID in shown.stdout
    assert SAID in get(here, f"/jobs/{long['id']}", Accept="text/html")
    assert SAID in get(here, f"/jobs/{long['id']}", Accept="application/json")
    batch = f"/batches/{told['ticket']}"
    assert SAID in get(here, batch, Accept="text/html")
    assert SAID in " ".join(json.loads(get(here, batch))["warnings"])
    assert SAID in here.root.steady("status", told["ticket"]).stdout
