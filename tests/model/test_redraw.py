"""Pictures from pictures: img2img, inpainting and enlarging, on the starter model."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_zimage import STARTER, ask

from watcher.engine import Cancelled, EngineRequest, EngineSettings, Preview, Result
from watcher.engines.latents import noise_of, pooled, sigmas_of
from watcher.engines.zimage import ZImage
from watcher.limits import Limits
from watcher.retouch import Retouch
from watcher.upscaling import tiles_of

HOUSE = "a red house by the sea"
OTHER = "a green tree on a hill"
SIZE = (128, 128)


@pytest.fixture(scope="module")
def engine() -> Iterator[ZImage]:
    engine = ZImage(EngineSettings(str(STARTER), "cpu", options={"warm_up": False}))
    engine.load()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def house(engine: ZImage) -> Image.Image:
    """A picture of the model's own, at a size it draws well."""
    return engine.generate(ask(HOUSE, size="256x256"), silent).image


def silent(done: int, total: int, preview: Preview = None) -> None:
    """A step nobody watches."""


def asked(prompt: str = HOUSE, size: tuple[int, int] = SIZE, **more: Any) -> EngineRequest:
    """A request as a worker has it: files opened, nothing left open."""
    opened = {name: more.pop(name) for name in ("image", "mask") if name in more}
    plain = ask(prompt, size=f"{size[0]}x{size[1]}").model_dump(exclude={"image", "mask", "loras"})
    return EngineRequest.model_validate(plain | more).model_copy(update=opened)


def drawn(engine: Any, request: EngineRequest, forwards: int = 0) -> tuple[Result, list[Any]]:
    """The picture of ``request``, and what was reported on the way."""
    steps: list[Any] = []
    retouch = Retouch(engine, lambda d, t, p=None: steps.append((d, t)), forwards=forwards)
    return retouch.draw(request), steps


def decibels(one: Image.Image, other: Image.Image) -> float:
    """How alike two pictures are (99: the same pixels)."""
    a, b = (np.asarray(each, dtype=np.float64) for each in (one, other))
    wrong = float(((a - b) ** 2).mean())
    return 99.0 if wrong == 0 else 10 * float(np.log10(255**2 / wrong))


def half_masked(size: tuple[int, int] = SIZE) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse((30, 30, size[0] - 40, size[1] - 30), fill=255)
    return mask


# -- img2img


def test_at_full_strength_the_input_has_no_part(engine: ZImage, house: Image.Image) -> None:
    plain = engine.generate(ask(HOUSE, size="128x128"), silent).image
    image = house.resize(SIZE)
    assert drawn(engine, asked(image=image, strength=1.0))[0].image.tobytes() == plain.tobytes()
    white = asked(image=image, strength=1.0, mask=Image.new("L", SIZE, 255))
    assert drawn(engine, white)[0].image.tobytes() == plain.tobytes()
    again = engine.generate(ask(HOUSE, size="128x128"), silent).image
    assert again.tobytes() == plain.tobytes()


def test_strength_is_a_slider_and_counts_its_forwards(engine: ZImage, house: Image.Image) -> None:
    made = {}
    for strength in (0.51, 0.55, 0.6):
        request = asked(OTHER, image=house.resize(SIZE), strength=strength)
        result, steps = drawn(engine, request)
        assert steps == [(i, 5) for i in range(1, 6)]
        assert result.facts["forwards"] == 5
        assert Limits().forwards(request) == 5
        made[strength] = result.image.tobytes()
    assert len(set(made.values())) == 3
    assert (
        drawn(engine, asked(OTHER, image=house.resize(SIZE), strength=0.55))[0].image.tobytes()
        == (made[0.55])
    )


def test_little_strength_keeps_the_picture_and_much_does_not(
    engine: ZImage, house: Image.Image
) -> None:
    def made(strength: float, prompt: str) -> Image.Image:
        request = asked(prompt, (256, 256), image=house, strength=strength)
        return drawn(engine, request)[0].image

    gentle = made(0.15, OTHER)
    assert abs(float(np.asarray(gentle).mean() - np.asarray(house).mean())) <= 3
    assert decibels(made(0.3, HOUSE), house) >= 22
    assert decibels(made(0.9, OTHER), house) < 12


