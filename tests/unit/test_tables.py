"""Tables as spreadsheets write them, lines as programs do; row by row in constant memory."""

import csv
import io
import json
import re
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from watcher.errors import SteadyError
from watcher.jobfile import parse, read_lines
from watcher.jobfile.planner import PlannedJob, Planner
from watcher.jobfile.rows import RowIterator
from watcher.jobfile.tables import Row, refused_csv
from watcher.limits import Limits

LIMITS = Limits()


def dump_refused(rows: Sequence[Row]) -> bytes:
    return b"".join(refused_csv(lambda: rows))


def rows(text: str | bytes, suffix: str = ".csv", **more: object) -> RowIterator:
    data = text if isinstance(text, bytes) else text.encode()
    return read_lines(io.BytesIO(data), suffix, Planner(LIMITS, **more))  # type: ignore[arg-type]


def good(text: str | bytes, suffix: str = ".csv", **more: object) -> list[PlannedJob]:
    found = list(rows(text, suffix, **more))
    assert [r for r in found if isinstance(r, Row)] == []
    return [r for r in found if isinstance(r, PlannedJob)]


def bad(text: str | bytes, suffix: str = ".csv") -> Row:
    (row,) = [r for r in rows(text, suffix) if isinstance(r, Row)]
    return row


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_separators_marks_and_line_ends(separator: str, encoding: str, ends: str) -> None:
    table = [
        ["Prompt", "WIDTH", "Num Inference-Steps"],
        ["é, fox; owl", "768", "8"],
        ["a\nb", "", ""],
    ]
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=ends, quoting=csv.QUOTE_ALL).writerows(
        table
    )
    fox, second = good(out.getvalue().encode(encoding))
    assert (fox.request.prompt, fox.request.width, fox.request.num_inference_steps) == (
        "é, fox; owl", 768, 8,
    )  # fmt: skip
    assert (second.request.prompt, second.request.width) == ("a\nb", LIMITS.usual.default_width)


def test_one_column_needs_no_separator_and_no_quotes() -> None:
    fox, owl = good('prompt\na fox, in ink; red\n"an owl, quoted"\n')
    assert (fox.request.prompt, owl.request.prompt) == ("a fox, in ink; red", "an owl, quoted")


def test_excel_may_say_its_separator() -> None:
    (fox,) = good("sep=;\r\nprompt;seed\r\na, b;7\r\n")
    assert (fox.request.prompt, fox.request.seed) == ("a, b", 7)


def test_numbers_as_spreadsheets_write_them() -> None:
    (fox,) = good("prompt;width;seed;guidance_scale;format\nx; 768.0 ;+7;1,5;PNG\n")
    request = fox.request
    assert (request.width, request.seed, request.guidance_scale, request.format) == (
        768,
        7,
        1.5,
        "png",
    )


def test_a_rounded_seed_is_refused_with_the_reason() -> None:
    (problem,) = bad("prompt,seed\nx,1.23E+15\n").problems
    assert problem.code == "wrong_type"
    assert "spreadsheet" in str(problem.remedy)


def test_blank_rows_count_and_are_skipped() -> None:
    found = good("prompt,seed\n\nfox,1\n,,\n , \nowl,2\n\n")
    assert [(p.row, p.request.prompt) for p in found] == [(2, "fox"), (5, "owl")]


def test_unknown_columns_go_to_metadata_and_may_be_used_in_texts() -> None:
    lines = rows("prompt,Artist,cfg,name\na {artist} {Artist} {nobody},me,7,{artist}_x\n")
    (found,) = [p for p in lines if isinstance(p, PlannedJob)]
    assert found.request.prompt == "a me me {nobody}"
    assert found.request.metadata == {"Artist": "me", "cfg": "7"}
    assert found.stem == "me_x"
    assert lines.warnings == ["Column `cfg` goes to metadata; is `guidance_scale` meant?"]


