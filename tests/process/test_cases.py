"""What people really drop, each file with its right value, at every way in.

The files of cases/ stand for kinds: tables of other programs, prompts in their syntax, files
with slips, pictures made elsewhere.
"""

import gzip
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import Running, running
from eyes import Eyes
from history import rows
from PIL import Image, PngImagePlugin
from roots import Root
from test_cli import steady
from test_page import drop

from watcher.config import Config
from watcher.errors import SteadyError
from watcher.jobfile import Parsed, parse
from watcher.jobfile.planner import Planner
from watcher.jobfile.tables import refused_csv
from watcher.limits import Card, Limits
from watcher.models.cards import limits_known
from watcher.models.catalogue import starter_folder
from watcher.suffixes import FORMS

HERE = Path(__file__).parents[1]
CASES = HERE / "cases"
FILES = sorted(
    path
    for folder in (CASES, HERE.parent / "examples")
    for path in folder.rglob("*")
    if path.suffix in FORMS and path.parent.name != "folder_dropped_whole"
    # a row's own key is used once: what a second way in would add is nothing
    if path.name != "rows_that_share_a_key.csv"
)


def read(name: str) -> Parsed:
    path = CASES / name
    return parse(path.read_bytes(), path.suffix, Planner(Limits()), stem=path.stem)


def refusal(name: str) -> SteadyError:
    with pytest.raises(SteadyError) as caught:
        read(name)
    return caught.value


@pytest.mark.parametrize(
    ("name", "right", "warnings"),
    [
        ("tables/quote_starts_a_cell.tsv", ['"H O O T" spelled in driftwood on a beach', 'a shop window that says "OPEN"'], ()),
        ("tables/unbalanced_quote.tsv", ['"BAKERY" in neon over a door', '"a half open quote on a wall', "a lighthouse at dusk"], ()),
        ("tables/nameless_index_column.csv", ["a red balloon over the sea", "a lighthouse at night"], ("Column 1 has no name and was left out.",)),
        ("tables/result_table_dropped_again.csv", ["@harbour style lighthouse"], ()),
        ("tables/type_line_before_the_header.csv", ["a lighthouse"], ("The first line, `#TYPE …`, was left out.",)),
        ("tables/pipes.csv", ["a lighthouse"], ()),
        ("tables/a_short_row.csv", ["a cat by", "a dog by Monet"], ()),
        ("text/a_prompt_like_a_field.txt", ["a cat", "a dog", "prompt: a horse"], ()),
        ("text/comment_lines.txt", ["a lighthouse", "a boat"], ()),
        ("text/utf16.txt", ["a lighthouse", "a café by the sea"], ()),
        ("text/line_separator.txt", ["a lighthouse\u2028by the sea", "a boat\x0bin fog"], ()),
        ("text/fenced_by_a_chat.yaml", ["a lighthouse"], ()),
        ("text/midjourney_flags.csv", ["a lighthouse at dusk --ar 16:9 --v 6 --style raw"], ("Options in a prompt, such as `--ar`, are drawn as text here; give `size`, `seed` and the like as fields.",)),
        ("text/webui_prompt_lines.txt", ["a castle on a hill", "a dog on a beach"], ("Line 1 and 1 more: the settings of another program were read.",)),
        ("text/pasted_generation_data.txt", ["a red balloon, snow"], ("Line 1: the settings of another program were read.",)),
        ("inbox/meant.ndjson", ["a lighthouse"], ()),
        ("inbox/meant.jsonlines", ["a lighthouse"], ()),
        ("inbox/meant.tab", ["a boat"], ()),
        ("inbox/not_before_in_the_spring_gap.yaml", ["gap", "after", "fold"], ()),
        ("pictures/webui_a_size8.png", ["a red fox"], ("608x912 is used instead of 600x904.",)),
        ("pictures/webui_a_steps150.png", ["a red fox"], ("99 steps are used instead of 150.",)),
        ("pictures/webui_a_cfg30.png", ["a red fox"], ("CFG scale: 31 is used instead of 32.",)),
        ("pictures/webui_a_template.png", ["a painting of a girl"], ()),
    ],
)  # fmt: skip
def test_what_is_read(name: str, right: list[str], warnings: tuple[str, ...]) -> None:
    parsed = read(name)
    assert [planned.request.prompt for planned in parsed.requests] == right
    of_picture = name.startswith("pictures/")  # what it says is its jobs'
    said = parsed.requests[0].warnings if of_picture else parsed.warnings
    said = tuple(each for each in said if "has no effect on this model" not in each)
    assert (said, tuple(parsed.refused)) == (warnings, ())


