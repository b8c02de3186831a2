"""Bytes of a job file become planned jobs, or an error a person can act on."""

import itertools
import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from conftest import SECONDS
from hypothesis import HealthCheck, example, given, settings, strategies as st

from api.paging import moment_bound
from watcher.config import Config
from watcher.errors import ERRORS, SteadyError, ValueFault
from watcher.jobfile import MAX_BYTES, Parsed, parse
from watcher.jobfile.fields import moment_of, seeded
from watcher.jobfile.planner import Planner, template_of
from watcher.jobfile.problems import refusal
from watcher.jobfile.tables import refused_csv
from watcher.jobs import MAX_PROMPT, MAX_SEED, JobRequest, Priority, derived_seed
from watcher.limits import Card, Limits

LIMITS = Limits()
NOW = datetime(2026, 11, 22, 23, 30)


def yaml(text: str, limits: Limits = LIMITS, **more: Any) -> Parsed:
    return parse(text.encode(), ".yaml", Planner(limits, now=NOW, **more))


def one(text: str, **more: Any) -> JobRequest:
    (planned,) = yaml(text, **more).requests
    return planned.request


def prompts(parsed: Parsed) -> list[str]:
    return [p.request.prompt for p in parsed.requests]


def refused(text: str, suffix: str = ".yaml", limits: Limits = LIMITS, **more: Any) -> SteadyError:
    with pytest.raises(SteadyError) as caught:
        parse(text.encode(), suffix, Planner(limits, **more))
    return caught.value


def problem(text: str, suffix: str = ".yaml", **more: Any) -> ValueFault:
    (found,) = refused(text, suffix, **more).problems
    return found


# -- one job


def test_only_a_prompt_is_required() -> None:
    parsed = yaml("prompt: a red fox")
    (planned,) = parsed.requests
    request = planned.request
    assert request.prompt == "a red fox"
    assert (request.width, request.height) == (
        LIMITS.usual.default_width,
        LIMITS.usual.default_height,
    )
    assert (request.num_inference_steps, request.format) == (LIMITS.usual.default_steps, "png")
    assert (request.seed, request.count) == (None, 1)
    assert (planned.stem, planned.priority, planned.row) == (None, Priority.NORMAL, 1)
    assert (parsed.key, parsed.on_error, parsed.warnings) == (None, "reject", ())


def test_every_field() -> None:
    request = one(
        "prompt: fox\nheight: 512\nwidth: 768\nnum_inference_steps: 12\nguidance_scale: 0\n"
        "negative_prompt: ''\nlora: [neon, ink:0.8]\nseed: 7\ncount: 1\nname: cat_1\nfolder: a/b.c/ü\nformat: webp\n"
        "priority: bulk\nnot_before: 2026-11-23T22:00+01:00\nlabel: r 1\nmetadata: {a: 1, b: x, c: null}\nkey: k",
        limits=Limits(Card(accepts=("lora",))),
    )
    assert request.model_dump(exclude_none=True) == {
        "prompt": "fox", "height": 512, "width": 768, "num_inference_steps": 12,
        "guidance_scale": 0, "seed": 7, "count": 1, "name": "cat_1",
        "lora": [{"name": "ink", "weight": 0.8}, {"name": "neon", "weight": 1.0}],
        "folder": "a/b.c/ü", "format": "webp", "priority": "bulk",
        "not_before": "2026-11-23T22:00+01:00", "label": "r 1",
        "metadata": {"a": 1, "b": "x", "c": None}, "key": "k",
    }  # fmt: skip


def test_accepted_spellings_steps_and_size_width_first() -> None:
    request = one("prompt: x\nsteps: 4\nsize: 1024x768")
    assert (request.num_inference_steps, request.width, request.height) == (4, 1024, 768)
    assert problem("prompt: x\nsize: 512x512\nwidth: 512").code == "duplicate_key"
    assert problem("prompt: x\nsteps: 4\nnum_inference_steps: 4").code == "duplicate_key"


def test_text_is_tidied_and_otherwise_left_alone() -> None:
    hostile = "<|im_end|> <b>x</b> {{}} {a|b} {nobody} ${x} __w__ [red]"
    assert one("prompt: |\n  " + hostile + "\n\n").prompt == hostile
    assert one('prompt: "  a\\r\\nb\\u000bc  "').prompt == "a\nb\x0bc"


def test_a_name_is_the_stem_and_a_time_is_microseconds() -> None:
    (planned,) = yaml("prompt: x\nname: cat\nnot_before: 1970-01-01T01:00:01+01:00").requests
    assert (planned.stem, planned.not_before) == ("cat", 1_000_000)
    local = yaml("prompt: x\nnot_before: 2026-11-22 22:00").requests[0].not_before
    assert local == datetime(2026, 11, 22, 22).timestamp() * 1_000_000


def test_fields_without_effect_are_reported() -> None:
    text = "prompt: x\nguidance_scale: 5\nnegative_prompt: blurry"
    assert yaml(text).requests[0].warnings == (
        "`guidance_scale` has no effect on this model.",
        "`negative_prompt` has no effect on this model.",
    )
    assert yaml("prompt: x\nguidance_scale: 0\nnegative_prompt: ''").requests[0].warnings == ()
    both = Limits(Card(accepts=("guidance", "negative_prompt")))
    assert yaml(text, both).requests[0].warnings == ()


def test_resolving_fills_what_is_open_and_derives_the_seed() -> None:
    values = {"prompt": "x", "width": 512}
    LIMITS.fill(values)
    request = seeded(JobRequest(**values), "some-id")
    assert request == JobRequest(
        prompt="x", width=512, height=1024, num_inference_steps=9, format="png",
        seed=derived_seed("some-id"),
    )  # fmt: skip
    assert seeded(request, "other") == request


