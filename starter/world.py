"""The drawn world: scenes made up from a seed, their pictures and their captions.

Everything the starter model knows comes from here. A scene is plain data; `draw` paints it at any
size and `caption` words it in one of many ways. The same seed always gives the same scene, picture
and wording. Scenes are held out by what they mean (kind, colour and ground together, or land, hour
and feature together), not by how they are worded, so a held-out caption was never seen in any
wording.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from starter import scenery
from starter.sprites import COLOURS, KINDS, SHAPES, Colour, blend, sprite

COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
RELATIONS: tuple[str, ...] = ("left", "right", "above", "below", "and")
PLACES: tuple[str, ...] = ("left", "right", "top", "bottom")
FEATURES: tuple[str, ...] = (
    "",
    "sun",
    "moon",
    "crescent",
    "stars",
    "clouds",
    "rainbow",
    "lightning",
    "snowfall",
    "birds",
)

#: One scene in this many (by meaning) is held out from every stage of training.
HELD_OUT_EVERY = 14

#: Pictures are drawn this many times larger and reduced, for smooth edges.
SUPERSAMPLE = 2


@dataclass(frozen=True)
class Thing:
    """One object: its kind, its colour's name, and how many of it there are."""

    kind: str
    colour: str
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """What a picture shows, free of any wording.

    `land` is "" for objects on a plain ground. `place` is where a single object stands ("" for
    the middle of a plain ground, or anywhere in a landscape); `relation` says where the first of
    two things lies as seen from the second.
    """

    ground: str = ""
    land: str = ""
    time: str = "day"
    feature: str = ""
    snowy: bool = False
    blossom: str = ""
    things: tuple[Thing, ...] = ()
    relation: str = ""
    place: str = ""
    size: str = ""

    def meaning(self) -> str:
        """The key scenes are held out by."""
        things = "+".join(f"{t.count}{t.colour}{t.kind}" for t in self.things)
        if not self.land:
            return f"{self.ground}/{things}"
        first = f"{self.things[0].colour}{self.things[0].kind}" if self.things else self.feature
        return f"{self.land}/{self.time}/{self.snowy}/{first}"

    def held_out(self) -> bool:
        """Whether no stage of training may see this scene."""
        return zlib.crc32(self.meaning().encode()) % HELD_OUT_EVERY == 0


@dataclass(frozen=True)
class Sample:
    """A picture (uint8 [height, width, 3]), its caption, its scene, and where its objects are.

    `kinds` and `colours` are uint8 [height / 16, width / 16], one number for each patch the
    transformer sees: 0 for no object, else 1 + the place of its kind or colour in its list.
    """

    image: npt.NDArray[np.uint8]
    caption: str
    scene: Scene
    kinds: npt.NDArray[np.uint8]
    colours: npt.NDArray[np.uint8]


_SKY_KINDS = ("balloon", "bird", "rocket", "butterfly", "balloon", "bird")
_WATER_KINDS = ("boat", "boat", "boat", "fish")
_LAND_KINDS = (
    "house",
    "tree",
    "car",
    "flower",
    "mushroom",
    "cat",
    "robot",
    "umbrella",
    "dog",
    "rabbit",
    "house",
    "tree",
    "cat",
    "dog",
)
_OWN_KINDS: dict[str, tuple[str, ...]] = {
    "desert": ("cactus", "cactus", "cactus", "car", "robot", "dog", "rabbit", "umbrella"),
    "beach": ("palm", "palm", "palm", "umbrella", "umbrella", "cat", "dog", "lighthouse", "boat"),
    "sea": _WATER_KINDS,
    "lake": (*_WATER_KINDS, "house", "tree"),
    "hills": (*_LAND_KINDS, "lighthouse"),
    "city": ("car", "car", "robot", "tree", "cat", "dog", "umbrella"),
    "forest": ("mushroom", "mushroom", "house", "cat", "dog", "rabbit", "robot", "flower"),
}
_FEATURES_BY_TIME: dict[str, tuple[str, ...]] = {
    "day": ("", "sun", "clouds", "rainbow", "snowfall", "birds", "sun"),
    "sunset": ("", "", "sun", "clouds", "birds", "sun"),
    "sunrise": ("", "", "sun", "clouds", "birds", "sun"),
    "night": ("", "moon", "crescent", "stars", "stars", "moon", "snowfall"),
    "storm": ("", "lightning", "lightning", "clouds"),
}