def test_settings_of_other_programs_are_taken_over() -> None:
    first, second = (p.request for p in read("text/webui_prompt_lines.txt").requests)
    assert (first.negative_prompt, first.num_inference_steps, first.seed) == ("trees", 21, 5)
    assert (first.width, first.height) == (512, 768)
    assert (second.negative_prompt, second.num_inference_steps) == ("low quality", 29)
    (pasted,) = (p.request for p in read("text/pasted_generation_data.txt").requests)
    assert (pasted.negative_prompt, pasted.num_inference_steps, pasted.seed) == ("blurry", 21, 5)
    (floats,) = (p.request for p in read("text/whole_numbers_as_floats.json").requests)
    assert (floats.width, floats.num_inference_steps, floats.seed) == (512, 9, 7)
    with pytest.raises(SteadyError):
        parse(b'{"prompt": "x", "width": 512.5}', ".json", Planner(Limits()))
    pair = parse(b'{"prompt": "x", "count": 2.0, "seed": 7.0}', ".json", Planner(Limits()))
    assert [planned.request.seed for planned in pair.requests] == [7, 8]


def test_what_the_encoder_does_not_read_is_named_for_each_job() -> None:
    data = (CASES / "text/longer_than_the_encoder.json").read_bytes()
    parsed = parse(data, ".json", Planner(Limits(Card(folder=starter_folder()))))
    told = [planned.warnings for planned in parsed.requests]
    prompts = [each["prompt"] for each in json.loads(data)]
    assert [planned.request.prompt for planned in parsed.requests] == prompts
    for prompt, warnings in zip(prompts, told, strict=True):
        [words] = [each for each in warnings if "tokens" in each]
        assert "512 tokens of" in words and words.split('"')[1].removesuffix(" …") in prompt


def test_a_time_in_the_spring_gap_is_never_early() -> None:
    code = (
        "import sys; from watcher.jobfile import parse; from watcher.limits import Limits\n"
        "from watcher.jobfile.planner import Planner\n"
        "for each in parse(sys.stdin.buffer.read(), '.yaml', Planner(Limits())).requests:\n"
        "    print(each.not_before)"
    )
    data = (CASES / "inbox/not_before_in_the_spring_gap.yaml").read_bytes()
    zone = os.environ | {"TZ": "Europe/Berlin"}
    done = subprocess.run([sys.executable, "-c", code], input=data, env=zone, capture_output=True)
    right = ["2027-03-28T03:30+02:00", "2027-03-28T03:30+02:00", "2027-10-31T02:30+02:00"]
    assert [int(line) for line in done.stdout.split()] == [
        int(datetime.fromisoformat(moment).timestamp()) * 1_000_000 for moment in right
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text/fullwidth_colon.yaml", ["Line 1", "U+FF1A", "column 7", "`prompt: `"]),
        ("text/no_break_space.yaml", ["Line 1", "U+00A0", "column 8", "`prompt: `"]),
        ("text/no_blank_after_colon.yaml", ["Line 1", "blank", "column 8", "`prompt: `"]),
        ("text/comfy_workflow.json", ["ComfyUI workflow", "as a job of ours"]),
    ],
)
def test_what_is_refused_says_what_to_do(name: str, words: list[str]) -> None:
    said = str(refusal(name))
    assert [word for word in words if word not in said] == []