# -- the seventeen things people type (facts of the field, read by safe_load 3 of 17 right)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("no", "no"), ("on", "on"), ("12:30:00", "12:30:00"), ("2026-01-21", "2026-01-21"),
        ("0123", "0123"), ("1e3", "1e3"), ("\ta cat", "a cat"), ("1_000", "1_000"), ("1984", "1984"),
        ("true", "true"), ("1.50", "1.50"), ("'a cat: the movie'", "a cat: the movie"),
        ("a cat's eye, 50% off & more", "a cat's eye, 50% off & more"),
        ("cat#1", "cat#1"), ("C# code", "C# code"), ("http://x/y", "http://x/y"),
    ],
)  # fmt: skip
def test_a_prompt_is_what_was_typed(typed: str, meant: str) -> None:
    assert one(f"prompt: {typed}").prompt == meant
    assert (
        parse(f"prompt: {typed}".encode("utf-8-sig"), ".yml", Planner(LIMITS))
        .requests[0]
        .request.prompt
        == meant
    )


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("red cat #1 best", "prompt_cut_at_hash"),
        ("#1 cat", "prompt_cut_at_hash"),
        ("a cat: the movie", "bad_yaml"),
        ("%100", "bad_yaml"),
        ("*best* cat", "bad_yaml"),
        ("@cat", "bad_yaml"),
        ("`cat`", "bad_yaml"),
        ("[masterpiece], cat", "bad_yaml"),
        ("{a|b} cat", "bad_yaml"),
        ("!wow", "unsafe_yaml"),
        ("&cat", "unsafe_yaml"),
        ("*cat", "unsafe_yaml"),
        ("[masterpiece]", "wrong_type"),
        ("{a|b}", "wrong_type"),
    ],
)
def test_a_prompt_yaml_would_misread_is_refused_with_advice(typed: str, code: str) -> None:
    error = refused(f"width: 512\nprompt: {typed}\n")
    assert (error.code, error.problems[0].line) == (code, 2)
    assert "quotes" in error.remedy
    assert one(f"prompt: |\n  {typed}").prompt == typed


def test_a_doubled_key_is_refused() -> None:
    found = problem("prompt: a\nwidth: 512\nprompt: b")
    assert (found.code, found.key, found.line) == ("duplicate_key", "prompt", 3)


def test_a_seed_with_a_leading_zero_is_text_and_refused() -> None:
    found = problem("prompt: x\nseed: 0123")
    assert (found.code, found.value, found.line) == ("wrong_type", "'0123'", 2)
    assert "leading zeros" in str(found.remedy)


# -- bad input names file position, key, value, range, remedy


@pytest.mark.parametrize(
    ("line", "code", "value", "allowed", "remedy"),
    [
        ("width: 1000", "size_not_multiple_of_16", "1000", "16..2048 in steps of 16", "Take 992 or 1008."),
        ("height: 2047", "size_not_multiple_of_16", "2047", "16..2048 in steps of 16", "Take 2032 or 2048."),
        ("width: 4096", "out_of_range", "4096", "16..2048 in steps of 16", None),
        ("width: 0", "out_of_range", "0", "16..2048 in steps of 16", None),
        ("width: '512'", "wrong_type", "'512'", "16..2048 in steps of 16", "without quotes"),
        ("width: 512.5", "wrong_type", "512.5", "16..2048 in steps of 16", "without a point"),
        ("width: true", "wrong_type", "True", "16..2048 in steps of 16", None),
        ("size: big", "wrong_type", "'big'", "1024x768", "width first"),
        ("size: 512", "wrong_type", "'512'", "1024x768", "width first"),
        ("steps: 0", "out_of_range", "0", "whole number, 1..100", None),
        ("steps: 101", "out_of_range", "101", "whole number, 1..100", None),
        ("num_inference_steps: nine", "wrong_type", "'nine'", "whole number, 1..100", None),
        ("seed: -1", "out_of_range", "-1", f"whole number, 0..{MAX_SEED}", "Leave `seed` out"),
        ("seed: random", "wrong_type", "'random'", f"whole number, 0..{MAX_SEED}", "Leave `seed` out"),
        (f"seed: {MAX_SEED + 1}", "out_of_range", str(MAX_SEED + 1), f"0..{MAX_SEED}", None),
        ("guidance_scale: 31", "out_of_range", "31", "number, 0..30", None),
        ("guidance_scale: high", "wrong_type", "'high'", "number, 0..30", None),
        ("count: 0", "out_of_range", "0", "whole number, 1..1000", None),
        ("count: 2.5", "wrong_type", "2.5", "whole number, 1..1000", None),
        ("format: jpg", "out_of_range", "'jpg'", "png, webp, jpeg", "Did you mean `jpeg`?"),
        ("format: gif", "out_of_range", "'gif'", "png, webp, jpeg", None),
        ("priority: high", "out_of_range", "'high'", "interactive, normal, bulk", "`interactive`"),
        ("not_before: tomorrow", "wrong_type", "'tomorrow'", "2026-11-23T22:00", "2026-11-23T22:00"),
        ("metadata: [1]", "wrong_type", "[1]", "mapping", None),
        ("metadata: {a: [1]}", "wrong_type", "{'a': [1]}", "mapping", None),
        ("name: ../x", "bad_name", "'../x'", "letters", "name: x"),
        ("name: a b", "bad_name", "'a b'", "letters", "name: a-b"),
        ("name: .x", "bad_name", "'.x'", "letters", "name: x"),
        ("name: -rf", "bad_name", "'-rf'", "letters", "name: rf"),
        ("folder: a/-b", "bad_name", "'a/-b'", "names", "folder: a/b"),
        ("name: CON", "bad_name", "'CON'", "letters", "name: _CON"),
        ("name: nul.txt", "bad_name", "'nul.txt'", "letters", "name: _nul.txt"),
        ("name: cat.png", "bad_name", "'cat.png'", "letters", "name: cat"),
        ("folder: a/../b", "bad_name", "'a/../b'", "names", "folder: a/b"),
        ("folder: /etc", "bad_name", "'/etc'", "names", "folder: etc"),
        ("folder: a/b/c/d", "bad_name", "'a/b/c/d'", "names", "folder: a/b/c"),
        ("folder: 'a\\\\b'", "bad_name", r"'a\\\\b'", "names", "folder: a-b"),
    ],
)  # fmt: skip
def test_a_bad_value_names_everything(
    line: str, code: str, value: str, allowed: str, remedy: str | None
) -> None:
    for text, suffix in ((f"prompt: x\n{line}\n", ".yaml"), (as_json(line), ".json")):
        error = refused(text, suffix)
        (found,) = error.problems
        assert (found.code, found.line, found.value) == (code, 2, value)
        assert found.key == line.partition(":")[0]
        assert found.pointer == f"/{found.key}"
        assert allowed in str(found.allowed)
        assert remedy is None or remedy in str(found.remedy)
        assert f"`{found.key}`" in found.message or found.key == "size"
        assert (
            found.value.strip("'") not in found.message.replace(found.key or "", "")
            or len(value) < 4
        )
        assert error.code == code and error.message.startswith("Line 2: ")


