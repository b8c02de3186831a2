"""Landscapes in the manner of a flat poster: a sky by the hour, and nine kinds of land under it.

All functions paint on an RGB picture whose pixels are numbered from the top left; `unit` is the
shorter side in pixels, so that a scene looks alike at every size.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from starter.sprites import Colour, blend, darker, lighter

#: Colours of the sky from its top to the horizon, RGB of 0 to 255, by the hour.
SKIES: dict[str, tuple[Colour, Colour, Colour]] = {
    "day": ((66, 140, 226), (128, 192, 242), (214, 238, 250)),
    "sunset": ((74, 44, 120), (226, 86, 92), (254, 190, 84)),
    "sunrise": ((104, 152, 218), (246, 178, 186), (255, 226, 168)),
    "night": ((8, 12, 40), (20, 30, 78), (48, 62, 120)),
    "storm": ((46, 52, 66), (84, 92, 108), (132, 140, 152)),
}

#: What the hour does to everything on the ground: a colour, and how much of it is mixed in.
LIGHT: dict[str, tuple[Colour, float]] = {
    "day": ((255, 255, 255), 0.0),
    "sunset": ((96, 36, 84), 0.46),
    "sunrise": ((250, 176, 170), 0.24),
    "night": ((10, 16, 52), 0.68),
    "storm": ((52, 58, 70), 0.5),
}

#: Where the horizon lies, as shares of the height, by the kind of land.
HORIZONS: dict[str, tuple[float, float]] = {
    "mountains": (0.66, 0.76),
    "hills": (0.56, 0.66),
    "sea": (0.52, 0.62),
    "lake": (0.54, 0.60),
    "beach": (0.46, 0.54),
    "desert": (0.56, 0.66),
    "forest": (0.62, 0.72),
    "city": (0.74, 0.82),
    "meadow": (0.52, 0.62),
    "snow": (0.56, 0.66),
}
TERRAINS: tuple[str, ...] = tuple(HORIZONS)
TIMES: tuple[str, ...] = tuple(SKIES)


def lit(colour: Colour, time: str, share: float = 1.0) -> Colour:
    """A colour of the land as it looks at that hour; `share` lessens the effect."""
    tone, amount = LIGHT[time]
    return blend(colour, tone, amount * share)


def vertical_gradient(width: int, height: int, stops: list[tuple[float, Colour]]) -> Image.Image:
    """A picture whose rows run through colours; stops are (share of the height, RGB), in order."""
    rows = np.linspace(0.0, 1.0, height)
    places = [place for place, _ in stops]
    channels = [np.interp(rows, places, [c[k] for _, c in stops]) for k in range(3)]
    column = np.stack(channels, axis=-1)[:, None, :]
    field = np.broadcast_to(column, (height, width, 3)).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(field))


def glow(
    picture: Image.Image, x: float, y: float, reach: float, colour: Colour, force: float
) -> None:
    """Brighten the surroundings of (x, y) softly; `reach` in pixels, `force` 0 to 1."""
    width, height = picture.size
    x0, x1 = max(0, int(x - reach)), min(width, int(x + reach) + 1)
    y0, y1 = max(0, int(y - reach)), min(height, int(y + reach) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    columns = (np.arange(x0, x1) - x) / reach
    rows = (np.arange(y0, y1) - y) / reach
    fall = np.clip(1.0 - np.sqrt(rows[:, None] ** 2 + columns[None, :] ** 2), 0, 1)
    mask = Image.fromarray((255 * force * fall**1.7).astype(np.uint8))
    picture.paste(colour, (x0, y0), mask)


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    """Fill a circle; all lengths in pixels."""
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def paint_sky(width: int, height: int, horizon: float, time: str, rng: Random) -> Image.Image:
    """The bare sky down to `horizon` (pixels) and its last colour below."""
    top, middle, low = SKIES[time]
    shift = rng.uniform(-0.06, 0.06)
    edge = horizon / height
    stops = [(0.0, top), (edge * (0.55 + shift), middle), (edge, low), (1.0, low)]
    return vertical_gradient(width, height, stops)


def paint_stars(picture: Image.Image, horizon: float, rng: Random, many: bool) -> None:
    """Scatter stars over the sky."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    for _ in range(int((46 if many else 14) * width * horizon / unit**2)):
        x, y = rng.uniform(0, width), rng.uniform(0, horizon * 0.92)
        size = unit * rng.choice((0.006, 0.008, 0.012))
        disc(draw, x, y, size, (255, 250, rng.choice((215, 235, 255))))