def test_rows_whose_quotes_do_not_fit_come_back_whole() -> None:
    problems = refusal("tables/quotes_inside_quotes.csv").problems
    assert [(p.row, p.line, p.code) for p in problems] == [(1, 2, "bad_csv"), (2, 3, "bad_csv")]
    text = (CASES / "tables/quotes_inside_quotes.csv").read_text() + "a fox,3\n"
    given_back = b"".join(
        refused_csv(lambda: parse(text.encode(), ".csv", Planner(Limits())).refused)
    )
    for cell in ('The Song of "Blue Harbour": Part Two', 'a sign that says "OPEN"', " neon"):
        assert cell.replace('"', '""') in given_back.decode()


def test_a_formula_goes_out_guarded_and_comes_back_as_it_was() -> None:
    given_back = b"".join(refused_csv(lambda: read("tables/formula_in_a_refused_row.csv").refused))
    assert b"\r\n'=1+1,oops," in given_back
    (mended,) = parse(given_back.replace(b"oops", b"7"), ".csv", Planner(Limits())).requests
    assert mended.request.prompt == "=1+1"


@pytest.mark.parametrize(
    ("text", "suffix", "kind"),
    [
        ("prompt\na (red:1.4) fox\nan [owl:0.5]\n", ".csv", "Weights"),
        ("a fox <lora:ink:0.8>\n<lora:x:1> owl\n", ".txt", "<lora:"),
        ("- a fox BREAK snow\n- b BREAK c\n", ".yaml", "BREAK"),
        ('"a fox --ar 16:9"\n"b --v 6"\n', ".jsonl", "`--ar`"),
    ],
)
def test_syntax_of_others_is_named_once_and_kept(text: str, suffix: str, kind: str) -> None:
    parsed = parse(text.encode(), suffix, Planner(Limits()))
    assert len(parsed.warnings) == 1
    assert kind in parsed.warnings[0]
    assert len(parsed.requests) == 2
    assert all(planned.request.prompt in text for planned in parsed.requests)


@pytest.mark.parametrize(
    "recipe",
    [
        {"request": {"prompt": "x", "model": ["a"]}},
        {"request": "x", "source": "a1111"},
        {"request": {"prompt": "x", "width": "abc", "height": 3}, "source": "a1111"},
        {"request": {"prompt": "x", "seed": "abc"}, "source": "a1111"},
        {"request": {"prompt": "x", "cfg_scale": "a", "model": {}}, "source": "a1111"},
    ],
)
def test_a_recipe_that_somebody_wrote_by_hand_is_refused(recipe: dict[str, Any]) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("steadydiffusion", json.dumps(recipe))
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG", pnginfo=text)
    with pytest.raises(SteadyError):
        parse(picture.getvalue(), ".png", Planner(Limits()))


def test_seeds_and_ends_that_are_not_ours() -> None:
    data = (CASES / "pictures/webui_a_template.png").read_bytes()
    assert parse(data + b"behind its end", ".png", Planner(Limits())).requests
    pasted = "a fox\nSteps: 8, Sampler: Euler, Seed: 18446744073709551615, Size: 64x64\n"
    (planned,) = parse(pasted.encode(), ".txt", Planner(Limits())).requests
    assert planned.request.seed == 2**63 - 1
    assert [w for w in planned.warnings if "18446744073709551615" in w]