def as_json(line: str) -> str:
    """The second member of a JSON job, on a line of its own, of the value YAML would read."""
    from watcher.jobfile.strictyaml import read_yaml

    (document,) = read_yaml(line, text_keys={"name", "folder", "not_before", "size", "key"})
    key, value = next(iter(document.value.items()))
    return '{"prompt": "x",\n ' + json.dumps(key) + ": " + json.dumps(value) + "}"


def test_a_picture_with_too_many_pixels_is_refused_with_one_that_fits() -> None:
    found = refused("prompt: x\nsize: 2048x2048", limits=Limits(Card(max_pixels=1 << 20))).problems[
        0
    ]
    assert (found.code, found.value, found.remedy) == (
        "out_of_range",
        "2048x2048",
        "Take e.g. 1024x1024.",
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("width: 512", "missing_field"), ("prompt:", "missing_field"), ("prompt: ''", "missing_field"),
        ("prompt: '  '", "missing_field"), ("prompt: ~", "missing_field"), ("{}", "missing_field"),
        ("- {}", "missing_field"), ("prompt: " + "x" * 4001, "out_of_range"),
        ("prompt: " + "x" * 9000, "out_of_range"), ('prompt: "a\\0b"', "wrong_type"),
        ('prompt: "a\\e[31mb"', "wrong_type"), ('prompt: "a\\x93b"', "wrong_type"),
        ('prompt: x\nlabel: "a\\ab"', "wrong_type"), ('prompt: x\nmetadata: {a: "\\0"}', "wrong_type"),
        ("prompt: x\nmetadata: {" + ", ".join(f"k{n}: 1" for n in range(51)) + "}", "wrong_type"),
        ("prompt: x\nmetadata: {a: " + "9" * 40 + "}", "wrong_type"),
        ("prompt: x\nname: " + "é" * 81, "bad_name"), ("prompt: x\nname: " + "狐" * 70, "bad_name"),
        ("just a prompt", "bad_shape"), ("42", "bad_shape"), ("- 42\n- [x]", "bad_shape"),
        ("- x\n-", "bad_shape"), ("jobs:", "bad_shape"), ("jobs: []", "bad_shape"),
        ("jobs: x", "wrong_type"), ("jobs: {prompt: x}", "wrong_type"), ("defaults: x\njobs: [a]", "wrong_type"),
    ],
)  # fmt: skip
def test_other_bad_jobs(text: str, code: str) -> None:
    error = refused(text)
    assert error.code == code
    assert error.problems[0].line is not None


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".csv", ".tsv", ".jsonl", ".txt"])
@pytest.mark.parametrize("data", [b"", b" \n\r\n ", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_an_empty_file_is_empty(data: bytes, suffix: str) -> None:
    with pytest.raises(SteadyError) as caught:
        parse(data, suffix, Planner(LIMITS))
    assert caught.value.code == "empty_file"


@pytest.mark.parametrize("text", ["# a comment", "---\n---\n", "null", "~"])
def test_a_file_of_nothing_is_empty(text: str) -> None:
    assert refused(text).code == "empty_file"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("prompt: café".encode("latin-1"), ("Byte 11", "line 1", "Latin-1")),
        ("\nprompt: “x”".encode("cp1252"), ("Byte 9", "line 2", "Windows-1252")),
        ("prompt: café".encode("utf-16-le"), ("UTF-16 without a byte order mark",)),
    ],
)
def test_bytes_that_are_no_text_are_refused_with_their_place(
    data: bytes, words: tuple[str, ...]
) -> None:
    with pytest.raises(SteadyError) as caught:
        parse(data, ".yaml", Planner(LIMITS))
    assert caught.value.code in ("encoding", "bad_yaml")
    if caught.value.code == "encoding":
        assert all(word in caught.value.message for word in words)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(encoding: str) -> None:
    for text, suffix in (("prompt: café", ".yaml"), ('{"prompt": "café"}', ".json")):
        assert prompts(parse(text.encode(encoding), suffix, Planner(LIMITS))) == ["café"]


@pytest.mark.parametrize(
    ("theirs", "word"),
    [
        ("cfg", "guidance_scale"), ("cfg_scale", "guidance_scale"), ("guidance", "guidance_scale"),
        ("n", "count"), ("batch_size", "count"), ("num_images", "count"), ("sampler", "one sampler"),
        ("sampler_name", "one sampler"), ("scheduler", "one sampler"), ("negative", "negative_prompt"),
        ("resolution", "size: 1024x768"), ("aspect_ratio", "width"), ("num_steps", "num_inference_steps"),
        ("widht", "width"), ("Prompt", "prompt"), ("negative-prompt", "negative_prompt"),
        ("promt", "prompt"), ("ckpt", "model"), ("filename", "name"), ("output_format", "format"),
        ("matrix_", "`matrix`"), ("zzz", "docs/job-files.md list every field"), ("colour", "`count`"), ("notify", "its `webhook`"), ("init_images", "never fetched"),
    ],
)  # fmt: skip
def test_what_other_programs_call_it_gets_the_right_name(theirs: str, word: str) -> None:
    found = problem(f"prompt: x\n{theirs}: 7")
    assert (found.code, found.key, found.line) == ("unknown_field", theirs, 2)
    assert word in str(found.remedy)