def paint_sun(picture: Image.Image, x: float, y: float, radius: float, time: str) -> None:
    """The sun with its glow, in the colour of the hour."""
    colour, aura = {
        "day": ((255, 226, 80), (255, 246, 190)),
        "sunset": ((255, 214, 96), (255, 170, 70)),
        "sunrise": ((255, 240, 170), (255, 226, 150)),
    }.get(time, ((250, 232, 150), (220, 220, 200)))
    glow(picture, x, y, radius * 4.2, aura, 0.8)
    disc(ImageDraw.Draw(picture), x, y, radius, colour)


def paint_moon(picture: Image.Image, x: float, y: float, radius: float, crescent: bool) -> None:
    """A full moon with a few seas, or a crescent."""
    glow(picture, x, y, radius * 3.2, (150, 170, 225), 0.5)
    size = int(radius * 2) + 2
    scale = 2
    layer = Image.new("RGBA", (size * scale, size * scale), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    middle, reach = size * scale / 2, radius * scale
    disc(draw, middle, middle, reach, (250, 246, 222))
    if crescent:
        cut = (middle + 0.45 * reach, middle - 0.18 * reach)
        box = [
            cut[0] - 0.92 * reach,
            cut[1] - 0.92 * reach,
            cut[0] + 0.92 * reach,
            cut[1] + 0.92 * reach,
        ]
        draw.ellipse(box, fill=(0, 0, 0, 0))
    else:
        for dx, dy, r in ((-0.35, -0.2, 0.22), (0.3, 0.3, 0.28), (0.2, -0.45, 0.14)):
            disc(draw, middle + dx * reach, middle + dy * reach, r * reach, (228, 222, 198))
    layer = layer.resize((size, size), Image.Resampling.BOX)
    picture.paste(layer, (int(x - size / 2), int(y - size / 2)), layer)


def paint_clouds(picture: Image.Image, horizon: float, time: str, rng: Random, dense: bool) -> None:
    """A few round clouds with flat bellies, or a sky full of them."""
    width, height = picture.size
    unit = min(width, height)
    colour = {
        "day": (252, 253, 255),
        "sunset": (252, 160, 126),
        "sunrise": (255, 232, 226),
        "night": (66, 78, 126),
        "storm": (64, 70, 84),
    }[time]
    mask = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(mask)
    number = max(2, round((5 if dense else 2.6) * width / unit))
    for index in range(number):
        x = (index + rng.uniform(0.1, 0.9)) * width / number
        y = rng.uniform(0.10, 0.5) * horizon
        half = unit * rng.uniform(0.11, 0.19)
        for _ in range(5):
            dx, puff = rng.uniform(-0.7, 0.7) * half, half * rng.uniform(0.28, 0.46)
            draw.ellipse([x + dx - puff, y - puff, x + dx + puff, y + puff * 0.7], fill=255)
        draw.rounded_rectangle([x - half, y, x + half, y + half * 0.32], half * 0.16, fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(unit * 0.006))
    strength = 0.92 if time in ("day", "storm") else 0.7
    picture.paste(colour, (0, 0), mask.point([round(v * strength) for v in range(256)]))


def paint_rainbow(picture: Image.Image, horizon: float, rng: Random) -> None:
    """A bright arc of six bands from side to side."""
    width, height = picture.size
    unit = min(width, height)
    bands = [
        (232, 62, 62),
        (248, 150, 48),
        (252, 226, 72),
        (84, 186, 92),
        (64, 124, 224),
        (140, 80, 190),
    ]
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    x = width * rng.uniform(0.42, 0.58)
    reach = min(width * rng.uniform(0.44, 0.52), horizon * 0.92)
    stroke = unit * 0.032
    for index, colour in enumerate(bands):
        radius = reach - index * stroke
        box = [x - radius, horizon - radius, x + radius, horizon + radius]
        draw.arc(box, 180, 360, fill=(*colour, 215), width=math.ceil(stroke) + 1)
    picture.paste(layer, (0, 0), layer)


def paint_lightning(picture: Image.Image, horizon: float, rng: Random) -> None:
    """One or two bold forked bolts."""
    width, height = picture.size
    unit = min(width, height)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.choice((1, 1, 2))):
        x, y = width * rng.uniform(0.18, 0.82), horizon * 0.12
        glow(picture, x, horizon * 0.45, unit * 0.34, (214, 214, 250), 0.4)
        points = [(x, y)]
        while points[-1][1] < horizon * 0.96:
            side = 1 if len(points) % 2 else -1
            last = points[-1]
            points.append(
                (
                    last[0] + side * unit * rng.uniform(0.03, 0.09),
                    last[1] + unit * rng.uniform(0.09, 0.15),
                )
            )
        draw.line(points, fill=(255, 248, 190), width=max(2, round(unit * 0.024)), joint="curve")