def sample_scene(rng: Random, held_out: bool = False) -> Scene:
    """Make up a scene that is held out, or one that is not."""
    while True:
        scene = _plain_scene(rng) if rng.random() < 0.52 else _land_scene(rng)
        if scene.held_out() == held_out:
            return scene


def _thing(rng: Random, kinds: tuple[str, ...], ground: str = "", count: int = 1) -> Thing:
    colours = [name for name in COLOUR_NAMES if name != ground]
    if ground:
        # Black on brown or white on gray can be seen, but barely: keep the object legible.
        tone = np.array(COLOURS[ground], float)
        colours = [c for c in colours if np.abs(np.array(COLOURS[c], float) - tone).sum() > 110]
    return Thing(rng.choice(kinds), rng.choice(colours), count)


def _plain_scene(rng: Random) -> Scene:
    ground = rng.choice((*COLOUR_NAMES, "white", "blue", "yellow"))
    kinds = KINDS
    roll = rng.random()
    if roll < 0.56:
        size = rng.choice(("", "", "", "", "", "small", "big"))
        place = rng.choice(PLACES) if not size and rng.random() < 0.28 else ""
        return Scene(ground=ground, things=(_thing(rng, kinds, ground),), place=place, size=size)
    if roll < 0.76:
        return Scene(ground=ground, things=(_thing(rng, kinds, ground, rng.choice((2, 3))),))
    first = _thing(rng, kinds, ground)
    second = _thing(rng, kinds, ground)
    while second.kind == first.kind or second.colour == first.colour:
        second = _thing(rng, kinds, ground)
    return Scene(ground=ground, things=(first, second), relation=rng.choice(RELATIONS))


def _land_scene(rng: Random) -> Scene:
    land = rng.choice(scenery.TERRAINS)
    time = rng.choice(("day", "day", "sunset", "sunset", "sunrise", "night", "night", "storm"))
    feature = rng.choice(_FEATURES_BY_TIME[time])
    if feature == "snowfall" and land in ("desert", "beach", "sea", "meadow"):
        feature = ""
    snowy = land in ("mountains", "lake", "forest") and rng.random() < 0.42
    scene = Scene(land=land, time=time, feature=feature, snowy=snowy)
    if land == "meadow" and rng.random() < 0.4:
        scene = replace(
            scene,
            blossom=rng.choice(("red", "yellow", "pink", "purple", "white", "blue", "orange")),
        )
    if rng.random() < 0.55:
        own = _OWN_KINDS.get(land, _LAND_KINDS)
        kinds = _SKY_KINDS if rng.random() < 0.32 else own
        thing = _thing(rng, kinds)
        if rng.random() < 0.06:
            thing = _thing(rng, tuple(SHAPES))
        count = (
            rng.choice((1, 1, 1, 1, 1, 2, 3))
            if thing.kind
            in ("balloon", "bird", "tree", "boat", "cactus", "house", "flower", "butterfly")
            else 1
        )
        place = rng.choice(("left", "right")) if count == 1 and rng.random() < 0.25 else ""
        scene = replace(scene, things=(replace(thing, count=count),), place=place)
        if scene.feature == "birds":
            scene = replace(scene, feature="")
    return scene


@dataclass(frozen=True)
class _Spot:
    """Where one drawing goes: its middle and half its side, in pixels."""

    x: float
    y: float
    radius: float