def test_all_problems_of_a_file_are_listed_in_order() -> None:
    error = refused("- prompt: a\n  width: 100\n  cfg: 7\n- b\n- {prompt: c, seed: x}\n- {}\n")
    assert [(p.pointer, p.line) for p in error.problems] == [
        ("/0/width", 2), ("/0/cfg", 3), ("/2/seed", 5), ("/3", 6),
    ]  # fmt: skip
    assert "(3 more)" in error.message
    many = refused("\n".join("- {prompt: a, width: 100}" for _ in range(500)))
    assert len(many.problems) == 50


def test_values_stay_out_of_messages_and_are_short() -> None:
    secret = "s3cret" * 50
    for line in (
        f"seed: {secret}",
        f"format: {secret}",
        f"name: '{secret} /'",
        f"label: [{secret}]",
    ):
        found = problem(f"prompt: x\n{line}")
        assert "s3cret" not in found.message
        assert found.value and len(found.value) <= 80


def test_every_code_raised_here_is_registered() -> None:
    assert problem("prompt: x\ncfg: 1").code in ERRORS


# -- names


@pytest.mark.parametrize(
    "name", ["cat", "Füchse-1", "狐_2", "हिन्दी", "แมว", "a.b", "_x", "x-", "1", "x" * 80, "é"]
)
def test_names_of_any_script(name: str) -> None:
    (planned,) = yaml(f"prompt: x\nname: '{name}'").requests
    assert planned.stem == ("é" if name == "é" else name)


# -- many


def test_a_list_several_documents_and_strings() -> None:
    assert prompts(yaml("- fox\n- prompt: owl\n- 1984")) == ["fox", "owl", "1984"]
    assert prompts(yaml("prompt: fox\n---\n- owl\n- bear\n---\njobs: [cat]\n---\n")) == [
        "fox", "owl", "bear", "cat",
    ]  # fmt: skip
    found = problem("prompt: fox\n---\nprompt: owl\nwidth: 1\n")
    assert (found.document, found.line) == (2, 4)


def test_files_of_many_are_named_and_wait_by_their_number() -> None:
    written = "\n".join(f"- fox {n}" for n in range(20))
    twenty = parse(written.encode(), ".yaml", Planner(LIMITS), stem="My cats!")
    assert [p.stem for p in twenty.requests][:2] == ["My-cats_0001", "My-cats_0002"]
    assert {p.priority for p in twenty.requests} == {Priority.NORMAL}
    more = yaml(
        "\n".join(f"- fox {n}" for n in range(20)) + "\n- {prompt: x, name: n, priority: normal}"
    )
    assert [p.priority for p in more.requests][-2:] == [Priority.BULK, Priority.NORMAL]
    assert [p.stem for p in more.requests][-2:] == [None, "n"]


def test_count_makes_consecutive_seeds() -> None:
    assert [p.request.seed for p in yaml("prompt: x\nseed: 5\ncount: 3").requests] == [5, 6, 7]
    assert [p.request.seed for p in yaml("prompt: x\ncount: 2").requests] == [None, None]
    assert all(p.request.count == 1 for p in yaml("prompt: x\ncount: 2").requests)
    assert problem(f"prompt: x\nseed: {MAX_SEED}\ncount: 2").code == "out_of_range"


def test_seed_lists_and_ranges() -> None:
    def seeds(text: str) -> list[int | None]:
        return [p.request.seed for p in yaml(f"prompt: x\nseed: {text}").requests]

    assert seeds("[3, 1, 2]") == [3, 1, 2]
    assert seeds("1..4") == [1, 2, 3, 4]
    assert seeds("4..2") == [4, 3, 2]
    assert seeds("[9, '1..3']") == [9, 1, 2, 3]
    assert problem("prompt: x\nseed: [1, 2]\ncount: 3").code == "bad_placeholder"
    assert problem("prompt: x\nseed: []").code == "bad_placeholder"
    assert refused("prompt: x\nseed: [1, a]").problems[0].key == "seed"
    assert refused("prompt: x\nseed: 1..99999999999").code == "too_many_jobs"


def test_a_key_of_a_job_that_makes_several_is_told_apart() -> None:
    parsed = yaml("- {prompt: x, key: k, count: 3}\n- {prompt: y, key: l}")
    assert [p.request.key for p in parsed.requests] == ["k", "k/2", "k/3", "l"]
    lines = b'{"prompt": "x", "key": "k", "count": 3}\n{"prompt": "y", "key": "l"}\n'
    assert parse(lines, ".jsonl", Planner(LIMITS)).requests[:3] == parsed.requests[:3]
    twice = yaml("matrix: {a: [1, 2]}\njobs: [{prompt: 'x {a}', key: k, count: 2}]")
    assert [p.request.key for p in twice.requests] == ["k", "k/2", "k/3", "k/4"]
    batch = yaml("matrix: {a: [1, 2]}\njobs: [{prompt: 'x {a}', key: k}]")
    assert [p.request.key for p in batch.requests] == ["k", "k/2"]


# -- batches

BATCH = """
defaults: {width: 768, height: 768, num_inference_steps: 9}
matrix:   {animal: [fox, owl], style: [ink, oil], seed: [1, 2, 3]}     # 12 jobs
jobs:     ["a {style} painting of a {animal}"]
"""


def test_a_matrix_makes_every_combination_in_order() -> None:
    requests = [p.request for p in yaml(BATCH).requests]
    expected = [
        (f"a {style} painting of a {animal}", seed)
        for animal, style, seed in itertools.product(["fox", "owl"], ["ink", "oil"], [1, 2, 3])
    ]
    assert [(r.prompt, r.seed) for r in requests] == expected
    assert {(r.width, r.height, r.num_inference_steps) for r in requests} == {(768, 768, 9)}


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    rows=st.integers(1, 3),
    jobs=st.integers(1, 3),
    count=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_the_number_of_pictures_is_the_product(
    sizes: list[int], rows: int, jobs: int, count: int
) -> None:
    limits = Limits(max_jobs_per_file=4**3 * 3**3)  # the most that these can make
    body = {
        "matrix": {f"m{n}": list(range(size)) for n, size in enumerate(sizes)},
        "zip": {"a": list(range(rows)), "b": list(range(rows))},
        "count": count,
        "jobs": [
            f"{n} {{a}}{{b}} " + " ".join(f"{{m{k}}}" for k in range(len(sizes)))
            for n in range(jobs)
        ],
    }
    parsed = parse(json.dumps(body).encode(), ".json", Planner(limits))
    total = rows * jobs
    for size in sizes:
        total *= size
    assert len(parsed.requests) == total * count
    assert len(set(prompts(parsed))) == total
    assert all(a == b for a, b in (p.split()[1] for p in prompts(parsed)))
    body["sample"] = 3
    some = parse(json.dumps(body).encode(), ".json", Planner(limits))
    again = parse(json.dumps(body).encode(), ".json", Planner(limits))
    assert prompts(some) == prompts(again)
    assert len(some.requests) == min(3, total) * count
    position = {prompt: n for n, prompt in enumerate(prompts(parsed))}
    places = [position[prompt] for prompt in prompts(some)]
    assert places == sorted(places)