def paint_snowfall(picture: Image.Image, rng: Random) -> None:
    """Flakes over the whole picture."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    for _ in range(int(64 * width * height / unit**2)):
        size = unit * rng.choice((0.008, 0.011, 0.015))
        disc(draw, rng.uniform(0, width), rng.uniform(0, height), size, (248, 250, 255))


def ridge(
    width: int, base: float, swing: float, waves: float, rng: Random
) -> list[tuple[float, float]]:
    """Points of a soft hill line from left to right, in pixels; `swing` is its height."""
    phases = [rng.uniform(0, 2 * math.pi) for _ in range(3)]
    points = []
    for step in range(41):
        t = step / 40
        rise = sum(
            math.sin(waves * (k + 1) * 2 * math.pi * t + phases[k]) / (k + 1) ** 1.6
            for k in range(3)
        )
        points.append((t * width, base - swing * rise / 1.6))
    return points


def fill_below(
    draw: ImageDraw.ImageDraw,
    points: list[tuple[float, float]],
    size: tuple[int, int],
    colour: Colour,
) -> None:
    """Fill everything below a line of points that runs from left to right."""
    draw.polygon(
        [(-1, size[1]), (-1, points[0][1]), *points, (size[0], points[-1][1]), (size[0], size[1])],
        fill=colour,
    )


def _peak(
    draw: ImageDraw.ImageDraw,
    x: float,
    top: float,
    base: float,
    half: float,
    colours: tuple[Colour, Colour, Colour | None, Colour],
    rng: Random,
) -> None:
    """One mountain: a lit and a shaded face, and a cap of snow where there is one."""
    face, shade, snow, snow_shade = colours
    lean = rng.uniform(-0.12, 0.12) * half
    foot = x + rng.uniform(0.0, 0.3) * half
    draw.polygon([(x - half, base), (x + lean, top), (x + half, base)], fill=face)
    draw.polygon(
        [
            (x + lean, top),
            (x + half, base),
            (foot, base),
            (x + lean + 0.06 * half, top + 0.45 * (base - top)),
        ],
        fill=shade,
    )
    if snow is None:
        return
    depth = rng.uniform(0.4, 0.5)
    low = top + depth * (base - top)
    left, right = x + lean - depth * (half + lean), x + lean + depth * (half - lean)
    span = right - left
    zigzag = []
    for k in range(1, 6):
        drop = (0.2 if k % 2 else -0.18) * depth * (base - top)
        zigzag.append((right - span * k / 6, low + drop))
    draw.polygon([(left, low), (x + lean, top), (right, low), *zigzag], fill=snow)
    draw.polygon(
        [
            (x + lean, top),
            (right, low),
            *zigzag[:2],
            (x + lean + 0.05 * half, top + 0.5 * (low - top)),
        ],
        fill=snow_shade,
    )


def paint_mountains(
    picture: Image.Image, horizon: float, time: str, snowy: bool, rng: Random, low: bool = False
) -> None:
    """Two rows of peaks; the far row is paler. `low` keeps them small, behind a lake."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    air = SKIES[time][2]
    rock = rng.choice(((106, 112, 140), (120, 104, 120), (92, 112, 124), (126, 110, 98)))
    rows = (
        ((0.5, 0.32, 0.42), (0.08, 0.5, 0.66)) if not low else ((0.55, 0.2, 0.3), (0.15, 0.26, 0.4))
    )
    for haze, least, most in rows:
        face = blend(lit(rock, time, 0.8), air, haze)
        shade = blend(darker(lit(rock, time), 0.36), air, haze * 0.8)
        snow = blend(lit((250, 252, 255), time, 0.55), air, haze * 0.35) if snowy else None
        snow_shade = blend(lit((196, 210, 236), time, 0.7), air, haze * 0.35)
        x = -rng.uniform(0.0, 0.3) * unit
        while x < width + 0.2 * unit:
            half = unit * rng.uniform(0.26, 0.4)
            _peak(
                draw,
                x,
                horizon - unit * rng.uniform(least, most),
                horizon + 0.01 * unit,
                half,
                (face, shade, snow, snow_shade),
                rng,
            )
            x += half * rng.uniform(0.85, 1.3)