def test_the_schedule_of_a_part_is_the_end_of_the_whole() -> None:
    assert sigmas_of(5, 0.6) == pytest.approx([0.6, 0.48, 0.36, 0.24, 0.12])
    assert sigmas_of(4, 0.5) == sigmas_of(8)[4:]
    assert [Limits().usual.forwards(9, s) for s in (0.01, 0.125, 0.126, 0.51, 0.875, 1)] == [
        1, 1, 2, 5, 7, 8,
    ]  # fmt: skip
    assert noise_of(64, 48, 7, 16).shape == (1, 16, 6, 8)


# -- inpainting


def test_what_is_not_masked_stays_to_the_last_bit(engine: ZImage, house: Image.Image) -> None:
    image, mask = house.resize(SIZE), half_masked()
    made = drawn(engine, asked(OTHER, image=image, mask=mask, strength=1.0))[0].image
    before, after, where = (np.asarray(each) for each in (image, made, mask))
    assert (before[where == 0] == after[where == 0]).all()
    assert (before[where == 255] != after[where == 255]).mean() > 0.5
    upside = asked(OTHER, image=image, mask=mask, strength=1.0, mask_invert=True)
    after = np.asarray(drawn(engine, upside)[0].image)
    assert (before[where == 255] == after[where == 255]).all()
    assert (before[where == 0] != after[where == 0]).mean() > 0.5


def test_a_black_mask_is_the_input_and_costs_nothing(engine: ZImage, house: Image.Image) -> None:
    image = house.resize(SIZE)
    before = dict(engine.counters)
    result, steps = drawn(engine, asked(image=image, mask=Image.new("L", SIZE, 0), strength=1.0))
    assert result.image.tobytes() == image.tobytes()
    assert (engine.counters, steps, result.facts["forwards"]) == (before, [], 0)
    assert "mask" in result.facts["warnings"][0]


class Mute:
    """An engine of one's own that reports no step, and warns of each picture."""

    def generate(self, request: EngineRequest, report: Any) -> Result:
        return Result(request.image or Image.new("RGB", SIZE), {"warnings": ["A long prompt."]})


def test_all_passes_warn_and_what_nobody_counted_is_not_known(house: Image.Image) -> None:
    refined = {"factor": 2.0, "method": "refine", "strength": 0.3, "tile": 128}
    black = {"image": house.resize(SIZE), "mask": Image.new("L", SIZE, 0), "strength": 1.0}
    facts = drawn(Mute(), asked(**black, upscale=refined))[0].facts
    told = "The mask covers nothing: the picture is the one it starts from."
    assert facts == {"forwards": None, "warnings": [told, "A long prompt."]}


def test_a_blurred_mask_fades_and_still_keeps_what_is_far(
    engine: ZImage, house: Image.Image
) -> None:
    image = house.resize(SIZE)
    request = asked(OTHER, image=image, mask=half_masked(), strength=1.0)
    hard = np.asarray(drawn(engine, request)[0].image)
    soft = np.asarray(drawn(engine, request.model_copy(update={"mask_blur": 6}))[0].image)
    assert (soft[:8] == np.asarray(image)[:8]).all()
    assert (hard != soft).any()


def test_only_what_is_masked_is_drawn_at_the_whole_size(house: Image.Image) -> None:
    seen: list[EngineRequest] = []

    class Painter:
        def generate(self, request: EngineRequest, report: Any) -> Image.Image:
            seen.append(request)
            return Image.new("RGB", (request.width, request.height), (255, 0, 0))

    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (96, 64, 112, 72))
    image = house.resize(SIZE)
    request = asked(image=image, mask=mask, strength=1.0, mask_only=True, mask_padding=8)
    made = drawn(Painter(), request)[0].image
    [part] = seen
    assert part.image is not None and part.mask is not None
    # 16 and twice 8 pixels wide, in the shape of the picture
    assert (
        part.image.tobytes()
        == image.resize(SIZE, Image.Resampling.LANCZOS, box=(88, 52, 120, 84)).tobytes()
    )
    assert part.mask.getbbox() == (32, 48, 96, 80)
    assert (part.mask_only, part.mask_blur, part.mask_invert) == (None, None, None)
    expected = image.copy()
    expected.paste((255, 0, 0), (96, 64, 112, 72))
    assert made.tobytes() == expected.tobytes()