def test_a_matrix_beside_a_prompt_and_over_fields() -> None:
    parsed = yaml(
        "prompt: a {animal}\nmatrix: {animal: [fox, no], size: [512x768, 768x512], steps: 4..5}"
    )
    assert len(parsed.requests) == 8
    first = parsed.requests[0].request
    assert (first.prompt, first.width, first.height, first.num_inference_steps) == (
        "a fox",
        512,
        768,
        4,
    )
    assert prompts(yaml("matrix: {prompt: [fox, 1984, no]}")) == ["fox", "1984", "no"]


def test_values_stand_in_texts_as_they_were_written() -> None:
    text = "prompt: x{v}x\nmatrix: {v: [1.50, 1e3, true, null, no, 0123, '{v}', 12:30]}"
    assert prompts(yaml(text)) == [
        "x1.50x", "x1e3x", "xtruex", "xx", "xnox", "x0123x", "x{v}x", "x12:30x",
    ]  # fmt: skip


def test_zip_walks_in_step() -> None:
    text = "zip: {a: [1, 2], b: [x, y]}\nmatrix: {c: [p, q]}\njobs: ['{a}{b}{c}']"
    assert prompts(yaml(text)) == ["1xp", "1xq", "2yp", "2yq"]
    found = problem("zip: {a: [1, 2], b: [x]}\njobs: ['{a}']")
    assert (found.code, found.pointer) == ("bad_placeholder", "/zip")
    assert "`a` has 2, `b` has 1" in found.message


def test_a_job_says_more_than_the_defaults() -> None:
    text = (
        "defaults: {size: 512x512, seed: 3, metadata: {a: 1}}\n"
        "jobs:\n- {prompt: x, width: 768}\n- {prompt: y, seed: null, metadata: {b: 2}}\n"
    )
    first, second = (p.request for p in yaml(text).requests)
    assert (first.width, first.height, first.seed) == (768, 512, 3)
    assert (second.width, second.seed, second.metadata) == (512, None, {"b": 2})


def test_built_in_placeholders() -> None:
    text = "prompt: '{index} {index:03} {date} {seed} {index:x} {other}'\nseed: 7\ncount: 2\nname: 'n{index:02}'"
    parsed = yaml(text)
    assert prompts(parsed) == [
        "1 001 20261122 7 {index:x} {other}", "2 002 20261122 8 {index:x} {other}",
    ]  # fmt: skip
    assert [p.stem for p in parsed.requests] == ["n01", "n02"]


def test_a_seed_wanted_in_a_text_is_drawn_from_the_salt() -> None:
    first = yaml("prompt: x {seed}\ncount: 2", salt="a").requests
    again = yaml("prompt: x {seed}\ncount: 2", salt="a").requests
    other = yaml("prompt: x {seed}\ncount: 2", salt="b").requests
    assert first == again != other
    assert all(p.request.prompt == f"x {p.request.seed}" for p in first)


def test_values_in_names_are_made_fit_for_names() -> None:
    parsed = yaml(
        "prompt: x\nname: '{a}_{index}'\nfolder: 'f/{a}'\nmatrix: {a: ['red fox/../x', 'é: ü']}"
    )
    assert [(p.stem, p.request.folder) for p in parsed.requests] == [
        ("red-fox-..-x_1", "f/red-fox-..-x"), ("é-ü_2", "f/é-ü"),
    ]  # fmt: skip


def test_the_salt_varies_samples_and_wildcards() -> None:
    text = "matrix: {n: 1..900}\nsample: 5\njobs: ['{n}']"
    assert prompts(yaml(text, salt="a")) == prompts(yaml(text, salt="a"))
    assert prompts(yaml(text, salt="a")) != prompts(yaml(text, salt="b"))


def test_an_expansion_past_the_limit_is_refused_with_its_count_before_it_is_built() -> None:
    begun = time.process_time()
    axes = ", ".join(f"a{n}: 1..1000000" for n in range(9))
    error = refused(f"prompt: x\nmatrix: {{{axes}}}")
    assert (error.code, error.problems[0].allowed) == ("too_many_jobs", "at most 1000")
    assert str(10**54) in error.message
    assert refused("prompt: x\ncount: 1000\nmatrix: {a: [1, 2]}").message.startswith(
        "The file makes 2000"
    )
    assert refused("\n".join("- x" for _ in range(1001))).code == "too_many_jobs"
    assert refused("prompt: x\nmatrix: {a: 1..9000}\nsample: 2000").code == "too_many_jobs"
    for seeds in ("1..600", "1..10000000"):
        many = f"prompt: '{{a}}'\nmatrix: {{seed: ['{seeds}'], a: [1, 2]}}"
        assert refused(many).code == "too_many_jobs"
    mixed = yaml("prompt: '{a}'\nmatrix: {a: [b, c], seed: ['1..2', 7]}").requests
    assert [p.request.seed for p in mixed] == [1, 2, 7] * 2
    endless = "prompt: x\nmatrix: {a: 1..9999999999999}\nsample: 1000000000000"
    assert refused(endless).message.startswith("The file makes 1000000000000 jobs")
    sampled = yaml(f"prompt: 'x {{a0}} {{a8}}'\nmatrix: {{{axes}}}\nsample: 1000")
    assert len(set(prompts(sampled))) == 1000
    assert time.process_time() - begun < SECONDS