def _pine(
    draw: ImageDraw.ImageDraw,
    x: float,
    base: float,
    size: float,
    colour: Colour,
    snow: Colour | None,
) -> None:
    draw.rectangle(
        [x - 0.05 * size, base - 0.16 * size, x + 0.05 * size, base],
        fill=blend(colour, (80, 52, 36), 0.6),
    )
    for level in range(3):
        low = base - size * (0.12 + 0.25 * level)
        half = size * (0.34 - 0.075 * level)
        top = low - 0.42 * size
        draw.polygon([(x - half, low), (x, top), (x + half, low)], fill=colour)
        if snow is not None:
            draw.polygon(
                [
                    (x - 0.5 * half, low - 0.21 * size),
                    (x, top),
                    (x + 0.5 * half, low - 0.21 * size),
                ],
                fill=snow,
            )


def _ground(
    picture: Image.Image, horizon: float, colour: Colour, rng: Random, swing: float = 0.02
) -> None:
    """Near ground below the horizon, a little darker towards the viewer."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    for step in range(4):
        base = horizon + (height - horizon) * step / 4.4
        line = ridge(width, base, swing * min(width, height), rng.uniform(0.5, 1.1), rng)
        fill_below(draw, line, picture.size, darker(colour, 0.075 * step))


def _paint_hills(picture: Image.Image, horizon: float, time: str, rng: Random) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    air = SKIES[time][2]
    green = rng.choice(((104, 178, 82), (122, 186, 74), (86, 166, 92)))
    for step in range(4):
        base = horizon + (height - horizon) * (step / 3.6) - 0.03 * unit
        colour = blend(lit(darker(green, 0.1 * step), time), air, max(0.0, 0.42 - 0.18 * step))
        fill_below(
            draw, ridge(width, base, unit * 0.085, rng.uniform(0.7, 1.3), rng), picture.size, colour
        )


def _water(
    picture: Image.Image, horizon: float, time: str, rng: Random, light: tuple[float, Colour] | None
) -> None:
    """Open water with streaks, and the light of the sun or moon upon it."""
    width, height = picture.size
    unit = min(width, height)
    near, far = {
        "day": ((22, 92, 166), (84, 168, 216)),
        "sunset": ((70, 40, 104), (232, 124, 94)),
        "sunrise": ((86, 128, 186), (236, 186, 178)),
        "night": ((8, 16, 50), (34, 52, 108)),
        "storm": ((36, 48, 62), (92, 106, 120)),
    }[time]
    depth = int(height - horizon)
    picture.paste(vertical_gradient(width, depth, [(0.0, far), (1.0, near)]), (0, height - depth))
    draw = ImageDraw.Draw(picture)
    for step in range(7):
        t = (step + 0.6) / 7
        y = horizon + depth * t**1.25
        tone = lighter(blend(far, near, t), 0.22)
        for _ in range(max(1, round(1.6 * width / unit))):
            x, half = rng.uniform(0, width), unit * rng.uniform(0.05, 0.12) * (0.5 + t)
            thick = unit * 0.008 * (0.6 + t)
            draw.rounded_rectangle([x - half, y - thick, x + half, y + thick], thick, fill=tone)
    if light is not None:
        x, colour = light
        for step in range(8):
            t = (step + 0.4) / 8
            y, half = horizon + depth * t * 0.92, unit * (0.05 + 0.07 * t) * rng.uniform(0.6, 1.1)
            thick = unit * 0.012
            tone = blend(colour, blend(far, near, t), 0.25 + 0.4 * t)
            draw.rounded_rectangle([x - half, y - thick, x + half, y + thick], thick, fill=tone)


def _paint_lake(picture: Image.Image, horizon: float, time: str, rng: Random) -> None:
    """Still water that mirrors what stands behind it."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    shore = lit((64, 124, 84), time)
    fill_below(
        draw, ridge(width, horizon - 0.02 * unit, 0.03 * unit, 1.2, rng), picture.size, shore
    )
    top, depth = round(horizon), height - round(horizon)
    mirror = picture.crop((0, max(0, top - depth), width, top)).transpose(
        Image.Transpose.FLIP_TOP_BOTTOM
    )
    mirror = mirror.resize((width, depth))
    tone = {"day": (42, 110, 176), "sunset": (92, 44, 96), "sunrise": (120, 150, 196)}.get(
        time, (14, 24, 58)
    )
    picture.paste(Image.blend(mirror, Image.new("RGB", mirror.size, tone), 0.42), (0, top))
    for _ in range(5):
        y, x, half = (
            top + depth * rng.uniform(0.15, 0.95),
            rng.uniform(0, width),
            unit * rng.uniform(0.08, 0.18),
        )
        thick = 0.006 * unit
        draw.rounded_rectangle(
            [x - half, y - thick, x + half, y + thick], thick, fill=lighter(tone, 0.35)
        )