@pytest.mark.parametrize(
    ("text", "suffix", "line", "word"),
    [
        ('{"prompt": "a",\n "width": NaN}\n', ".json", 2, "NaN"),
        ('{"prompt": "a",\n "width": 64\n', ".json", 2, "delimiter"),
        ("prompt: a\nname: [b\n", ".yaml", 2, "not closed"),
        ("expand: wildcards\nprompt: __no_such__\n", ".yaml", 2, "wildcards/no_such.txt"),
        ("prompt: a\nseed:5\n", ".yaml", 2, "`seed: `"),
        ("- a fox\n- prompt:an owl\n", ".yaml", 2, "`prompt: `"),
    ],
)
def test_remedies_name_the_line(text: str, suffix: str, line: int, word: str) -> None:
    with pytest.raises(SteadyError) as caught:
        parse(text.encode(), suffix, Planner(Limits()))
    assert caught.value.problems[0].line == line
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("data", "suffix", "word"),
    [
        (gzip.compress(b'{"prompt": "a"}', mtime=0), ".json", "Unpack"),
        (b"PK\x03\x04\x14\x00xl/workbook.xml", ".csv", "as .csv"),
        (b"\x89PNG\r\n\x1a\n", ".txt", "suffix"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", ".yaml", "suffix"),
        (b"%PDF-1.7\nabc\n", ".txt", "its text"),
        (b"{\\rtf1\\ansi a fox}", ".txt", "plain text"),
        (b"<!DOCTYPE html>\n<p>a fox", ".json", "the text alone"),
        (b"# mine\n- prompt: a\n  seed: 5\n", ".txt", ".yaml"),
        (b"Prompt: a fox\nPrompt: an owl\n", ".txt", "alone"),
        (b"Prompt;Seed\na fox;5\n", ".txt", ".csv"),
        (b'{"prompt": "a fox"}\n', ".txt", ".json"),
        (b"prompt: a\nseed: 5\n", ".json", ".yaml"),
        (b"prompt,seed\na,5\n", ".yaml", ".csv"),
        (b'{"prompt": "a", "seed": 5}\n', ".csv", ".json"),
        (b"prompt: a\nseed: 5\n", ".csv", ".yaml"),
        (b'[{"prompt": "a"},\n{"prompt": "b"}]\n', ".jsonl", "Call the file .json."),
        (b'{\n "prompt": "a"\n}\n', ".jsonl", "Call the file .json."),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(data: bytes, suffix: str, word: str) -> None:
    with pytest.raises(SteadyError) as caught:
        parse(data, suffix, Planner(Limits()))
    assert word in caught.value.remedy


@pytest.mark.parametrize(
    "text", ["a prompt, a seed", "prompt", "prompt, portrait", "a: b", "[x] y"]
)
def test_a_prompt_that_only_resembles_another_kind_is_a_prompt(text: str) -> None:
    (planned,) = parse(text.encode(), ".txt", Planner(Limits())).requests
    assert planned.request.prompt == text


def collection() -> tuple[list[str], bytes]:
    """1,632 prompts, and the table that holds them: tabs, capital headers, columns of its own and
    quotes, the shape of a public collection."""
    parts = [
        '"{}" on a sign',
        'a {} that says "OPEN"',
        '"{}',
        "{}, 35\u00a0mm",
        "{}\u2028at dusk",
        "'{}'",
        '{}"',
    ]
    written = [parts[n % len(parts)].format(f"a harbour {n}") for n in range(1632)]
    lines = [f"{text}\tAnimals\t{n % 7}\t" for n, text in enumerate(written)]
    return written, ("\ufeffPrompt\tCategory\tChallenge\tNote\n" + "\n".join(lines) + "\n").encode()


def test_a_collection_of_1632_prompts_is_read_byte_for_byte() -> None:
    written, data = collection()
    parsed = parse(data, ".tsv", Planner(Limits(max_jobs_per_file=2000)))
    assert [planned.request.prompt for planned in parsed.requests] == written
    assert [planned.row for planned in parsed.requests] == list(range(1, 1633))
    assert parsed.requests[9].request.metadata == {"Category": "Animals", "Challenge": "2"}


# -- every way in


def content(path: Path, way: str) -> bytes:
    """A file's bytes; its key made the way's own, since a key is used once."""
    return path.read_bytes().replace(b"key: ", f"key: {way}-".encode())


def made(root: Root, ticket: str, path: Path) -> list[dict[str, Any]]:
    """What a batch's jobs ask for, without what hangs on the ticket or the way."""
    said = parse(
        content(path, "x"), path.suffix, Planner(limits_of_root(root)), keyed=True
    ).requests
    jobs = [
        json.loads(job["request"])
        | {"prompt on record": job["prompt"], "not before": job["not_before"]}
        for job in root.jobs()
        if job["ticket"] == ticket
    ]
    assert len(jobs) == len(said)
    for job, planned in zip(jobs, said, strict=True):
        for name in ("priority", "key", *(["seed"] if planned.request.seed is None else [])):
            job.pop(name, None)
        assert job.pop("prompt on record").encode() == planned.request.prompt.encode()
        assert job.pop("not before") == planned.not_before
    return jobs


def limits_of_root(root: Root) -> Limits:
    return limits_known(Config.load(root.folder), None)


def fault(path: Path, limits: Limits) -> str:
    try:
        parse(content(path, "x"), path.suffix, Planner(limits), keyed=True)
    except SteadyError as error:
        return error.code
    return ""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Root, Running]]:
    root = Root(tmp_path_factory.mktemp("cases") / "root")
    with running(root.folder) as service:
        root.watch()
        until(lambda: root.pulse().get("state"), 60)
        assert steady(root, "pause").returncode == 0
        yield root, service
    root.close()