def _plain_spots(scene: Scene, width: int, height: int, rng: Random) -> list[tuple[Thing, _Spot]]:
    unit = min(width, height)

    def near(x: float, y: float, radius: float, wobble: float = 0.02) -> _Spot:
        size = radius * unit * rng.uniform(0.95, 1.05)
        return _Spot(
            width * x + rng.uniform(-wobble, wobble) * unit,
            height * y + rng.uniform(-wobble, wobble) * unit,
            size,
        )

    first = scene.things[0]
    if len(scene.things) == 2:
        second = scene.things[1]
        long_way = "left" if width >= height else "above"
        way = long_way if scene.relation == "and" else scene.relation
        ends = {
            "left": ((0.27, 0.5), (0.73, 0.5)),
            "right": ((0.73, 0.5), (0.27, 0.5)),
            "above": ((0.5, 0.27), (0.5, 0.73)),
            "below": ((0.5, 0.73), (0.5, 0.27)),
        }[way]
        return [(first, near(*ends[0], 0.22)), (second, near(*ends[1], 0.22))]
    if first.count > 1:
        two = [(0.28, 0.5), (0.72, 0.5)] if width >= height else [(0.5, 0.28), (0.5, 0.72)]
        # Three in a row would be small in a square.
        three = [(0.5, 0.27), (0.27, 0.73), (0.73, 0.73)]
        if max(width, height) / unit > 1.3:
            row = (0.19, 0.5, 0.81)
            three = [(x, 0.5) for x in row] if width >= height else [(0.5, y) for y in row]
        places = two if first.count == 2 else three
        return [(first, near(*place, 0.215)) for place in places]
    middle = {
        "": (0.5, 0.5),
        "left": (0.27, 0.5),
        "right": (0.73, 0.5),
        "top": (0.5, 0.27),
        "bottom": (0.5, 0.73),
    }
    radius = {"": 0.34, "small": 0.22, "big": 0.43}[scene.size]
    if scene.place:
        radius = 0.24
    return [(first, near(*middle[scene.place], radius))]


def _land_spots(
    scene: Scene, width: int, height: int, horizon: float, rng: Random
) -> list[tuple[Thing, _Spot]]:
    unit = min(width, height)
    thing = scene.things[0]
    aloft = thing.kind in _SKY_KINDS or thing.kind in SHAPES
    afloat = thing.kind in ("boat", "fish") and scene.land in ("sea", "lake", "beach")
    radius = unit * rng.uniform(0.25, 0.28) / (1.0, 1.2, 1.6)[thing.count - 1]
    spots = []
    for index in range(thing.count):
        if thing.count > 1:
            x = width * ((index + 0.5) / thing.count + rng.uniform(-0.02, 0.02))
        elif scene.place:
            x = width * (0.3 if scene.place == "left" else 0.7) + rng.uniform(-0.02, 0.02) * unit
        else:
            # Few places rather than all: a small model learns a shape where it has seen it.
            x = rng.choice((0.3, 0.5, 0.7)) * width + rng.uniform(-0.02, 0.02) * unit
        if aloft:
            y = max(radius * 1.05, horizon * rng.uniform(0.3, 0.52))
        elif afloat:
            low = 0.3 if scene.land == "beach" else rng.uniform(0.3, 0.6)
            y = horizon + (height - horizon) * low - radius * 0.75
            if thing.kind == "fish":
                y += radius * 0.8
        else:
            depth = rng.uniform(0.7, 0.8) if scene.land == "beach" else rng.uniform(0.5, 0.65)
            y = horizon + (height - horizon) * depth - radius * 0.9
        spots.append((thing, _Spot(x, y, radius)))
    return spots