@pytest.mark.parametrize(
    ("text", "code", "pointer"),
    [
        ("matrix: {a: []}\njobs: ['{a}']", "bad_placeholder", "/matrix/a"),
        ("matrix: {a: }\njobs: ['{a}']", "bad_placeholder", "/matrix/a"),
        ("matrix: [a]\njobs: [x]", "wrong_type", "/matrix"),
        ("matrix: {a: [[1]]}\njobs: [x]", "wrong_type", "/matrix/a"),
        ("matrix: {index: [1]}\njobs: [x]", "bad_placeholder", "/matrix/index"),
        ("matrix: {a b: [1]}\njobs: [x]", "bad_placeholder", "/matrix/a b"),
        ("matrix: {a: [1]}\nzip: {a: [1]}\njobs: [x]", "duplicate_key", "/zip/a"),
        ("matrix: {width: [512, 100]}\njobs: [x]", "size_not_multiple_of_16", "/matrix/width"),
        ("sample: 0\njobs: [x]", "wrong_type", "/sample"),
        ("on_error: stop\njobs: [x]", "out_of_range", "/on_error"),
        ("resume: yes\nkey: k\njobs: [x]", "wrong_type", "/resume"),
        ("resume: true\njobs: [x]", "missing_field", "/resume"),
        ("expand: all\njobs: [x]", "out_of_range", "/expand"),
        ("expand: [1]\njobs: [x]", "out_of_range", "/expand"),
        ("width: 512\njobs: [x]", "unknown_field", "/width"),
        ("jobz: [x]\nmatrix: {a: 1}", "unknown_field", "/jobz"),
        ("defaults: {width: 100}\njobs: [x, y]", "size_not_multiple_of_16", "/defaults/width"),
        ("defaults: {cfg: 1}\njobs: [x]", "unknown_field", "/defaults/cfg"),
        ("defaults: {key: k}\njobs: [x]", "bad_placeholder", "/defaults/key"),
        ("jobs: [{prompt: x, matrix: {a: 1}}]", "unknown_field", "/jobs/0/matrix"),
        ("count: 0\njobs: [x]", "out_of_range", "/count"),
        ('key: "a\\ab"\njobs: [x]', "wrong_type", "/key"),
    ],
)
def test_a_bad_batch_points_at_the_fault(text: str, code: str, pointer: str) -> None:
    error = refused(text)
    assert code in [p.code for p in error.problems]
    assert (error.problems[0].pointer, error.problems[0].line) == (
        pointer,
        text[: text.index(pointer.split("/")[1])].count("\n") + 1
        if pointer.count("/") == 1
        else error.problems[0].line,
    )


def test_names_nobody_uses_and_slips_are_warned_of() -> None:
    parsed = yaml("prompt: a {stlye} cat\nmatrix: {style: [ink, oil]}")
    assert parsed.warnings == (
        "`style` is declared and used in no text.",
        "{stlye} is not declared and stays text; is {style} meant?",
    )
    assert yaml(BATCH).warnings == ()


def test_key_and_resume() -> None:
    assert yaml("prompt: x\nkey: k").key == "k"
    parsed = yaml("key: nightly\nresume: true\njobs: [x]")
    assert (parsed.key, parsed.resume) == ("nightly", True)
    assert parse(b"resume: true\njobs: [x]", ".yaml", Planner(LIMITS), keyed=True).resume
    assert yaml("- {prompt: x, key: k}\n- y").key is None
    assert refused("key: a\njobs: [x, z]\n---\nprompt: y").code == "bad_shape"


def test_skip_lets_the_good_ones_run_and_gives_the_others_back() -> None:
    parsed = yaml(
        "on_error: skip\njobs:\n- a\n- {prompt: b, width: 100}\n- 7\n- [1]\n- {prompt: c, seed: x}"
    )
    assert prompts(parsed) == ["a", "7"]
    assert [(r.number, r.line, r.problems[0].code) for r in parsed.refused] == [
        (2, 4, "size_not_multiple_of_16"), (4, 6, "bad_shape"), (5, 7, "wrong_type"),
    ]  # fmt: skip
    [header, *_] = b"".join(refused_csv(lambda: parsed.refused)).decode("utf-8-sig").splitlines()
    assert header == "prompt,width,seed,error"
    assert refused("on_error: skip\njobs: [{width: 5}]").code == "all_rows_refused"


# -- wildcards


def lists(name: str) -> list[str] | None:
    return {
        "animal": ["fox", "{red|blue} owl"],
        "deep/er": ["__animal__"],
        "loop": ["__loop__"],
        "none": [],
    }.get(name)


def test_choices_are_made_only_when_asked_for() -> None:
    text = "prompt: a {red|blue} {x} __animal__"
    with pytest.raises(SteadyError):
        yaml("prompt: '{a|b} __nobody__'\nexpand: wildcards", wildcards=lists)
    assert one(text).prompt == "a {red|blue} {x} __animal__"
    found = set(prompts(yaml(text + "\nexpand: wildcards\ncount: 200", wildcards=lists)))
    assert found == {
        f"a {colour} {{x}} {animal}"
        for colour in ("red", "blue")
        for animal in ("fox", "red owl", "blue owl")
    }


def test_choices_nest_and_lists_name_lists() -> None:
    text = "prompt: '{a|{b|c}} {d {e}|f} __deep/er__'\nexpand: wildcards\ncount: 100"
    firsts = {p.split()[0] for p in prompts(yaml(text, wildcards=lists))}
    assert firsts == {"a", "b", "c"}
    assert any("d {e}" in p for p in prompts(yaml(text, wildcards=lists)))


@pytest.mark.parametrize(
    "prompt", ["__nobody__", "__none__", "__loop__", "{" * 12 + "a|b" + "|c}" * 12]
)
def test_wildcards_that_lead_nowhere_are_refused(prompt: str) -> None:
    found = refused(f"prompt: '{prompt}'\nexpand: wildcards", wildcards=lists).problems[0]
    assert (found.code, found.line) == ("bad_placeholder", 1)


