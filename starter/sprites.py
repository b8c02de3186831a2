"""Bold little drawings of everything that can stand in a scene: flat shapes, things, animals.

Every drawing lives in a square from -1 to 1 (x to the right, y down), has one main colour and a
few details in a lighter or darker tone of it, so that its silhouette alone tells what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (222, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 160, 75),
    "cyan": (60, 205, 215),
    "blue": (45, 95, 215),
    "purple": (135, 65, 180),
    "pink": (245, 145, 190),
    "brown": (130, 80, 45),
    "black": (28, 28, 32),
    "white": (246, 246, 244),
    "gray": (140, 142, 148),
}  #: The twelve colours captions name, as RGB of 0 to 255.


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """Mix two colours; `share` (0 to 1) is how much of the second one is in the result."""
    mixed = [round(a + (b - a) * share) for a, b in zip(first, second, strict=True)]
    return (mixed[0], mixed[1], mixed[2])


def darker(colour: Colour, share: float = 0.3) -> Colour:
    """The same colour in shade."""
    return blend(colour, (12, 12, 24), share)


def lighter(colour: Colour, share: float = 0.45) -> Colour:
    """The same colour in light."""
    return blend(colour, (255, 255, 255), share)


class Pen:
    """Draws in the square from -1 to 1 on a transparent layer of `2 * radius` pixels a side."""

    def __init__(self, radius: float, colour: Colour, rng: Random) -> None:
        side = max(4, math.ceil(2 * radius))
        self.layer = Image.new("RGBA", (side, side), (*colour, 0))
        self._draw = ImageDraw.Draw(self.layer)
        self._half = side / 2
        self.main = colour
        self.rng = rng
        # Details on dark colours must be lighter and on light ones darker, or they vanish.
        bright = sum(colour) > 330
        self.shade = darker(colour, 0.32) if bright else lighter(colour, 0.30)
        self.light = lighter(colour, 0.5) if bright else lighter(colour, 0.42)

    def _map(self, points: Sequence[Point]) -> list[Point]:
        return [((x + 1) * self._half, (y + 1) * self._half) for x, y in points]

    def poly(self, points: Sequence[Point], colour: Colour | None = None) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._map(points), fill=(*(colour or self.main), 255))

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour | None = None) -> None:
        """Fill a rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour | None = None) -> None:
        """Fill an ellipse around (x, y)."""
        corners = self._map([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.ellipse([*corners[0], *corners[1]], fill=(*(colour or self.main), 255))

    def line(self, points: Sequence[Point], width: float, colour: Colour | None = None) -> None:
        """Draw a line of `width` (in units of the square) with round ends."""
        fill = (*(colour or self.main), 255)
        stroke = max(1, round(width * self._half))
        self._draw.line(self._map(points), fill=fill, width=stroke, joint="curve")
        for x, y in points:
            self.oval(x, y, width / 2, width / 2, colour)

    def hole(self, x: float, y: float, rx: float, ry: float) -> None:
        """Cut an ellipse out of what was drawn."""
        corners = self._map([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.ellipse([*corners[0], *corners[1]], fill=(*self.main, 0))


def _circle(pen: Pen) -> None:
    pen.oval(0, 0, 0.92, 0.92)


def _square(pen: Pen) -> None:
    pen.box(-0.84, -0.84, 0.84, 0.84)


def _triangle(pen: Pen) -> None:
    pen.poly([(0, -0.9), (0.95, 0.78), (-0.95, 0.78)])


def _star(pen: Pen) -> None:
    points = []
    for corner in range(10):
        reach = 1.0 if corner % 2 == 0 else 0.42
        angle = math.pi * corner / 5
        points.append((reach * math.sin(angle), 0.06 - reach * math.cos(angle)))
    pen.poly(points)


def _heart(pen: Pen) -> None:
    pen.oval(-0.45, -0.33, 0.48, 0.48)
    pen.oval(0.45, -0.33, 0.48, 0.48)
    pen.poly([(-0.87, -0.08), (-0.3, -0.45), (0.3, -0.45), (0.87, -0.08), (0, 0.92)])


def _diamond(pen: Pen) -> None:
    pen.poly([(0, -0.98), (0.7, 0), (0, 0.98), (-0.7, 0)])


def _ring(pen: Pen) -> None:
    pen.oval(0, 0, 0.94, 0.94)
    pen.hole(0, 0, 0.52, 0.52)


def _cross(pen: Pen) -> None:
    pen.box(-0.3, -0.92, 0.3, 0.92)
    pen.box(-0.92, -0.3, 0.92, 0.3)


def _house(pen: Pen) -> None:
    pen.box(0.38, -0.85, 0.6, -0.2, pen.shade)
    pen.box(-0.7, -0.15, 0.7, 0.9)
    pen.poly([(0, -0.95), (0.98, -0.1), (-0.98, -0.1)], pen.shade)
    pen.box(-0.16, 0.3, 0.2, 0.9, (96, 62, 44))
    pane = (255, 236, 150)
    pen.box(-0.56, 0.08, -0.28, 0.4, pane)
    pen.box(0.32, 0.08, 0.58, 0.4, pane)


def _tree(pen: Pen) -> None:
    pen.box(-0.13, 0.2, 0.13, 0.96, (104, 70, 44))
    pen.oval(-0.4, 0.0, 0.45, 0.42)
    pen.oval(0.4, 0.0, 0.45, 0.42)
    pen.oval(0, -0.42, 0.56, 0.52)
    pen.oval(0, 0.0, 0.5, 0.42)
    pen.oval(-0.18, -0.5, 0.22, 0.2, pen.light)


def _car(pen: Pen) -> None:
    pen.poly([(-0.55, -0.05), (-0.36, -0.5), (0.3, -0.5), (0.58, -0.05)])
    pen.poly([(-0.98, 0.4), (-0.95, 0.02), (-0.8, -0.08), (0.75, -0.08), (0.98, 0.08), (0.98, 0.4)])
    glass = (205, 232, 245)
    pen.poly([(-0.4, -0.06), (-0.27, -0.38), (-0.04, -0.38), (-0.04, -0.06)], glass)
    pen.poly([(0.06, -0.06), (0.06, -0.38), (0.24, -0.38), (0.42, -0.06)], glass)
    for x in (-0.52, 0.52):
        pen.oval(x, 0.4, 0.27, 0.27, (36, 36, 42))
        pen.oval(x, 0.4, 0.12, 0.12, (190, 192, 196))


def _boat(pen: Pen) -> None:
    pen.box(-0.05, -0.95, 0.03, 0.45, (100, 70, 46))
    pen.poly([(0.09, -0.92), (0.09, 0.3), (0.85, 0.3)])
    pen.poly([(-0.11, -0.68), (-0.11, 0.3), (-0.7, 0.3)], pen.light)
    pen.poly([(-0.95, 0.42), (0.95, 0.42), (0.62, 0.88), (-0.66, 0.88)])


def _flower(pen: Pen) -> None:
    stem = (62, 138, 66)
    pen.box(-0.06, 0.0, 0.06, 0.98, stem)
    pen.poly([(0.03, 0.78), (0.28, 0.42), (0.58, 0.4), (0.36, 0.72)], stem)
    pen.poly([(-0.03, 0.86), (-0.28, 0.52), (-0.58, 0.5), (-0.36, 0.8)], stem)
    for petal in range(6):
        angle = math.pi * petal / 3
        pen.oval(0.38 * math.sin(angle), -0.34 - 0.38 * math.cos(angle), 0.27, 0.27)
    heart = (250, 205, 60) if pen.main[2] > 90 or pen.main[1] < 150 else (150, 88, 40)
    pen.oval(0, -0.34, 0.21, 0.21, heart)


def _fish(pen: Pen) -> None:
    pen.poly([(0.35, 0), (0.98, -0.52), (0.84, 0), (0.98, 0.52)])
    pen.poly([(-0.2, -0.35), (0.22, -0.72), (0.36, -0.28)], pen.shade)
    pen.poly([(-0.1, 0.35), (0.2, 0.68), (0.3, 0.25)], pen.shade)
    pen.oval(-0.2, 0, 0.75, 0.46)
    pen.oval(-0.58, -0.1, 0.13, 0.13, (250, 250, 250))
    pen.oval(-0.6, -0.1, 0.065, 0.065, (24, 24, 30))


def _balloon(pen: Pen) -> None:
    pen.oval(0, -0.28, 0.7, 0.68)
    pen.poly([(-0.56, 0.08), (0.56, 0.08), (0.2, 0.56), (-0.2, 0.56)])
    pen.oval(0, -0.28, 0.25, 0.68, pen.light)
    pen.poly([(-0.22, 0.06), (0.22, 0.06), (0.09, 0.56), (-0.09, 0.56)], pen.light)
    pen.line([(-0.17, 0.56), (-0.13, 0.72)], 0.04, (96, 70, 50))
    pen.line([(0.17, 0.56), (0.13, 0.72)], 0.04, (96, 70, 50))
    pen.box(-0.2, 0.7, 0.2, 0.97, (134, 92, 54))


def _rocket(pen: Pen) -> None:
    pen.poly([(-0.2, 0.55), (0.2, 0.55), (0, 0.99)], (252, 176, 44))
    pen.poly([(-0.26, 0.02), (-0.64, 0.62), (-0.22, 0.52)], pen.shade)
    pen.poly([(0.26, 0.02), (0.64, 0.62), (0.22, 0.52)], pen.shade)
    outline = [(0.0, -0.98), (0.2, -0.7), (0.31, -0.3), (0.31, 0.2), (0.2, 0.58)]
    pen.poly([*outline, *[(-x, y) for x, y in reversed(outline)]])
    pen.oval(0, -0.25, 0.17, 0.17, (198, 230, 246))


def _mushroom(pen: Pen) -> None:
    pen.poly([(-0.26, 0.0), (0.26, 0.0), (0.34, 0.92), (-0.34, 0.92)], (240, 226, 200))
    cap = [(math.cos(math.pi * k / 16), -math.sin(math.pi * k / 16)) for k in range(17)]
    pen.poly([(0.95 * x, 0.12 + 0.98 * y) for x, y in cap])
    for x, y, r in ((-0.46, -0.2, 0.15), (0.06, -0.48, 0.17), (0.5, -0.14, 0.13)):
        pen.oval(x, y, r, r, pen.light)


def _cat(pen: Pen) -> None:
    pen.line([(0.42, 0.8), (0.78, 0.66), (0.84, 0.3), (0.72, 0.06)], 0.17)
    pen.oval(0, 0.55, 0.5, 0.42)
    pen.oval(0, -0.28, 0.52, 0.46)
    pen.poly([(-0.5, -0.24), (-0.52, -0.95), (-0.08, -0.62)])
    pen.poly([(0.5, -0.24), (0.52, -0.95), (0.08, -0.62)])
    for x in (-0.22, 0.22):
        pen.oval(x, -0.3, 0.11, 0.12, (236, 226, 110))
        pen.oval(x, -0.3, 0.045, 0.1, (20, 20, 24))
    pen.poly([(-0.08, -0.12), (0.08, -0.12), (0, -0.02)], (232, 130, 140))


def _dog(pen: Pen) -> None:
    pen.line([(0.6, 0.1), (0.88, -0.3)], 0.15)
    pen.oval(0.1, 0.16, 0.6, 0.3)
    for x in (-0.38, -0.16, 0.36, 0.56):
        pen.box(x - 0.09, 0.2, x + 0.09, 0.92, pen.main if x in (-0.38, 0.56) else pen.shade)
    pen.oval(-0.5, -0.36, 0.36, 0.34)
    pen.oval(-0.8, -0.24, 0.19, 0.16)
    pen.poly([(-0.42, -0.66), (-0.14, -0.62), (-0.1, -0.08), (-0.3, -0.12)], pen.shade)
    pen.oval(-0.94, -0.28, 0.07, 0.06, (26, 24, 26))
    pen.oval(-0.6, -0.44, 0.06, 0.07, (250, 250, 250))
    pen.oval(-0.61, -0.43, 0.035, 0.045, (20, 20, 24))


def _rabbit(pen: Pen) -> None:
    pen.oval(-0.24, -0.66, 0.15, 0.33)
    pen.oval(0.24, -0.66, 0.15, 0.33)
    pen.oval(-0.24, -0.64, 0.06, 0.22, (246, 176, 190))
    pen.oval(0.24, -0.64, 0.06, 0.22, (246, 176, 190))
    pen.oval(0, 0.5, 0.56, 0.47)
    pen.oval(0, -0.14, 0.46, 0.37)
    pen.oval(0, 0.58, 0.28, 0.3, pen.light)
    for x in (-0.17, 0.17):
        pen.oval(x, -0.2, 0.07, 0.09, (24, 22, 28))
    pen.oval(0, -0.04, 0.07, 0.05, (236, 120, 140))


def _robot(pen: Pen) -> None:
    pen.box(-0.03, -0.98, 0.03, -0.7, (120, 122, 128))
    pen.oval(0, -0.92, 0.09, 0.08, (250, 90, 80))
    pen.box(-0.42, -0.78, 0.42, -0.18)
    pen.box(-0.54, -0.1, 0.54, 0.55)
    pen.box(-0.86, -0.08, -0.62, 0.42, pen.shade)
    pen.box(0.62, -0.08, 0.86, 0.42, pen.shade)
    pen.box(-0.42, 0.58, -0.12, 0.96, pen.shade)
    pen.box(0.12, 0.58, 0.42, 0.96, pen.shade)
    for x in (-0.2, 0.2):
        pen.oval(x, -0.53, 0.13, 0.13, (235, 250, 255))
        pen.oval(x, -0.53, 0.055, 0.055, (24, 26, 34))
    pen.box(-0.22, -0.33, 0.22, -0.26, pen.light)
    pen.box(-0.26, 0.06, 0.26, 0.36, pen.light)


def _umbrella(pen: Pen) -> None:
    wood = (92, 70, 56)
    pen.box(-0.045, -0.3, 0.045, 0.74, wood)
    pen.line([(0.0, 0.74), (0.1, 0.88), (0.24, 0.84), (0.28, 0.7)], 0.09, wood)
    dome = [(math.cos(math.pi * k / 16), -math.sin(math.pi * k / 16)) for k in range(17)]
    pen.poly([(0.96 * x, 0.02 + 0.9 * y) for x, y in dome])
    pen.poly([(0.34 * x, 0.02 + 0.9 * y) for x, y in dome], pen.light)
    for x in (-0.64, 0.0, 0.64):
        pen.hole(x, 0.06, 0.31, 0.13)
    pen.box(-0.045, -0.1, 0.045, 0.3, wood)


def _bird(pen: Pen) -> None:
    pen.poly([(0.4, 0.05), (0.98, -0.12), (0.98, 0.3), (0.45, 0.32)], pen.shade)
    pen.oval(0.02, 0.16, 0.58, 0.36)
    pen.oval(-0.46, -0.16, 0.32, 0.3)
    pen.poly([(-0.72, -0.22), (-0.99, -0.06), (-0.7, 0.0)], (248, 168, 44))
    pen.poly([(-0.22, 0.1), (0.42, 0.1), (0.56, -0.68), (0.1, -0.36)], pen.shade)
    pen.oval(-0.54, -0.22, 0.075, 0.075, (250, 250, 250))
    pen.oval(-0.55, -0.22, 0.04, 0.04, (22, 22, 28))


def _apple(pen: Pen) -> None:
    pen.oval(-0.3, 0.2, 0.55, 0.66)
    pen.oval(0.3, 0.2, 0.55, 0.66)
    pen.line([(0, -0.3), (0.06, -0.72)], 0.1, (96, 66, 40))
    pen.poly([(0.08, -0.56), (0.3, -0.9), (0.7, -0.88), (0.46, -0.56)], (88, 168, 66))
    pen.oval(-0.45, -0.02, 0.13, 0.2, pen.light)


def _cup(pen: Pen) -> None:
    pen.oval(0.55, 0.12, 0.4, 0.36)
    pen.hole(0.55, 0.12, 0.22, 0.19)
    pen.poly([(-0.8, -0.5), (0.5, -0.5), (0.36, 0.8), (-0.66, 0.8)])
    pen.oval(-0.15, -0.5, 0.65, 0.17, pen.shade)
    pen.oval(-0.15, -0.48, 0.52, 0.1, (92, 58, 40))


def _butterfly(pen: Pen) -> None:
    for side in (-1, 1):
        pen.poly(
            [
                (0, 0),
                (side * 0.35, -0.8),
                (side * 0.8, -0.9),
                (side * 0.98, -0.55),
                (side * 0.7, 0.02),
            ]
        )
        pen.poly(
            [
                (0, 0),
                (side * 0.72, 0.08),
                (side * 0.78, 0.55),
                (side * 0.45, 0.86),
                (side * 0.1, 0.4),
            ]
        )
        pen.oval(side * 0.62, -0.5, 0.19, 0.19, pen.light)
        pen.oval(side * 0.48, 0.44, 0.13, 0.13, pen.light)
        pen.line([(0, -0.4), (side * 0.2, -0.8)], 0.05, (44, 36, 40))
    pen.oval(0, 0.04, 0.09, 0.52, (44, 36, 40))


def _cactus(pen: Pen) -> None:
    pen.line([(0, 0.9), (0, -0.72)], 0.42)
    pen.line([(0, 0.25), (-0.62, 0.25), (-0.62, -0.22)], 0.28)
    pen.line([(0, 0.05), (0.62, 0.05), (0.62, -0.45)], 0.28)
    pen.line([(-0.05, 0.8), (-0.05, -0.66)], 0.05, pen.light)


def _palm(pen: Pen) -> None:
    pen.line([(0.14, 0.92), (0.02, 0.3), (0.06, -0.3)], 0.17, (140, 96, 58))
    for dx, dy in (
        (-0.92, -0.08),
        (0.96, -0.02),
        (-0.7, -0.72),
        (0.78, -0.7),
        (-0.6, 0.36),
        (0.66, 0.4),
    ):
        side = (0.24 * dy, -0.24 * dx)
        mid = (0.06 + 0.5 * dx, -0.42 + 0.5 * dy - 0.14)
        tip = (0.06 + 0.9 * dx, -0.36 + 0.9 * dy * 0.8)
        pen.poly(
            [
                (0.06, -0.36),
                (mid[0] + side[0], mid[1] + side[1]),
                tip,
                (mid[0] - side[0], mid[1] - side[1]),
            ]
        )
    pen.oval(0.06, -0.36, 0.13, 0.12, pen.shade)


def _lighthouse(pen: Pen) -> None:
    pen.poly([(-0.26, -0.42), (0.26, -0.42), (0.42, 0.92), (-0.42, 0.92)])
    band = (250, 250, 246) if sum(pen.main) < 640 else (214, 60, 54)
    for top, low in ((-0.12, 0.14), (0.42, 0.66)):
        grow = 0.16 / 1.34
        upper, lower = 0.26 + (top + 0.42) * grow, 0.26 + (low + 0.42) * grow
        pen.poly([(-upper, top), (upper, top), (lower, low), (-lower, low)], band)
    pen.box(-0.36, -0.5, 0.36, -0.4, (60, 60, 68))
    pen.box(-0.18, -0.74, 0.18, -0.5, (255, 232, 120))
    pen.poly([(-0.28, -0.72), (0.28, -0.72), (0, -0.98)])


SHAPES: dict[str, Callable[[Pen], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "diamond": _diamond,
    "ring": _ring,
    "cross": _cross,
}  #: Flat shapes: one colour, no details.

THINGS: dict[str, Callable[[Pen], None]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "boat": _boat,
    "flower": _flower,
    "fish": _fish,
    "balloon": _balloon,
    "rocket": _rocket,
    "mushroom": _mushroom,
    "cat": _cat,
    "robot": _robot,
    "umbrella": _umbrella,
    "bird": _bird,
    "apple": _apple,
    "cup": _cup,
    "butterfly": _butterfly,
    "dog": _dog,
    "rabbit": _rabbit,
    "cactus": _cactus,
    "palm": _palm,
    "lighthouse": _lighthouse,
}  #: Things and animals, in bold silhouettes.

DRAWINGS: dict[str, Callable[[Pen], None]] = {**SHAPES, **THINGS}
KINDS: tuple[str, ...] = tuple(DRAWINGS)  #: Every kind of object, in the order of its label.

_TILTED = {
    "star": 4,
    "heart": 4,
    "balloon": 3,
    "rocket": 8,
    "butterfly": 7,
    "fish": 4,
    "apple": 3,
}
_MIRRORED = {"car", "boat", "fish", "bird"}


def sprite(kind: str, colour: Colour, radius: float, rng: Random) -> Image.Image:
    """Draw one object.

    Args:
        kind: one of `KINDS`.
        colour: its main colour, RGB of 0 to 255.
        radius: half its side, in pixels.
        rng: decides what may differ between two drawings of one kind: mirroring, a small tilt.

    Returns:
        An RGBA image of about `2 * radius` pixels a side, transparent around the object.
    """
    pen = Pen(radius, colour, rng)
    DRAWINGS[kind](pen)
    layer = pen.layer
    if kind in _MIRRORED and rng.random() < 0.5:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind in _TILTED:
        tilt = rng.uniform(-1, 1) * _TILTED[kind]
        layer = layer.rotate(tilt, resample=Image.Resampling.BILINEAR)
    return layer