def _paint_far_birds(picture: Image.Image, horizon: float, rng: Random) -> None:
    """A few birds far away, each two strokes."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    unit = min(picture.size)
    for _ in range(rng.randint(3, 6)):
        x, y, wing = (
            rng.uniform(0.1, 0.9) * picture.width,
            rng.uniform(0.12, 0.6) * horizon,
            unit * rng.uniform(0.025, 0.045),
        )
        stroke = max(2, round(unit * 0.012))
        draw.line(
            [(x - wing, y - 0.5 * wing), (x, y), (x + wing, y - 0.5 * wing)],
            fill=(38, 36, 52),
            width=stroke,
            joint="curve",
        )


def _paint_landscape(
    scene: Scene, width: int, height: int, rng: Random
) -> tuple[Image.Image, float]:
    """The landscape without its objects, and its horizon in pixels."""
    unit = min(width, height)
    least, most = scenery.HORIZONS[scene.land]
    horizon = height * rng.uniform(least, most)
    picture = scenery.paint_sky(width, height, horizon, scene.time, rng)
    light: tuple[float, Colour] | None = None
    if scene.time == "night":
        scenery.paint_stars(picture, horizon, rng, scene.feature in ("stars", "crescent"))
    if scene.feature == "sun" or scene.time in ("sunset", "sunrise"):
        x = width * rng.uniform(0.2, 0.8)
        low = scene.time in ("sunset", "sunrise")
        # Peaks and houses hide the lower sky, so there the sun stands higher.
        lift = {"mountains": 0.46, "city": 0.5, "lake": 0.3, "forest": 0.42}.get(scene.land, 0.13)
        y = (
            horizon - unit * (lift + rng.uniform(0.0, 0.1))
            if low
            else horizon * rng.uniform(0.2, 0.36)
        )
        scenery.paint_sun(picture, x, y, unit * rng.uniform(0.075, 0.105), scene.time)
        light = (x, (255, 220, 120) if low else (236, 246, 255))
    if scene.feature in ("moon", "crescent"):
        x = width * rng.uniform(0.2, 0.8)
        scenery.paint_moon(
            picture,
            x,
            horizon * rng.uniform(0.22, 0.36),
            unit * rng.uniform(0.085, 0.115),
            scene.feature == "crescent",
        )
        light = (x, (214, 222, 246))
    veiled = scene.land in ("mountains", "city", "forest")
    if scene.feature == "rainbow" and not veiled:
        scenery.paint_rainbow(picture, horizon, rng)
    if (
        scene.feature == "clouds"
        or scene.time == "storm"
        or (scene.time == "day" and rng.random() < 0.25)
    ):
        scenery.paint_clouds(
            picture, horizon, scene.time, rng, scene.feature == "clouds" or scene.time == "storm"
        )
    if scene.feature == "lightning":
        scenery.paint_lightning(picture, horizon, rng)
    blossom = COLOURS[scene.blossom] if scene.blossom else None
    scenery.paint_land(
        picture,
        scene.land,
        horizon,
        scene.time,
        rng,
        snowy=scene.snowy,
        blossom=blossom,
        light=light,
    )
    if scene.feature == "rainbow" and veiled:
        # What stands high would hide it: there the rain falls nearer than the land.
        scenery.paint_rainbow(picture, horizon, rng)
    if scene.feature == "birds":
        _paint_far_birds(picture, horizon, rng)
    return picture, horizon


def draw(
    scene: Scene, width: int, height: int, rng: Random
) -> tuple[Image.Image, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Paint a scene.

    Args:
        scene: what to show.
        width: of the picture in pixels, a multiple of 16.
        height: of the picture in pixels, a multiple of 16.
        rng: decides all that the scene leaves open.

    Returns:
        The RGB picture, and the two maps of `Sample`: kinds and colours by patch.
    """
    wide, high = width * SUPERSAMPLE, height * SUPERSAMPLE
    if scene.land:
        picture, horizon = _paint_landscape(scene, wide, high, rng)
        spots = _land_spots(scene, wide, high, horizon, rng) if scene.things else []
    else:
        picture = Image.new("RGB", (wide, high), COLOURS[scene.ground])
        spots = _plain_spots(scene, wide, high, rng)
    kinds = np.zeros((height // 16, width // 16), np.uint8)
    colours = np.zeros_like(kinds)
    for thing, spot in spots:
        tone = COLOURS[thing.colour]
        if scene.land and scene.time == "night":
            tone = blend(tone, scenery.LIGHT["night"][0], 0.12)
        layer = sprite(thing.kind, tone, spot.radius, rng)
        corner = (round(spot.x - layer.width / 2), round(spot.y - layer.height / 2))
        picture.paste(layer, corner, layer)
        cover = Image.new("L", (wide, high), 0)
        cover.paste(layer.getchannel("A"), corner)
        share = (
            np.asarray(cover.resize((width // 16, height // 16), Image.Resampling.BOX), float) / 255
        )
        kinds[share > 0.3] = 1 + KINDS.index(thing.kind)
        colours[share > 0.3] = 1 + COLOUR_NAMES.index(thing.colour)
    if scene.feature == "snowfall":
        scenery.paint_snowfall(picture, rng)
    return picture.resize((width, height), Image.Resampling.BOX), kinds, colours


_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box"),
    "ring": ("ring", "ring", "donut"),
    "cross": ("cross", "cross", "plus sign"),
    "diamond": ("diamond", "diamond", "rhombus"),
    "house": ("house", "house", "cottage", "home"),
    "car": ("car", "car", "taxi"),
    "boat": ("boat", "boat", "sailboat", "ship"),
    "balloon": ("balloon", "hot air balloon"),
    "cat": ("cat", "cat", "kitten"),
    "dog": ("dog", "dog", "puppy"),
    "rabbit": ("rabbit", "rabbit", "bunny"),
    "cup": ("cup", "mug"),
    "palm": ("palm tree", "palm"),
    "flower": ("flower", "flower", "blossom"),
    "rocket": ("rocket", "rocket", "spaceship"),
    "robot": ("robot",),
    "fish": ("fish",),
}
#: Words for things that captions without a colour have besides; added above, they would reword all.
_LOOSE_WORDS: dict[str, tuple[str, ...]] = {"boat": ("sailing boat",)}
_PLURALS = {
    "fish": "fish",
    "cactus": "cactuses",
    "box": "boxes",
    "cross": "crosses",
    "butterfly": "butterflies",
    "puppy": "puppies",
    "bunny": "bunnies",
    "spaceship": "spaceships",
    "taxi": "taxis",
    "rhombus": "rhombuses",
}
_LANDS: dict[str, tuple[str, ...]] = {
    "mountains": (
        "mountains",
        "mountains",
        "a mountain range",
        "the mountains",
        "high mountains",
        "mountain peaks",
    ),
    "hills": ("rolling hills", "green hills", "hills", "the hills", "grassy hills"),
    "sea": ("the sea", "the ocean", "the sea", "a calm sea", "the waves"),
    "lake": ("a lake", "a calm lake", "the lake", "a mountain lake", "a lake in the mountains"),
    "beach": ("a beach", "a sandy beach", "the beach", "a tropical beach"),
    "desert": ("a desert", "the desert", "sand dunes", "desert dunes"),
    "forest": ("a forest", "a pine forest", "the woods", "the forest", "tall pine trees"),
    "city": ("a city", "a city skyline", "the city", "tall buildings", "a skyline"),
    "meadow": ("a meadow", "a flower meadow", "a field of flowers", "a grassy meadow", "a field"),
    "snow": ("a snowy field", "snow", "a winter landscape", "snowy hills", "the snow"),
}
_SNOWY: dict[str, tuple[str, ...]] = {
    "mountains": (
        "snowy mountains",
        "snow capped mountains",
        "mountains with snow",
        "mountains covered in snow",
        "a snowy mountain",
        "snowy peaks",
    ),
    "lake": (
        "a lake with snowy mountains",
        "a lake below snowy mountains",
        "a mountain lake with snowy peaks",
    ),
    "forest": (
        "a snowy forest",
        "a winter forest",
        "a forest in winter",
        "snowy pine trees",
        "a forest covered in snow",
    ),
}
_TIMES: dict[str, tuple[str, ...]] = {
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening", "during sunset"),
    "sunrise": ("at sunrise", "at sunrise", "at dawn", "in the early morning", "in the morning"),
    "night": ("at night", "at night", "at midnight", "by night", "in the dark"),
    "storm": (
        "in a storm",
        "during a storm",
        "in a thunderstorm",
        "under a stormy sky",
        "in stormy weather",
    ),
    "day": ("", "", "during the day", "on a sunny day", "at noon", "under a blue sky"),
}
_FEATURE_WORDS: dict[str, tuple[str, ...]] = {
    "sun": ("with a bright sun", "with the sun", "under the sun", "and the sun in the sky"),
    "moon": (
        "with a full moon",
        "under a full moon",
        "with the moon",
        "under the moon",
        "in the moonlight",
    ),
    "crescent": ("with a crescent moon", "under a crescent moon", "with a crescent moon and stars"),
    "stars": ("with stars", "under the stars", "under a starry sky", "with many stars"),
    "clouds": ("with clouds", "under a cloudy sky", "with white clouds", "and clouds"),
    "rainbow": ("with a rainbow", "and a rainbow", "under a rainbow", "with a colorful rainbow"),
    "lightning": ("with lightning", "with a lightning bolt", "and lightning"),
    "snowfall": ("with falling snow", "while it is snowing", "in snowfall", "with snow falling"),
    "birds": ("with birds in the sky", "with birds", "and birds flying"),
}
_PREFIXES = (
    "",
    "",
    "",
    "",
    "",
    "",
    "a picture of ",
    "a painting of ",
    "an illustration of ",
    "a drawing of ",
    "draw ",
    "a photo of ",
    "an image of ",
    "please draw ",
    "show me ",
)
_SUFFIXES = (
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    ", flat vector art",
    ", highly detailed",
    ", digital art",
    ", minimalist",
    ", 4k",
    ", simple",
    ", beautiful",
    ", colorful illustration",
    " please",
)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _name(kind: str, rng: Random, *, loose: bool) -> str:
    words = _WORDS.get(kind, (kind,))
    return rng.choice((*words, *_LOOSE_WORDS.get(kind, ())) if loose else words)


def _plural(word: str) -> str:
    return _PLURALS.get(word, word + "s")


def _colour_word(colour: str, rng: Random) -> str:
    if colour == "gray" and rng.random() < 0.3:
        return "grey"
    return colour


def _phrase(thing: Thing, rng: Random, size: str = "", *, coloured: bool = True) -> str:
    """A thing with its article or number: "two red cars"."""
    word = _name(thing.kind, rng, loose=not coloured)
    colour = _colour_word(thing.colour, rng) if coloured else ""
    if thing.count > 1:
        number = ("two", "three")[thing.count - 2]
        return " ".join(part for part in (number, colour, _plural(word)) if part)
    if size:
        size = rng.choice(
            {"small": ("small", "tiny", "little"), "big": ("big", "large", "huge")}[size]
        )
    return _article(" ".join(part for part in (size, colour, word) if part))


def caption(scene: Scene, rng: Random, *, brief: bool = False) -> str:
    """Word a scene in one of its many ways.

    A brief caption leaves out the objects' colour, or where they are, or both, as people do.
    Numbers, sides and hours always stay: a caption without them means one thing, and day.
    """
    coloured = placed = True
    if brief and scene.things:
        coloured, placed = rng.choice(((False, True), (False, True), (True, False), (False, False)))
    word = _land_caption if scene.land else _plain_caption
    body = word(scene, rng, coloured=coloured, placed=placed)
    text = rng.choice(_PREFIXES) + body + rng.choice(_SUFFIXES)
    if rng.random() < 0.25:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.15:
        text += "."
    return " ".join(text.split())


def _plain_caption(scene: Scene, rng: Random, *, coloured: bool, placed: bool) -> str:
    ground = _colour_word(scene.ground, rng)
    if len(scene.things) == 2:
        first, second = (_phrase(thing, rng, coloured=coloured) for thing in scene.things)
        joint = {
            "left": ("to the left of", "left of", "on the left of"),
            "right": ("to the right of", "right of", "on the right of"),
            "above": ("above", "over", "on top of"),
            "below": ("below", "under"),
            "and": ("and", "next to", "and", "beside"),
        }[scene.relation]
        what = f"{first} {rng.choice(joint)} {second}"
    else:
        what = _phrase(scene.things[0], rng, scene.size, coloured=coloured)
    if scene.place:
        side = {
            "left": ("on the left", "on the left side", "at the left"),
            "right": ("on the right", "on the right side", "at the right"),
            "top": ("at the top", "in the upper half"),
            "bottom": ("at the bottom", "in the lower half"),
        }[scene.place]
        where = rng.choice(side)
        if not placed:
            return f"{what} {where}"
        options = (
            f"{what} {where} of a {ground} background",
            f"{what} {where}, {ground} background",
            f"{what} {where} on a {ground} background",
        )
        return rng.choice(options)
    if not placed:
        return what
    article = _article(ground)
    return rng.choice(
        (
            f"{what} on {article} background",
            f"{what} on {article} background",
            f"{what}, {ground} background",
            f"{what} against {article} backdrop",
            f"{what} in front of {article} background",
            f"{what} on {ground}",
        )
    )


def _land_caption(scene: Scene, rng: Random, *, coloured: bool, placed: bool) -> str:
    words = _SNOWY[scene.land] if scene.snowy else _LANDS[scene.land]
    land = rng.choice(words)
    if scene.blossom:
        blossom = _colour_word(scene.blossom, rng)
        land = rng.choice(
            (
                f"a meadow with {blossom} flowers",
                f"a field of {blossom} flowers",
                f"a meadow of {blossom} flowers",
            )
        )
    time = rng.choice(_TIMES[scene.time])
    feature = rng.choice(_FEATURE_WORDS[scene.feature]) if scene.feature else ""
    if scene.things:
        thing = scene.things[0]
        # Its size in a landscape is always the same; a word for it changes nothing.
        brief = not (coloured and placed)
        size = rng.choice(("", "", "small")) if brief else ""
        what = _phrase(thing, rng, size, coloured=coloured)
        aloft = thing.kind in _SKY_KINDS or thing.kind in SHAPES
        if scene.place:
            what += rng.choice((f" on the {scene.place}", f" on the {scene.place} side"))
        if aloft:
            joint = rng.choice(("over", "above", "flying over", "in the sky over"))
        elif scene.land in ("sea", "lake"):
            joint = rng.choice(("on", "on", "in" if scene.land == "sea" else "on"))
        elif scene.land in ("mountains", "hills"):
            joint = rng.choice(("in", "in front of", "near"))
        elif scene.land in ("beach", "snow"):
            joint = rng.choice(("on", "in")) if scene.land == "snow" else rng.choice(("on", "at"))
        else:
            joint = rng.choice(("in", "in", "near"))
        where = f"{joint} {land}" if placed else ""
        parts = [what, where, time, feature]
        if time and rng.random() < 0.15:
            parts = [what, where, feature, time]
        return " ".join(part for part in parts if part)
    bare = rng.random()
    if scene.time in ("sunset", "sunrise") and bare < 0.4:
        adjective = rng.choice(
            ("", "", "beautiful ", "stunning ", "colorful ", "dramatic ", "peaceful ")
        )
        joint = "at" if scene.land == "beach" else "over"
        joint = "in" if land in ("snow", "the snow") else joint
        return f"{_article(adjective + scene.time)} {joint} {land} {feature}"
    if scene.time == "night" and bare < 0.25:
        return (
            f"{rng.choice(('a starry night', 'a night sky', 'a dark night'))} over {land} {feature}"
        )
    if scene.time == "storm" and bare < 0.3:
        return f"{rng.choice(('a storm', 'a dramatic storm', 'storm clouds', 'a thunderstorm'))} over {land} {feature}"
    order = [land, time, feature] if rng.random() < 0.8 else [land, feature, time]
    return " ".join(part for part in order if part)


def make(
    seed: int,
    width: int = 128,
    height: int = 128,
    *,
    held_out: bool = False,
    scene: Scene | None = None,
) -> Sample:
    """The sample of a seed: always the same for the same arguments."""
    rng = Random(f"{seed}/{'held out' if held_out else 'train'}")
    if scene is None:
        scene = sample_scene(rng, held_out)
    words = caption(scene, rng)
    picture, kinds, colours = draw(scene, width, height, rng)
    return Sample(np.asarray(picture, np.uint8), words, scene, kinds, colours)