def test_a_batch_hands_expand_down() -> None:
    text = "expand: wildcards\njobs: ['{a|b}', {prompt: '{c|d}', expand: null}]"
    assert all(p in "abcd" for p in prompts(yaml(text)))
    assert prompts(yaml("- {prompt: '{a|a}', expand: wildcards}\n- '{a|b}'")) == ["a", "{a|b}"]


# -- the same text through every format and door

FIELD_VALUES: dict[str, Any] = {
    "width": st.sampled_from([512, 768, 100, -1, 4096]),
    "steps": st.sampled_from([1, 9, 100, 101]),
    "seed": st.integers(-1, MAX_SEED),
    "size": st.sampled_from(["512x768", "16x16", "9x9"]),
    "format": st.sampled_from(["png", "webp", "gif"]),
    "name": st.sampled_from(["cat", "Ü_1", "a b", "con"]),
    "folder": st.sampled_from(["a/b", "a", "..", "x" * 81]),
    "label": st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Cn")), max_size=20),
    "guidance_scale": st.sampled_from([0, 1.5, 31]),
    "count": st.sampled_from([1, 2, 3]),
}


@given(
    prompt=st.text(
        st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Cn")), min_size=1, max_size=60
    ),
    fields=st.fixed_dictionaries({}, optional=FIELD_VALUES),
)
@example(prompt="no", fields={})
@example(prompt='#1, "cat"; it\'s', fields={"seed": 0})
@example(prompt="12:30 - {a} [b] *c*", fields={})
@example(prompt="a", fields={"label": "0\xa0"})
@example(prompt=" ", fields={})
@example(prompt=" ", fields={"seed": 0})
@settings(max_examples=40, deadline=None)
def test_the_same_text_is_the_same_job_in_every_format(prompt: str, fields: dict[str, Any]) -> None:
    import csv
    import io

    job = {"prompt": prompt, **fields}
    table = io.StringIO()
    writer = csv.DictWriter(table, list(job), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerow(job)
    text = json.dumps(job, ensure_ascii=False)
    quoted = "\n".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in job.items())
    forms = [
        (text, ".json"),
        (text, ".jsonl"),
        (text, ".yaml"),
        (f"[{text}]", ".json"),
        (quoted, ".yaml"),
    ]
    if prompt.strip() or fields:  # a row of blank cells is none
        forms.append((table.getvalue(), ".csv"))
    outcomes = [outcome(form, suffix) for form, suffix in forms]
    assert outcomes[1:] == outcomes[:-1]


def outcome(text: str, suffix: str) -> list[JobRequest] | set[tuple[str, str | None]]:
    """The requests, or codes and keys of what is wrong."""
    try:
        return [p.request for p in parse(text.encode(), suffix, Planner(LIMITS)).requests]
    except SteadyError as error:
        return {(p.code, p.key) for p in error.problems} or {(error.code, None)}


@pytest.mark.parametrize(
    "raw",
    [
        7,
        None,
        [],
        {},
        {"prompt": "\ud800"},
        {"\ud800": 1, "prompt": "x"},
        {"prompt": "x", "guidance_scale": float("nan")},
        {"prompt": "x", "metadata": {"a": float("inf")}},
        {"prompt": "x", "metadata": {"\ud800": 1}},
        {"prompt": "x", "seed": 10**5000},
        {1: 2},
    ],
)
def test_odd_jobs_are_refused_and_can_be_told(raw: Any) -> None:
    template = template_of(raw)
    made = Planner(LIMITS).pictures(template, dict(template.values), {}, 0)
    error = refusal([each for each in made if isinstance(each, ValueFault)])
    json.dumps(error.as_dict()).encode()
    str(error).encode()


# -- anything at all


@pytest.mark.parametrize(
    "suffix", [".yaml", ".json", ".csv", ".tsv", ".jsonl", ".txt", ".png", ".exe"]
)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")),
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_jobs_or_a_refusal(suffix: str, data: bytes) -> None:
    judge(data, suffix)


#: Pieces of job files, put together at random: deeper than random bytes get.
_PIECES = [
    "prompt: x\n", "prompt", ": ", "- ", "\n", "  ", "jobs:\n", "matrix: ", "{a: [1, 2]}\n", "zip:", "sample: 2\n",
    "defaults: ", "{width: 100}", "seed: 1..9\n", "count: 3\n", "{a}", "{index:04}", "{", "}", "[", "]", ",", '"', "'",
    "#", " #1", "&a ", "*a", "!x ", "|", ">", "---\n", "\t", "\r\n", ";", "null", "1e999", "-1", "expand: wildcards\n", "{a|b}",
    "__x__", "key: k\n", "on_error: skip\n", "\x00", "é", "\ufeff", "metadata: {a: {b: 1}}\n", "prompt,width\n", '{"prompt": "x"}',
]  # fmt: skip


@given(
    data=st.lists(st.sampled_from(_PIECES), max_size=25).map("".join),
    suffix=st.sampled_from([".yaml", ".json", ".csv", ".jsonl"]),
)
@settings(max_examples=250, deadline=None)
def test_any_grammar_is_jobs_or_a_refusal(data: str, suffix: str) -> None:
    judge(data.encode(), suffix)


def judge(data: bytes, suffix: str) -> None:
    """Parsed or SteadyError, in seconds, and both can be shown to people."""
    begun = time.process_time()
    try:
        parsed = parse(data, suffix, Planner(LIMITS, now=NOW, wildcards=lists), stem="x")
        assert parsed.requests
        for planned in parsed.requests:
            seeded(planned.request, "id").model_dump_json().encode()
        b"".join(refused_csv(lambda: parsed.refused))
    except SteadyError as error:
        assert error.code in ERRORS
        json.dumps(error.as_dict()).encode()
        str(error).encode()
        for each in error.problems:
            assert each.value is None or len(each.value) <= 80
    assert time.process_time() - begun < SECONDS