def _paint_beach(
    picture: Image.Image, horizon: float, time: str, rng: Random, light: tuple[float, Colour] | None
) -> None:
    width, height = picture.size
    unit = min(width, height)
    _water(picture, horizon, time, rng, light)
    draw = ImageDraw.Draw(picture)
    base = horizon + (height - horizon) * rng.uniform(0.36, 0.46)
    slope = rng.uniform(-0.09, 0.09) * unit
    line = [
        (x, y + slope * (2 * x / width - 1)) for x, y in ridge(width, base, 0.03 * unit, 0.7, rng)
    ]
    sand = lit((242, 216, 158), time, 0.85)
    fill_below(
        draw, [(x, y - 0.03 * unit) for x, y in line], picture.size, lit((236, 248, 252), time, 0.6)
    )
    fill_below(draw, line, picture.size, darker(sand, 0.14))
    fill_below(draw, [(x, y + 0.035 * unit) for x, y in line], picture.size, sand)


def _paint_desert(picture: Image.Image, horizon: float, time: str, rng: Random) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    air = SKIES[time][2]
    sand = rng.choice(((236, 188, 112), (232, 172, 96), (224, 160, 104)))
    for step in range(4):
        base = horizon + (height - horizon) * step / 3.8
        crest = [(x, y) for x, y in ridge(width, base, unit * 0.07, rng.uniform(0.5, 0.9), rng)]
        colour = blend(lit(darker(sand, 0.06 * step), time, 0.9), air, max(0.0, 0.2 - 0.1 * step))
        fill_below(draw, crest, picture.size, colour)
        # The lee side of a dune lies in shade: a dark sickle below its crest.
        k = rng.randrange(4, 26)
        low = (crest[k + 5][0], max(y for _, y in crest[k : k + 13]) + 0.09 * unit)
        draw.polygon([*crest[k : k + 13], low], fill=darker(colour, 0.14))


