"""Other services' clients that start from a picture, unmodified: OpenAI's and A1111's."""

import base64
import hashlib
import io
import json
import random
import warnings
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import webuiapi
from house_of_clients import House, house
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from api.compat.edits import variation_of
from api.compat.img2img import extras_of, img2img_of
from watcher.errors import SteadyError
from watcher.jobs import input_digest
from watcher.limits import Limits


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    log = tmp_path_factory.mktemp("log") / "engine.log"
    options = {"log": str(log), "accepts": ["image", "mask"]}
    root = tmp_path_factory.mktemp("pictures") / "root"
    with house(root, engine_options=options) as made:
        yield made


@pytest.fixture(scope="module")
def client(here: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{here.url}/v1", api_key="any", timeout=60) as client:
        yield client


@pytest.fixture
def api(here: House) -> Iterator[webuiapi.WebUIApi]:
    client = webuiapi.WebUIApi(port=here.port)
    yield client
    client.session.close()


def drawn(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (width, height), "orange")
    ImageDraw.Draw(image).rectangle((8, 8, 40, 40), fill="navy")
    return image


def png(image: Image.Image) -> bytes:
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


def kept(here: House, reference: str) -> Image.Image:
    """The picture a job names, as it is kept."""
    digest = input_digest(reference)
    assert digest is not None, reference
    data = (here.root.folder / ".steady" / "inputs" / digest).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    return Image.open(io.BytesIO(data))


def asked(here: House, word: str) -> dict[str, Any]:
    [job] = here.jobs(word)
    assert job["state"] == "completed"
    return json.loads(job["request"])


# ---------------------------------------------------------------- A1111


def test_img2img_at_the_clients_own_defaults(here: House, api: webuiapi.WebUIApi):
    source = drawn()
    result = api.img2img(images=[source], prompt="a plain owl", width=96, height=64)
    assert result.image.size == (96, 64)
    said = asked(here, "a plain owl")
    assert (said["strength"], said["resize"]) == (0.75, "stretch")
    assert "mask" not in said and "mask_only" not in said
    assert kept(here, said["image"]).convert("RGB").tobytes() == source.tobytes()
    assert result.info["denoising_strength"] == 0.75
    assert not [w for w in result.info["warnings"] if "no effect here" in w or "inpaint" in w]
    assert result.parameters["init_images"] is None, "not echoed, as there"


def test_img2img_with_a_mask(here: House, api: webuiapi.WebUIApi):
    mask = Image.new("L", (96, 64), 0)
    ImageDraw.Draw(mask).ellipse((10, 10, 50, 50), fill=255)
    result = api.img2img(
        images=[drawn()], mask_image=mask, prompt="a masked owl", width=96, height=64,
        denoising_strength=0.4, resize_mode=2, inpainting_mask_invert=1,
        inpaint_full_res=True, inpaint_full_res_padding=24,
    )  # fmt: skip
    said = asked(here, "a masked owl")
    names = ("strength", "resize", "mask_blur", "mask_invert", "mask_only", "mask_padding")
    assert [said[name] for name in names] == [0.4, "pad", 4, True, True, 24]
    assert kept(here, said["mask"]).convert("L").tobytes() == mask.tobytes()
    assert any("inpainting_fill" in words for words in result.info["warnings"])


@pytest.mark.parametrize(
    ("more", "field", "words"),
    [
        ({"resize_mode": 3}, "resize_mode", "3 is not supported"),
        ({"denoising_strength": 0}, "denoising_strength", "above 0"),
        ({"denoising_strength": 1.01}, "denoising_strength", "at most 1"),
        ({"init_images": []}, "init_images", "one picture"),
        ({"init_images": ["x", "y"]}, "init_images", "one picture"),
        ({"init_images": ["QUFBA"]}, "init_images", "no picture as base64"),
        ({"init_images": [3]}, "init_images", "as base64"),
        ({"init_images": [""]}, "init_images", "empty"),
        ({"mask": ""}, "mask", "empty"),
        ({"script_name": "x/y"}, "script_name", "not supported"),
    ],
)
def test_what_img2img_cannot_do_is_refused_by_name(more: dict[str, Any], field: str, words: str):
    raw = {"prompt": "x", "init_images": ["QUFBQQ=="]} | more
    with pytest.raises(SteadyError) as refused:
        img2img_of(raw, Limits().usual, lambda data, name: "sha256:0")
    [problem] = refused.value.problems
    assert problem.key == field and words in problem.message


def test_what_is_no_picture_is_refused_before_the_queue(here: House, api: webuiapi.WebUIApi):
    body = {"prompt": "never", "init_images": ["QUFBQQ=="]}
    answer = api.session.post(f"{api.baseurl}/img2img", json=body)
    assert answer.status_code == 422 and here.jobs("never") == []
    said = answer.json()
    assert "`init_images` is no picture" in said["errors"] + said["detail"]


# ---------------------------------------------------------------- OpenAI


def test_an_edit_paints_what_is_transparent_in_the_mask(here: House, client: openai.OpenAI):
    mask = Image.new("RGBA", (96, 64), (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=(9, 9, 9, 0))
    answer = client.images.edit(
        image=("cat.png", png(drawn())), mask=("mask.png", png(mask)), prompt="an edited fox",
        n=2, size="96x64", quality="high", input_fidelity="high",
        extra_body={"seed": 7, "strength": 0.8},
    )  # fmt: skip
    assert len(answer.data) == 2 and [entry.seed for entry in answer.data] == [7, 8]
    said = json.loads(here.jobs("an edited fox")[0]["request"])
    assert said["strength"] == 0.8
    painted = kept(here, said["mask"]).convert("L")
    assert painted.crop((0, 0, 32, 64)).getextrema() == (255, 255)
    assert painted.crop((32, 0, 96, 64)).getextrema() == (0, 0)
    assert "input_fidelity has no effect here." in answer.warnings


def test_without_a_mask_what_is_transparent_in_the_picture_is_one(
    here: House, client: openai.OpenAI
):
    source = drawn(mode="RGBA")
    ImageDraw.Draw(source).rectangle((0, 0, 15, 15), fill=(0, 0, 0, 0))
    answer = client.images.edit(image=png(source), prompt="a holed fox", size="96x64")
    assert kept(here, asked(here, "a holed fox")["mask"]).getpixel((3, 3)) == 255
    assert any("transparent in `image`" in words for words in answer.warnings)
    client.images.edit(image=[png(drawn())], prompt="a whole fox", size="96x64")
    assert "mask" not in asked(here, "a whole fox")


def test_an_edit_is_told_as_it_comes(here: House, client: openai.OpenAI):
    events = [
        event.type
        for event in client.images.edit(
            image=png(drawn()), prompt="a streamed fox", size="96x64", stream=True
        )
    ]
    assert events == ["image_edit.completed"]


def test_a_variation_is_asked_for_in_the_pictures_own_words(here: House, client: openai.OpenAI):
    first = client.images.generate(prompt="a fox to vary", size="64x64")
    made = (here.root.folder / "outputs" / here.jobs("a fox to vary")[0]["path"]).read_bytes()
    assert first.data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their client calls it deprecated
        client.images.create_variation(image=made, n=1)
        plain = client.images.create_variation(image=png(drawn()), size="64x64")
    again = json.loads(here.jobs("a fox to vary")[1]["request"])
    assert input_digest(again["image"]) == hashlib.sha256(made).hexdigest()
    assert asked(here, "a picture")["image"]
    assert any("carries no recipe" in words for words in plain.warnings)


@pytest.mark.parametrize("said", ['{"request": "x"}', '{"request": {"prompt": [1]}}', "[]"])
def test_a_picture_may_carry_anything_for_a_recipe(said: str):
    info, raw = PngInfo(), dict[str, Any]()
    info.add_text("steadydiffusion", said)
    made = io.BytesIO()
    drawn().save(made, "PNG", pnginfo=info)
    _, told = variation_of(raw, {"image": [made.getvalue()]}, lambda data, field: "sha256:0")
    assert raw == {"prompt": "a picture"} and "carries no recipe" in told[0]
    asked = extras_of(
        {"image": base64.b64encode(made.getvalue()).decode()}, lambda data, field: "sha256:0"
    )
    assert asked.fields["prompt"] == "a picture"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"image": [b"no picture"]}, "is no picture that can be read"),
        ({"image": [png(drawn()), png(drawn())]}, "must be one picture"),
        ({"image": png(drawn()), "mask": png(drawn())}, "has nothing transparent"),
        (
            {"image": png(drawn()), "mask": png(Image.new("RGBA", (32, 32)))},
            "must have the size of `image`",
        ),
    ],
)
def test_what_an_edit_cannot_do_is_said_in_their_shape(
    here: House, client: openai.OpenAI, files: dict[str, Any], words: str
):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(prompt="never drawn", **files)
    assert words in refused.value.message and refused.value.param in files
    assert here.jobs("never drawn") == []


@pytest.mark.parametrize("size", [(96, 64), (640, 512)])  # the body of the second is over 1 MiB
def test_extra_single_image_is_lanczos_unless_it_names_more(
    api: webuiapi.WebUIApi, size: tuple[int, int]
):
    width, height = size
    source = Image.frombytes("RGB", size, random.Random(1).randbytes(3 * width * height))
    result = api.extra_single_image(image=source, upscaling_resize=2)
    expected = source.resize((2 * width, 2 * height), Image.Resampling.LANCZOS)
    assert result.image.convert("RGB").tobytes() == expected.tobytes()
