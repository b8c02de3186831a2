"""The description of the API: current, complete, with an example everywhere; read offline."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from doors import Bench
from written import described

from watcher.errors import ERRORS


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("root")) as bench:
        yield bench


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_operation_is_named_told_and_shown(bench: Bench):
    document = described(bench.app)
    names = []
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        names.append(operation["operationId"])
        assert re.fullmatch(r"[a-z_]+", operation["operationId"]), where
        assert operation["summary"], where
        for media, body in operation.get("requestBody", {}).get("content", {}).items():
            schema = document["components"]["schemas"].get(_name(body["schema"]), body["schema"])
            if schema.get("contentMediaType", "").startswith("image/"):
                continue  # bytes show nothing
            assert {"example", "examples"} & (body.keys() | schema.keys()), (where, media)
        for status, answer in operation["responses"].items():
            for media, body in answer.get("content", {}).items():
                assert _has_example(document, media, body), (where, status, media)
            if int(status) >= 400:
                assert "application/problem+json" in answer["content"], (where, status)
                problem = answer["content"]["application/problem+json"]
                for code, reference in problem["examples"].items():
                    assert reference == {"$ref": f"#/components/examples/{code}"}
                    example = document["components"]["examples"][code]
                    assert example["value"]["status"] == ERRORS[code].status == int(status)
    assert len(names) == len(set(names)) > 25


def _name(schema: dict[str, Any]) -> str:
    return schema.get("$ref", "").rpartition("/")[2]


def _has_example(document: dict[str, Any], media: str, body: dict[str, Any]) -> bool:
    if (
        media.startswith(("image/", "application/zip", "application/octet-stream", "text/"))
        or "example" in body
        or "examples" in body
    ):
        return True
    return "example" in document["components"]["schemas"][_name(body["schema"])]


def test_every_reference_leads_somewhere(bench: Bench):
    document = described(bench.app)
    used = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert used <= set(document["components"]["schemas"])


def test_no_operation_speaks_of_errors_in_another_form(bench: Bench):
    assert "HTTPValidationError" not in json.dumps(described(bench.app))


def test_the_live_description_has_the_limits_of_the_model_in_use(bench: Bench):
    live = bench.client.get("/openapi.json").json()
    width = live["components"]["schemas"]["JobRequest"]["properties"]["width"]
    assert (width["maximum"], width["multipleOf"], width["default"]) == (2048, 16, 1024)


def test_the_page_about_it_needs_nothing_from_elsewhere(bench: Bench):
    page = bench.client.get("/docs")
    assert page.status_code == 200
    assert "<script" not in page.text and "style=" not in page.text
    for link in re.findall(r'(?:href|src)="([^"]+)"', page.text):
        assert link.startswith(("/", "#")), link
        if link.startswith("/"):
            assert bench.client.get(link).status_code == 200, link
        else:
            assert f'id="{link[1:]}"' in page.text, link
    for _, path, operation in operations(bench.app.openapi()):
        assert f'id="{operation["operationId"]}"' in page.text
        assert path in page.text
    for code in ERRORS:
        assert f'id="{code}"' in page.text
    assert bench.client.get("/", follow_redirects=False).headers["location"] == "/docs"