def test_what_a_cell_says_is_not_looked_at_again() -> None:
    (found,) = good("prompt,a,b\n{a},{b},x\n")
    assert found.request.prompt == "{b}"


def test_id_becomes_the_label() -> None:
    assert good("id,prompt\nr-7,x\n")[0].request.label == "r-7"
    both = good("id,label,prompt\nr-7,mine,x\n")[0].request
    assert (both.label, both.metadata) == ("mine", {"id": "r-7"})


def test_metadata_comes_back_from_a_table_as_it_went_in() -> None:
    (found,) = good('prompt,metadata,extra\nx,"{""a"": 1, ""b"": null}",y\n')
    assert found.request.metadata == {"a": 1, "b": None, "extra": "y"}
    assert bad("prompt,metadata\nx,[1]\n").problems[0].key == "metadata"


def test_size_steps_count_and_expand_columns() -> None:
    found = good("prompt,size,steps,count,seed,expand\n{a|b} x,512x768,5,2,10,wildcards\n")
    assert [(p.request.width, p.request.height, p.request.seed, p.row) for p in found] == [
        (512, 768, 10, 1),
        (512, 768, 11, 1),
    ]
    assert all(p.request.prompt in ("a x", "b x") for p in found)


def test_a_bad_row_names_row_line_column_value_range_and_remedy() -> None:
    row = bad('prompt,Width\nfox,512\n"two\nlines",768\nowl,1000\nbear,256\n')
    assert (row.number, row.line, row.cells) == (3, 5, {"prompt": "owl", "Width": "1000"})
    (problem,) = row.problems
    assert (problem.code, problem.key, problem.row, problem.line, problem.value) == (
        "size_not_multiple_of_16", "Width", 3, 5, "1000",
    )  # fmt: skip
    assert problem.allowed == "16..2048 in steps of 16"
    assert problem.remedy == "Take 992 or 1008."
    assert "`Width`" in problem.message


def test_a_bad_size_column_is_called_by_its_name() -> None:
    assert bad("prompt,Size\nx,100x512\n").problems[0].key == "Size"


@pytest.mark.parametrize(
    ("line", "word"),
    [("a,b,c", "3 cells"), ('"a\nb,1\nc,2', "quote"), ('"a,1\n"b",2', "quote")],
)
def test_a_row_that_is_torn_is_refused(line: str, word: str) -> None:
    row = bad(f"prompt,seed\n{line}\n")
    assert row.problems[0].code == "bad_csv"
    assert word in row.problems[0].message
    assert row.number == 1


def test_a_column_without_a_name_is_left_out_with_a_word() -> None:
    lines = rows(",prompt,,seed\n0,x,oops,1\n1,y,,2\n")
    assert [p.request.seed for p in lines if isinstance(p, PlannedJob)] == [1, 2]
    assert lines.warnings == [
        "Column 1 has no name and was left out.", "Column 3 has no name and was left out.",
    ]  # fmt: skip
    lines = rows("prompt,seed,\nx,1,\n")
    assert len(list(lines)) == 1 and lines.warnings == []


@pytest.mark.parametrize(
    ("text", "suffix", "prompts"),
    [
        ('prompt\tseed\n"H O O T" in driftwood\t1\nsays "OPEN"\t2\n', ".tsv", ['"H O O T" in driftwood', 'says "OPEN"']),
        ('prompt\tseed\n"open\t1\nfox\t2\nowl"\t3\n', ".tsv", ['"open', "fox", 'owl"']),
        ('prompt\tseed\n"two\nlines, ""quoted"""\t1\nx\t2\n', ".tsv", ['two\nlines, "quoted"', "x"]),
        ('prompt\tseed\n"a ""b"""\t1\n"""x"\t2\n', ".tab", ['a "b"', '"x']),
        ('seed\tprompt\n1\t"say ""hi"" now"\n2\t"say" hi\n', ".csv", ['say "hi" now', '"say" hi']),
        ("prompt|seed\na, b; c|1\n", ".csv", ["a, b; c"]),
        ("prompt\na | b\n", ".csv", ["a | b"]),
        ('#TYPE X.Y\n"prompt","seed"\n"x","1"\n', ".csv", ["x"]),
        ("prompt\na\u2028b\nc\x0bd\ne\x85f\u2029g\n".replace("\x85", "\u00a0"), ".csv", ["a\u2028b", "c\x0bd", "e\u00a0f\u2029g"]),
        ("a\u2028b\nc\x0bd\n\u00a0e\u00a0\n", ".txt", ["a\u2028b", "c\x0bd", "\u00a0e\u00a0"]),
    ],
)  # fmt: skip
def test_a_text_is_never_altered(text: str, suffix: str, prompts: list[str]) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert [p.request.prompt for p in good(text.encode(encoding), suffix)] == prompts


