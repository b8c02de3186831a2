"""What a person thinks of a picture: on the record, in lists, taken along, in new batches."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from doors import Bench
from PIL import Image
from roots import Root

from watcher.chosen import rating_range
from watcher.errors import SteadyError
from watcher.pictures.container import scan, with_rating, xmp_of
from watcher.store import JobFilter


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("rating")) as bench:
        yield bench


def rate(bench: Bench, job_id: str, rating: Any) -> Any:
    return bench.client.patch(f"/jobs/{job_id}", json={"rating": rating})


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("4", (4, 4)), ("4..", (4, 5)), ("..2", (-1, 2)), ("2..3", (2, 3)), (">=4", (4, 5)),
        ("rating>=4", (4, 5)), ("rating = 5", (5, 5)), ("3+", (3, 5)), ("rejected", (-1, -1)),
        ("-1", (-1, -1)), ("0..", (0, 5)), ("<=2", (-1, 2)),
    ],
)  # fmt: skip
def test_how_ratings_are_said(words: str, meant: tuple[int, int]):
    assert rating_range(words) == meant


@pytest.mark.parametrize("words", ["", "good", "..", "4...", "rating", "4..x", "44", "4 5"])
def test_what_is_no_rating_is_refused(words: str):
    with pytest.raises(SteadyError) as error:
        rating_range(words)
    assert error.value.code == "out_of_range"


def test_a_rating_is_on_the_record_and_narrows_lists(bench: Bench):
    jobs = [bench.done(prompt=f"picture {n}") for n in range(3)]
    rev = bench.store.last_rev()
    assert rate(bench, jobs[0].id, 5).json()["rating"] == 5
    assert rate(bench, jobs[1].id, -1).json()["rating"] == -1
    assert bench.store.last_rev() == rev, "no transition: nobody counts it as a picture made"

    def listed(query: str) -> list[str]:
        return [job["prompt"] for job in bench.client.get(f"/jobs?{query}").json()["jobs"]]

    assert listed("rating=4..") == ["picture 0"]
    assert listed("rating=rejected") == ["picture 1"]
    assert listed("rating=0") == ["picture 2"]
    assert listed(f"rating=1..&batch={jobs[0].ticket}") == ["picture 0"]
    assert rate(bench, jobs[0].id, 0).json()["rating"] == 0
    assert listed("rating=4..") == []
    answer = bench.client.get("/jobs?rating=lots")
    assert answer.status_code == 422 and answer.json()["code"] == "out_of_range"


def test_only_pictures_are_rated_and_only_so(bench: Bench):
    job = bench.done(prompt="rated wrongly")
    for wrong in (6, -2, "5", 2.5):
        assert rate(bench, job.id, wrong).status_code == 422, wrong
    ticket = bench.post(prompt="waits")["job_id"]
    bench.watcher.take_in()
    assert rate(bench, ticket, 3).json()["code"] == "wrong_state"
    assert rate(bench, "00000000-0000-4000-8000-00000000ffff", 3).status_code == 404
    bench.watcher.finish()


def test_few_rated_of_many_are_found_by_their_index(bench: Bench):
    plan = bench.store.poll(
        "EXPLAIN QUERY PLAN SELECT * FROM jobs INDEXED BY jobs_rated WHERE rating BETWEEN 4 AND 5"
        " AND rating <> 0 ORDER BY seq DESC LIMIT 50"
    )
    assert all("jobs_rated" in row["detail"] for row in plan), plan


def rating_in(data: bytes) -> int:
    """What a catalogue of photographs finds in the file."""
    packet = Image.open(io.BytesIO(data)).info["xmp"]
    (found,) = ElementTree.fromstring(packet).iter("{http://ns.adobe.com/xap/1.0/}Rating")
    return int(str(found.text))


def picture(kind: str, **how: Any) -> bytes:
    made = io.BytesIO()
    Image.effect_noise((48, 32), 80).convert("RGB").save(made, kind, **how)
    return made.getvalue()


@pytest.mark.parametrize("recipe", [None, '{"prompt": "a <b> & c"}'])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "webp lossless"])
@pytest.mark.parametrize("rating", [-1, 5])
def test_a_rating_inside_a_file_leaves_pixels_and_recipe(
    kind: str, recipe: str | None, rating: int
):
    form, _, lossless = kind.partition(" ")
    how: dict[str, Any] = {"lossless": True} if lossless else {}
    if recipe and form != "png":
        how["xmp"] = xmp_of(recipe)
    before = picture(form, **how)
    after = with_rating(before, rating)
    assert (scan(after).ours, scan(after).width) == (scan(before).ours, 48)
    if recipe and form != "png":
        assert scan(after).ours == recipe.encode()
    opened = Image.open(io.BytesIO(after))
    assert opened.tobytes() == Image.open(io.BytesIO(before)).tobytes()
    assert rating_in(after) == rating
    if form != "png":  # where the one before stays beside it
        assert rating_in(with_rating(after, 3)) == 3


def test_a_batch_of_many_wants_pictures(bench: Bench):
    answer = bench.client.post("/jobs/again", json={"ids": ["nobody"]})
    assert answer.json()["code"] == "image_not_ready"
    job = bench.done(prompt="once more")
    body = {"ids": [job.id], "fields": {"width": 63}}
    assert bench.client.post("/jobs/again", json=body).status_code == 422
    assert bench.client.get("/jobs/images.zip").json()["code"] == "out_of_range"


def test_a_night_of_drafts_a_choice_and_a_night_of_large_ones(tmp_path: Path):
    """By the command alone, through the real service: four drafts, two chosen, two made larger."""
    root = Root(tmp_path / "root")
    root.drop("drafts.yaml", "- draft 0\n- draft 1\n- draft 2\n- draft 3\n")
    root.finish()
    from watcher.store import JobStore

    store = JobStore(f"sqlite:///{root.folder / 'steady.db'}", checkpointer=False)
    drafts = {job.request.prompt: job for job in store.jobs()}
    for n, rating in ((0, 5), (2, 4), (3, 2)):
        store.rate(drafts[f"draft {n}"].id, rating)
    done = root.steady("submit", "--from", "rating>=4", "--set", "num_inference_steps=9", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"] == 2
    done = root.steady("submit", "--from", "5", "--count", "3", "another prompt", "--json")
    assert json.loads(done.stdout)["jobs"] == 3
    root.finish()
    made = [job for job in store.jobs() if job.id not in {d.id for d in drafts.values()}]
    again = [job for job in made if job.request.prompt.startswith("draft")]
    assert sorted(job.request.prompt for job in again) == ["draft 0", "draft 2"]
    assert {j.request.seed for j in again} == {drafts[f"draft {n}"].request.seed for n in (0, 2)}
    others = {job.request.seed for job in made if job.request.prompt == "another prompt"}
    assert len(others) == 3 and drafts["draft 0"].request.seed not in others

    nothing = root.steady("submit", "--from", "3", "--json")
    assert nothing.returncode == 2 and "No picture is rated so" in nothing.stdout
    home = tmp_path / "home"
    done = root.steady("export", "--rating", "4..", str(home), "--json")
    assert json.loads(done.stdout)["jobs"] == 2, done.stderr
    taken = sorted(home.rglob("*.png"))
    assert len(taken) == 2
    assert sorted(rating_in(path.read_bytes()) for path in taken) == [4, 5]
    root.steady("export", "--rating", "5", str(tmp_path / "five.zip"))
    assert len(zipfile.ZipFile(tmp_path / "five.zip").namelist()) == 1

    store.close()
    root.close()


def test_prune_leaves_what_was_rated(tmp_path: Path):
    from test_prune import pruner, soon

    from watcher.store import JobStore

    root = Root(tmp_path / "root")
    root.drop("a.csv", "prompt\nkeep me\nthrow me away\nrejected\n")
    root.finish()
    store = JobStore(f"sqlite:///{root.folder / 'steady.db'}", checkpointer=False)
    jobs = {job.request.prompt: job for job in store.jobs()}
    store.rate(jobs["keep me"].id, 1)
    store.rate(jobs["rejected"].id, -1)
    told = sorted(path.name for path in (root.inbox / "done").rglob("a~*"))
    assert len(told) == 3  # the file and its two results
    gone = pruner(root, store).prune(soon(), images=True)
    assert (gone.batches, gone.jobs, gone.pictures, gone.files) == (0, 2, 2, 0)
    assert sorted(path.name for path in (root.inbox / "done").rglob("a~*")) == told
    (kept,) = store.jobs(JobFilter(rating=(1, 5)))
    assert kept.request.prompt == "keep me"
    assert (root.folder / "outputs" / kept.path).exists()
    assert pruner(root, store).prune(soon(), images=True).jobs == 0
    store.rate(kept.id, 0)
    gone = pruner(root, store).prune(soon())
    assert (gone.batches, gone.files) == (1, 3)
    store.close()
    root.close()