def _paint_forest(
    picture: Image.Image, horizon: float, time: str, snowy: bool, rng: Random
) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    air = SKIES[time][2]
    green = rng.choice(((30, 104, 66), (40, 112, 58), (34, 96, 80)))
    floor = (238, 243, 250) if snowy else (76, 128, 62)
    fill_below(
        draw,
        ridge(width, horizon, 0.03 * unit, 1.0, rng),
        picture.size,
        blend(lit(floor, time), air, 0.3),
    )
    for row in range(3):
        haze = (0.46, 0.22, 0.0)[row]
        base = horizon + (height - horizon) * (0.08, 0.34, 0.62)[row]
        size = unit * (0.32, 0.42, 0.54)[row]
        colour = blend(lit(darker(green, 0.1 * row), time), air, haze)
        snow = blend(lit((246, 250, 255), time, 0.7), air, haze * 0.5) if snowy else None
        fill_below(
            draw,
            ridge(width, base - 0.02 * unit, 0.02 * unit, 1.0, rng),
            picture.size,
            blend(lit(darker(floor, 0.06 * row), time), air, haze * 0.6),
        )
        x = -rng.uniform(0, 0.1) * unit
        while x < width + 0.1 * unit:
            _pine(
                draw,
                x,
                base + rng.uniform(-0.01, 0.03) * unit,
                size * rng.uniform(0.75, 1.1),
                colour,
                snow,
            )
            x += size * rng.uniform(0.38, 0.7)


def _paint_city(picture: Image.Image, horizon: float, time: str, rng: Random) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    air = SKIES[time][2]
    for row in range(3):
        haze = (0.55, 0.28, 0.0)[row]
        x = -rng.uniform(0, 0.1) * unit
        while x < width:
            wide = unit * rng.uniform(0.1, 0.18)
            tall = unit * rng.uniform((0.24, 0.2, 0.12)[row], (0.48, 0.4, 0.32)[row])
            tone = rng.choice(
                ((92, 104, 132), (124, 108, 120), (78, 92, 116), (140, 122, 112), (96, 118, 126))
            )
            colour = blend(lit(tone, time), air, haze)
            top = horizon - tall
            draw.rectangle([x, top, x + wide, horizon + 1], fill=colour)
            if rng.random() < 0.25:
                draw.polygon(
                    [(x, top), (x + wide / 2, top - 0.08 * unit), (x + wide, top)],
                    fill=darker(colour, 0.15),
                )
            if row:
                glowing = time in ("night", "sunset", "storm")
                pane = blend(
                    (255, 222, 120) if glowing else (206, 226, 240), colour, 0.15 + 0.4 * haze
                )
                cell = unit * 0.042
                for j in range(int(tall / cell) - 1):
                    for i in range(max(1, int(wide / cell) - 1)):
                        if rng.random() < (0.62 if glowing else 0.85):
                            left, high = x + (i + 0.7) * cell, top + (j + 0.7) * cell
                            draw.rectangle(
                                [left, high, left + 0.5 * cell, high + 0.55 * cell], fill=pane
                            )
            x += wide * rng.uniform(1.0, 1.12)
    _ground(picture, horizon, lit((96, 102, 112), time), rng, 0.0)