LARGE = {
    "unknown keys": "".join(f"key{n}: 1\n" for n in range(60_000)),
    "items with unknown keys": "".join(f"- {{k{n}: 1, l{n}: 2}}\n" for n in range(1000)),
    "a thousand faults": "".join(f"- {{prompt: x, width: {n}}}\n" for n in range(1001, 2000)),
    "more items than allowed": "- a\n" * 50_000,
    "long texts and a matrix": "matrix: {a: 1..1000}\nprompt: '" + "{a}" * 300_000 + "'",
    "texts of some length and a matrix": "matrix: {a: 1..1000}\nprompt: '" + "{a}" * 2_600 + "'",
    "long values": "matrix: {a: ['"
    + "x" * 4000
    + "'], b: 1..1000}\nprompt: '"
    + "{a}" * 2_600
    + "'",
    "many axes": "matrix: {" + ", ".join(f"a{n}: 1" for n in range(20_000)) + "}\nprompt: x",
    "many zips": "zip: {" + ", ".join(f"a{n}: [1, 2]" for n in range(10_000)) + "}\nprompt: x",
    "wild": "expand: wildcards\ncount: 1000\nprompt: '" + "{a|b" * 1000 + "}" * 1000 + "'",
    "open wild": "expand: wildcards\ncount: 1000\nprompt: '" + "{a|b" * 900 + "'",
    "seeds": "prompt: x\nseed: [" + "1..9999999, " * 50_000 + "]",
    "metadata": "prompt: x\nmetadata: {" + ", ".join(f"a{n}: 1" for n in range(30_000)) + "}",
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_large_inputs_take_no_more_than_linear_time(name: str, suffix: str) -> None:
    text = LARGE[name]
    if suffix == ".json":
        from watcher.jobfile.strictyaml import read_yaml

        if name == "unknown keys":
            text = json.dumps({f"key{n}": 1 for n in range(60_000)})
        else:
            text = json.dumps(read_yaml(text)[0].value)[:MAX_BYTES]
    judge(text.encode(), suffix)


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (b"a\n" * 500_000, ".txt"), (b"prompt\n" + b"a\n" * 500_000, ".csv"), (b'"a"\n' * 250_000, ".jsonl"),
        (b"prompt,width\n" + b"a,1\n" * 250_000, ".csv"), (b"{\n" * 500_000, ".jsonl"),
        (b"prompt" + b",a" * 100_000 + b"\n" + b",b" * 400_000, ".csv"), (b'"' * 1_000_000, ".csv"),
        (b"\n" * 1_000_000 + b"x", ".csv"), (b"\n" * 1_000_000 + b"x", ".jsonl"), (b"x" * 1_048_577, ".yaml"),
        (b"```\nprompt: a" + b"\n" * 1_000_000 + b"x", ".yaml"), (b"a" + b" " * 1_000_000 + b"-- x", ".txt"),
        (b"--prompt '" + b"a " * 500_000 + b"'", ".txt"), ((b"(:" + b"1" * 3990 + b"x\n") * 200, ".txt"),
    ],
    ids=range(14),
)  # fmt: skip
def test_large_tables_take_no_more_than_linear_time(data: bytes, suffix: str) -> None:
    judge(data, suffix)


def test_a_prompt_is_not_made_short_enough_by_its_blanks() -> None:
    assert yaml("prompt: '" + "x" * 4 + "  '").requests[0].request.prompt == "xxxx"
    with pytest.raises(SteadyError, match="at most"):
        parse(json.dumps({"prompt": "x" + " " * MAX_PROMPT}).encode(), ".json", Planner(LIMITS))


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_a_blank_key_never_joins_two_files(blank: str) -> None:
    one = parse(json.dumps({"prompt": "x", "key": blank}).encode(), ".json", Planner(Limits()))
    assert one.key is None
    with pytest.raises(SteadyError, match="`key` must be"):
        parse(json.dumps({"jobs": ["x", "y"], "key": blank}).encode(), ".json", Planner(Limits()))


def test_an_empty_list_is_no_job_file() -> None:
    with pytest.raises(SteadyError) as refused:
        parse(b"[]", ".json", Planner(Limits()))
    assert refused.value.code == "bad_shape"


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clock on the wall is Berlin's."""
    with monkeypatch.context() as there:
        there.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2027-03-28T02:30", "2027-03-28T03:30+02:00"),  # the clock leaps from 2 to 3
        ("2027-03-28T01:59", "2027-03-28T01:59+01:00"),
        ("2027-03-28T03:30", "2027-03-28T03:30+02:00"),
        ("2027-10-31T02:30", "2027-10-31T02:30+02:00"),  # twice that night: the first
        ("2027-10-31T03:30", "2027-10-31T03:30+01:00"),
        ("2027-03-28T02:30Z", "2027-03-28T02:30+00:00"),
        ("2027-07-01", "2027-07-01T00:00+02:00"),
    ],
)
def test_a_local_time_is_never_early(berlin: None, said: str, meant: str) -> None:
    assert moment_of(said) == datetime.fromisoformat(meant).timestamp() * 1_000_000
    assert moment_bound("since", said) == moment_of(said)  # a query means the same


@pytest.mark.parametrize(
    ("card", "steps", "guidance"),
    [(Card(), 21, 6.0), (Card(idle_steps=0, unguided=0.0), 20, 7.0)],
    ids=["Z-Image", "as the web UI"],
)
def test_steps_of_another_program_are_counted_as_the_model_counts(
    card: Card, steps: int, guidance: float
) -> None:
    text = "a castle\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 512x768"
    [planned] = parse(text.encode(), ".txt", Planner(Limits(card))).requests
    request = planned.request
    assert (request.num_inference_steps, request.guidance_scale) == (steps, guidance)


def test_pictures_without_a_name_are_called_as_the_settings_say() -> None:
    limits = Limits(default_name="{prompt}-{seed}")
    text = '{"prompt": "A red fox!", "seed": 7, "count": 2}'
    [plan] = parse(text.encode(), ".json", Planner(limits)).requests[:1]
    assert plan.request.name == "A-red-fox-7"
    named = parse(b'{"prompt": "x", "name": "mine"}', ".json", Planner(limits)).requests
    assert [each.request.name for each in named] == ["mine"]
    rows = parse(b"prompt,seed,name\na cat,1,\na dog,2,rex\n", ".csv", Planner(limits)).requests
    assert [each.request.name for each in rows] == ["a-cat-1", "rex"]
    with pytest.raises(ValueError, match="default_name"):
        Config(default_name="../up")