def test_a_thin_line_of_a_mask_is_not_lost() -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (33, 0, 34, 64))
    assert pooled(mask)[0, 0].sum(dim=1).tolist() == [1] * 8
    assert pooled(mask)[0, 0, :, 4].all()


# -- larger


def test_lanczos_is_pillows_to_the_bit(engine: ZImage, house: Image.Image) -> None:
    plain = engine.generate(ask(HOUSE, size="128x128"), silent).image
    for factor, side in ((2.0, 256), (1.5, 192), (4.0, 512)):
        upscale = {"factor": factor, "method": "lanczos"}
        made, steps = drawn(engine, asked(upscale=upscale), 8)
        expected = plain.resize((side, side), Image.Resampling.LANCZOS)
        assert made.image.tobytes() == expected.tobytes()
        assert steps[-1] == (8, 8)
    # of an input as it is, without a call of the model
    kept = asked(image=house.resize(SIZE), upscale={"factor": 2.0, "method": "lanczos"})
    before = dict(engine.counters)
    made, _ = drawn(engine, kept, 1)
    assert made.image.tobytes() == (
        house.resize(SIZE).resize((256, 256), Image.Resampling.LANCZOS).tobytes()
    )
    assert engine.counters == before


def test_refine_stays_near_what_it_refines_and_counts_all_forwards(
    engine: ZImage, house: Image.Image
) -> None:
    upscale = {"factor": 2.0, "method": "refine", "strength": 0.3, "tile": 1024}
    request = asked(size=(256, 256), upscale=upscale)
    assert Limits().forwards(request) == 8 + 3
    result, steps = drawn(engine, request, 11)
    assert steps == [(i, 11) for i in range(1, 12)]
    assert result.facts["forwards"] == 11
    large = house.resize((512, 512), Image.Resampling.LANCZOS)
    assert decibels(result.image, large) >= 25
    assert result.image.tobytes() != large.tobytes()


def test_tiles_cover_all_and_fade_into_each_other(engine: ZImage, house: Image.Image) -> None:
    assert tiles_of(512, 256, 512) == [(0, 0, 512, 256)]
    for width, height, tile in ((2048, 2048, 1024), (1040, 512, 1024), (3008, 96, 128)):
        boxes = tiles_of(width, height, tile)
        covered = np.zeros((height, width), dtype=int)
        for left, top, right, bottom in boxes:
            covered[top:bottom, left:right] += 1
            assert right - left <= tile and bottom - top <= tile
        assert covered.min() == 1
        starts = sorted({box[0] for box in boxes})
        assert all(b - a <= tile - tile // 8 for a, b in itertools.pairwise(starts))
    upscale = {"factor": 2.0, "method": "refine", "strength": 0.15, "tile": 128}
    request = asked(image=house.resize(SIZE), upscale=upscale)
    planned = Limits().forwards(request)
    assert planned == 9 * 2
    result, steps = drawn(engine, request, planned)
    assert steps == [(i, planned) for i in range(1, planned + 1)]
    plain = house.resize(SIZE).resize((256, 256), Image.Resampling.LANCZOS)
    jumps, usual = (
        np.abs(np.diff(np.asarray(each, dtype=np.int16), axis=1)).mean(axis=(0, 2))
        for each in (result.image, plain)
    )
    more = jumps - usual  # levels between columns that the tiles brought
    assert more[[63, 64, 79, 80, 127, 128, 143, 144]].mean() < more.mean() + 1


def test_a_cancel_between_tiles_ends_it(engine: ZImage, house: Image.Image) -> None:
    upscale = {"factor": 2.0, "method": "refine", "strength": 0.1, "tile": 128}

    def report(done: int, total: int, preview: Preview = None) -> None:
        if done == 2:
            raise Cancelled

    before = engine.counters["forwards"]
    with pytest.raises(Cancelled):
        Retouch(engine, report, forwards=9).draw(asked(image=house.resize(SIZE), upscale=upscale))
    assert engine.counters["forwards"] == before + 2