@pytest.mark.timeout(300)
def test_every_file_makes_the_same_jobs_at_every_way_in(
    house: tuple[Root, Running],
    browser: Any,
) -> None:
    root, service = house
    tickets: dict[Path, dict[str, str]] = {path: {} for path in FILES}
    bad = {path: fault(path, limits_of_root(root)) for path in FILES}
    for path in FILES:
        root.drop(path.name, content(path, "inbox"))
        status, answer = post(service, f"/jobs?filename={path.name}", content(path, "http"))
        assert answer.get("code", "") == bad[path], (path, answer)
        assert status == (422 if bad[path] else 202)
        tickets[path]["http"] = answer.get("ticket", "")
        (root.folder / path.name).write_bytes(content(path, "command"))
    good = [path for path in FILES if not bad[path]]
    done = steady(root, "submit", "--json", *(path.name for path in good))
    assert done.returncode == 0, done.stderr
    for path, line in zip(good, done.stdout.splitlines(), strict=True):
        tickets[path]["command"] = json.loads(line)["ticket"]
    for path in set(FILES) - set(good):
        assert steady(root, "submit", path.name).returncode == 2
    before = {batch["ticket"] for batch in batches(root)}

    eyes = Eyes(browser, service.url)
    eyes.expected = ["422"]
    page = eyes.open()
    drop(page, *((path.name, content(path, "page")) for path in FILES))
    page.locator("#preview-go").click(timeout=60_000)

    def sent() -> set[str]:
        by_page = {b["ticket"] for b in batches(root) if b["source"] != "file"}
        return by_page - before

    until(lambda: len(sent()) >= len(good), 60)
    eyes.close()

    def settled() -> bool:
        return all(b["recorded_at"] or b["error"] for b in batches(root))

    until(settled, 60)
    for batch in batches(root):
        known = [
            path
            for path in FILES
            if path.name in (batch["name"], f"{batch['name']}{batch['suffix']}")
        ]
        if batch["source"] == "file":
            tickets[known[0]]["inbox"] = batch["ticket"]
            assert (json.loads(batch["error"])["code"] if batch["error"] else "") == bad[known[0]]
        elif batch["ticket"] not in before:
            tickets[known[0]]["page"] = batch["ticket"]
    for path in good:
        assert set(tickets[path]) == {"inbox", "http", "command", "page"}, path
        jobs = {way: made(root, ticket, path) for way, ticket in tickets[path].items()}
        for way in jobs:
            assert jobs[way] == jobs["http"], (path, way)