@pytest.mark.parametrize(
    "line",
    ['"The Song of "Blue Harbour": Part Two"', '"a half open quote', '"x" y', '""x'],
)
def test_quotes_that_do_not_fit_refuse_their_row_alone(line: str) -> None:
    text = f'prompt,seed\na fox,1\n{line},2\n"an owl, a cat",3\n'
    found = list(rows(text))
    assert [p.request.seed for p in found if isinstance(p, PlannedJob)] == [1, 3]
    (row,) = [r for r in found if isinstance(r, Row)]
    assert (row.number, row.line, row.problems[0].code) == (2, 3, "bad_csv")
    assert 'write ""' in str(row.problems[0].remedy)
    assert row.cells == {"prompt": line, "seed": "2"}
    again = good(dump_refused([row]))  # as it stands: quotes included
    assert [(p.request.prompt, p.request.seed) for p in again] == [(line, 2)]


@given(st.lists(st.text(alphabet="'=+-@1a, \"\t\n;|\r", min_size=1), min_size=1, max_size=4))
def test_refused_cells_come_back_as_they_were(cells: list[str]) -> None:
    names = [f"c{number}" for number in range(len(cells))]
    given_back = dump_refused(
        [Row(1, 2, {"prompt": "x"} | dict(zip(names, cells, strict=True)), ())]
    )
    whole = given_back.decode("utf-8-sig")
    for cell in next(iter(list(csv.reader(io.StringIO(whole, newline="")))[1:])):
        assert not re.match(r"[=@]|[+-]\D", cell)
    (planned,) = good(given_back)
    kept = planned.request.metadata or {}
    assert [kept.get(name, "") for name in names] == [c if c.strip() else "" for c in cells]


@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (b"a red fox\nan owl\n", "bad_csv", "prompt"),
        (b"Description,seed\nx,1\n", "bad_csv", "Description"),
        (b"prompt,steps,num_inference_steps\nx,1,2\n", "duplicate_key", "steps"),
        (b"prompt,Prompt\nx,y\n", "duplicate_key", "Prompt"),
        (b"\n\n", "empty_file", ""),
        (b"\xef\xbb\xbf", "empty_file", ""),
        (b"prompt\n" + b"caf\xe9\n" * 20_000, "encoding", "UTF-8"),
        (b"prompt\n" + b"a" * 2_000_000, "too_large", "Line 2"),
    ],
)
def test_what_spoils_the_whole_table(data: bytes, code: str, word: str) -> None:
    with pytest.raises(SteadyError) as caught:
        list(rows(data))
    assert caught.value.code == code
    assert word in f"{caught.value.message} {caught.value.remedy}"


@pytest.mark.parametrize("line", [1, 2, 700, 4001])
def test_a_byte_that_is_no_text_names_its_line(line: int) -> None:
    lines = [b"prompt"] + [b"a red fox"] * 5000
    lines[line - 1] += b"\xe9"
    with pytest.raises(SteadyError) as caught:
        list(rows(b"\n".join(lines)))
    assert caught.value.problems[0].line == line