def _paint_meadow(
    picture: Image.Image, horizon: float, time: str, rng: Random, blossom: Colour | None
) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    air = SKIES[time][2]
    fill_below(
        draw,
        ridge(width, horizon - 0.03 * unit, 0.05 * unit, 0.9, rng),
        picture.size,
        blend(lit((86, 156, 96), time), air, 0.35),
    )
    _ground(picture, horizon + 0.03 * unit, lit((126, 196, 80), time), rng, 0.025)
    tones = (
        [blossom]
        if blossom
        else [(250, 240, 240), (250, 214, 70), (236, 100, 110), (246, 150, 200)]
    )
    dots = []
    for _ in range(int(30 * width / unit)):
        t = rng.random()
        dots.append(
            (
                horizon + 0.1 * unit + (height - horizon - 0.1 * unit) * t**0.8,
                rng.uniform(0, width),
                t,
            )
        )
    for y, x, t in sorted(dots):
        size = unit * (0.013 + 0.018 * t)
        draw.line(
            [(x, y), (x, y + 2.6 * size)],
            fill=lit((58, 128, 56), time),
            width=max(1, round(size * 0.5)),
        )
        disc(draw, x, y, size, lit(rng.choice(tones), time, 0.6))


def _paint_snow(picture: Image.Image, horizon: float, time: str, rng: Random) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    unit = min(width, height)
    white = lit((246, 250, 255), time, 0.72)
    fill_below(
        draw,
        ridge(width, horizon - 0.02 * unit, 0.06 * unit, 1.0, rng),
        picture.size,
        darker(white, 0.12),
    )
    pines = sorted(rng.uniform(0.0, 0.16) for _ in range(round(4 * width / unit)))
    for depth in pines:
        green = blend(lit((44, 100, 84), time), SKIES[time][2], 0.3 - depth)
        _pine(
            draw, rng.uniform(0, width), horizon + depth * unit, unit * (0.15 + depth), green, white
        )
    for step in range(3):
        base = horizon + (height - horizon) * (0.34 + 0.25 * step)
        tone = blend(white, lit((196, 214, 240), time), 0.42 - 0.2 * step)
        fill_below(
            draw, ridge(width, base, 0.05 * unit, rng.uniform(0.5, 0.9), rng), picture.size, tone
        )


def paint_land(
    picture: Image.Image,
    terrain: str,
    horizon: float,
    time: str,
    rng: Random,
    *,
    snowy: bool,
    blossom: Colour | None,
    light: tuple[float, Colour] | None,
) -> None:
    """Paint everything under the sky.

    Args:
        picture: the sky, painted upon in place.
        terrain: one of `TERRAINS`.
        horizon: its line, in pixels from the top.
        time: one of `TIMES`.
        rng: decides the lie of the land.
        snowy: snow on mountains or on the trees of a forest.
        blossom: colour of a meadow's flowers, None for mixed ones.
        light: column (pixels) and colour of a sun or moon that shines upon water.
    """
    if terrain == "mountains":
        paint_mountains(picture, horizon, time, snowy, rng)
        _ground(picture, horizon, lit((232, 240, 250) if snowy else (84, 140, 84), time, 0.9), rng)
    elif terrain == "hills":
        _paint_hills(picture, horizon, time, rng)
    elif terrain == "sea":
        _water(picture, horizon, time, rng, light)
    elif terrain == "lake":
        paint_mountains(picture, horizon, time, snowy, rng, low=True)
        _paint_lake(picture, horizon, time, rng)
    elif terrain == "beach":
        _paint_beach(picture, horizon, time, rng, light)
    elif terrain == "desert":
        _paint_desert(picture, horizon, time, rng)
    elif terrain == "forest":
        _paint_forest(picture, horizon, time, snowy, rng)
    elif terrain == "city":
        _paint_city(picture, horizon, time, rng)
    elif terrain == "meadow":
        _paint_meadow(picture, horizon, time, rng, blossom)
    else:
        _paint_snow(picture, horizon, time, rng)