def batches(root: Root) -> list[dict[str, Any]]:
    return [dict(row) for row in rows(root.folder, "SELECT * FROM batches")]


def post(service: Running, path: str, data: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    kind = {"Content-Type": "application/octet-stream"} | headers
    connection.request("POST", path, data, kind)
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    return answer.status, said


def test_a_collection_of_1632_prompts_is_on_record_byte_for_byte(
    house: tuple[Root, Running],
) -> None:
    root, _ = house
    written, data = collection()
    root.drop("collection.tsv", data)

    def recorded() -> str:
        found = [b for b in batches(root) if b["name"].startswith("collection")]
        return found[0]["ticket"] if found and found[0]["recorded_at"] else ""

    ticket = until(recorded, 60)
    query = "SELECT prompt, row FROM jobs WHERE ticket = ? ORDER BY idx"
    found = [dict(row) for row in rows(root.folder, query, ticket)]
    assert [row["prompt"].encode() for row in found] == [text.encode() for text in written]
    assert [row["row"] for row in found] == list(range(1, 1633))


def test_what_is_not_read_is_said_everywhere(house: tuple[Root, Running]) -> None:
    root, service = house
    shutil.copytree(CASES / "inbox/folder_dropped_whole", root.inbox / "my jobs")
    shutil.copy(CASES / "inbox/meant.ymal", root.inbox)
    words = [
        "my jobs is a folder; folders are not read.",
        "meant.ymal is no job file. Is .yml meant?",
    ]
    until(lambda: all(word in str(root.pulse().get("inbox")) for word in words), 30)
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)

    def told(path: str) -> str:
        kind = "text/html" if path == "/" else "application/json"
        connection.request("GET", path, headers={"Accept": kind})
        return connection.getresponse().read().decode()

    places = {
        "health": told("/health"),
        "page": told("/"),
        "status": steady(root, "status").stdout,
        "doctor": steady(root, "doctor").stdout,
    }
    connection.close()
    missing = [(place, w) for place, said in places.items() for w in words if w not in said]
    assert missing == []


def test_bodies_of_every_kind(house: tuple[Root, Running]) -> None:
    _, service = house
    body = json.dumps({"prompt": "a fox, sent by fetch", "width": 128, "height": 64}).encode()
    dry = "/jobs?dry_run=true"
    text = {"Content-Type": "text/plain;charset=UTF-8"}
    status, plan = post(service, dry, body, **text)
    assert (status, plan["jobs"][0]["prompt"]) == (200, "a fox, sent by fetch")
    assert (plan["jobs"][0]["width"], plan["jobs"][0]["height"]) == (128, 64)
    status, answer = post(service, dry, body[:-4], **text)
    assert (status, answer["code"]) == (422, "bad_json")
    status, plan = post(service, f"{dry}&filename=zoo.csv", b"prompt,seed\na fox,1\n", **text)
    assert [(job["prompt"], job["seed"]) for job in plan["jobs"]] == [("a fox", 1)]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    status, plan = post(service, f"{dry}&filename=zoo.txt", b"# mine\na fox\n", **form)
    assert [job["prompt"] for job in plan["jobs"]] == ["a fox"]
    status, answer = post(service, dry, b"a", **form)
    assert (status, answer["code"]) == (415, "bad_content_type")
    assert "text/csv" in answer["remedy"] and "filename=" in answer["remedy"]
    status, answer = post(service, f"{dry}&filename=zoo.xlsx", b"PK", **form)
    assert (status, answer["remedy"]) == (415, "Save the table as .csv.")
    status, answer = post(service, dry, gzip.compress(body), **text, **{"Content-Encoding": "gzip"})
    assert (status, "packed (gzip)" in answer["detail"]) == (415, True)