def test_more_rows_or_jobs_than_allowed_are_refused() -> None:
    limits = Limits(max_lines=3)
    assert len(list(read_lines(io.BytesIO(b"prompt\na\nb\nc\n"), ".csv", Planner(limits)))) == 3
    bad_rows = b"prompt,seed\n" + b"a,x\n" * 4
    for data in (b"prompt\na\nb\nc\nd\n", b"prompt,count\na,4\n", bad_rows):
        with pytest.raises(SteadyError) as caught:
            list(read_lines(io.BytesIO(data), ".csv", Planner(limits)))
        assert caught.value.code == "too_many_jobs"


def test_a_long_cell_is_no_torn_quote() -> None:
    row = bad('prompt,note\na,"' + "x" * 140_000 + '"\nb,7\n')
    assert row.problems[0].key == "metadata"


def test_an_endless_list_of_seeds_is_that_rows_own_fault() -> None:
    row = bad("prompt,seed\na,1..999999999999\nb,7\n")
    assert (row.number, row.problems[0].code) == (1, "out_of_range")


# -- lines


def test_lines_of_json_are_mappings_or_prompts() -> None:
    found = good('{"prompt": "fox", "seed": 1}\n\n"owl"\n', ".jsonl")
    assert [(p.row, p.request.prompt, p.request.seed) for p in found] == [
        (1, "fox", 1),
        (3, "owl", None),
    ]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{bad", "bad_json"),
        ('{"prompt": "x", "prompt": "y"}', "duplicate_key"),
        ("[" * 5000, "unsafe_yaml"),
        ("[1]", "bad_shape"),
        ("7", "bad_shape"),
        ("null", "bad_shape"),
        ('{"prompt": "\\ud800"}', "encoding"),
        ('{"\\ud800": "x"}', "unknown_field"),
        ('{"prompt": "x", "seed": 1.5}', "wrong_type"),
    ],
)
def test_a_bad_line_is_that_line_alone(line: str, code: str) -> None:
    found = list(rows(f'"a"\n{line}\n"b"\n', ".jsonl"))
    assert [isinstance(r, PlannedJob) for r in found] == [True, False, True]
    assert isinstance(row := found[1], Row)
    assert (row.number, row.line, row.problems[0].line) == (2, 2, 2)
    assert code in [p.code for p in row.problems]
    assert "Line 1" not in row.problems[0].message
    assert b"error" in dump_refused([row])


def test_plain_text_is_a_prompt_a_line_and_comments() -> None:
    found = good("# my list\nfox\n\n  #1 fan  \n#\nowl # not a comment\n", ".txt")
    assert [(p.row, p.request.prompt) for p in found] == [
        (2, "fox"), (4, "#1 fan"), (6, "owl # not a comment"),
    ]  # fmt: skip


def test_other_suffixes_are_not_read() -> None:
    with pytest.raises(SteadyError) as caught:
        rows("x", ".doc")
    assert caught.value.code == "unsupported_suffix"
    assert caught.value.remedy == "Save the prompts as .txt, one a line."


def batch_line(**body: object) -> str:
    return json.dumps(
        {"custom_id": "r-1", "method": "POST", "url": "/v1/images/generations", "body": body}
    )


def test_a_line_of_an_openai_batch_file_is_a_job() -> None:
    line = batch_line(
        prompt="fox", n=2, size="1536x1024", steps=8, seed=5, quality="high", model="gpt-image-1",
        response_format="url", output_format="webp", user="me", style="natural", complexity=3,
    )  # fmt: skip
    first, second = good(line, ".jsonl")
    request = first.request
    assert (request.width, request.height, request.num_inference_steps) == (1536, 1024, 9)
    assert (request.label, request.seed, second.request.seed, request.format) == (
        "r-1",
        5,
        6,
        "webp",
    )
    assert first.warnings == ("quality has no effect here.", "complexity has no effect here.")


def test_auto_size_and_one_step() -> None:
    request = good(batch_line(prompt="x", size="auto", n=None, steps=1), ".jsonl")[0].request
    assert (request.width, request.num_inference_steps, request.count) == (1024, 2, 1)


@pytest.mark.parametrize(
    "line",
    [
        batch_line(prompt="x", output_format="svg"),
        batch_line(prompt="x", n="4"),
        batch_line(prompt="x", size="big"),
        batch_line(),
        '{"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": {}}',
        '{"custom_id": "r", "method": "GET", "url": "/v1/images/generations", "body": {}}',
        '{"custom_id": "r", "method": "POST", "url": "/v1/images/generations", "body": 7}',
    ],
)
def test_a_bad_batch_line_is_refused(line: str) -> None:
    assert bad(line, ".jsonl").problems


# -- going on, giving back


def table(count: int) -> bytes:
    lines = (f'"fox {i}, in ink",{768 if i % 7 else 770},{i},me\n' for i in range(1, count + 1))
    return b"prompt,width,seed,artist\n" + "".join(lines).encode()


def test_the_stream_is_left_open() -> None:
    stream = io.BytesIO(b'"x"\n')
    list(read_lines(stream, ".jsonl", Planner(LIMITS)))
    assert not stream.closed
    stream = io.BytesIO(b"prompt\nx\n")
    lines = read_lines(stream, ".csv", Planner(LIMITS))
    list(lines)
    del lines
    assert not stream.closed


def test_refused_rows_come_back_ready_to_mend() -> None:
    data = 'prompt;width;artist\n"a, b";768;me\n"two\nlines";770;you;\né;-1;\n'.encode()
    refused = [r for r in rows(data) if isinstance(r, Row)]
    given_back = dump_refused(refused)
    table = list(csv.DictReader(io.StringIO(given_back.decode("utf-8-sig"), newline="")))
    assert [r["prompt"] for r in table] == ["two\nlines", "é"]
    assert "Take 768 or 784." in table[0]["error"]
    mended = given_back.replace(b"770", b"768").replace(b"-1", b"512")
    assert [p.request.width for p in good(mended)] == [768, 512]
    assert good(mended)[0].request.metadata == {"artist": "you"}


def test_refused_lines_of_json_come_back_as_a_table() -> None:
    data = '{"prompt": "x", "width": 100, "metadata": {"a": 1}}\n{"prompt": "y", "seed": -1}\nnot json\n'
    refused = [r for r in rows(data, ".jsonl") if isinstance(r, Row)]
    mended = dump_refused(refused).replace(b"100", b"96").replace(b"-1", b"1")
    found = good(mended)
    assert [p.request.prompt for p in found] == ["x", "y", "not json"]
    assert (found[0].request.metadata, found[1].request.seed) == ({"a": 1}, 1)


def test_whole_tables_keep_their_good_rows() -> None:
    parsed = parse(table(10), ".csv", Planner(LIMITS), stem="foxes")
    assert (len(parsed.requests), len(parsed.refused), parsed.on_error) == (9, 1, "skip")
    assert [p.stem for p in parsed.requests][:2] == ["foxes_0001", "foxes_0002"]
    with pytest.raises(SteadyError) as caught:
        parse(b"prompt,width\nx,1\ny,2\n", ".csv", Planner(LIMITS))
    assert caught.value.code == "all_rows_refused"
    assert len(caught.value.problems) == 2


def test_twenty_thousand_rows_pass_in_constant_memory() -> None:
    data = table(20_000)
    limits = Limits(max_lines=20_000)
    count = sum(
        isinstance(r, PlannedJob) for r in read_lines(io.BytesIO(data), ".csv", Planner(limits))
    )
    assert count == 20_000 - 20_000 // 7
    lines = read_lines(io.BytesIO(table(4_000)), ".csv", Planner(limits))
    for _, _row in zip(range(1_000), lines, strict=False):
        pass
    tracemalloc.start()
    for _row in lines:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
