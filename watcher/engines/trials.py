"""Ways to compute that only a trial can judge: attention backends, compiled blocks.

``draw(side, forwards)`` makes a small square picture for nobody; it raises what the engine
raises. Whatever else a trial raises means: not this way. What draws other pixels than the plain
way says so in the log.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from watcher.engine import BadPicture
from watcher.engines.shortage import is_poison, sparing_memory
from watcher.errors import SteadyError

log = logging.getLogger(__name__)

Draw = Callable[[int, int], Image.Image]

_GAIN = 0.97  #: of the plain way's time: what is closer is noise


def must_work(draw: Callable[[], Image.Image], dtype: str) -> None:
    """Draw one small picture twice: a model that cannot would fail every job.

    Raises SteadyError ``model_unfit`` for numbers that are none, and for a difference: there are
    cards whose second picture is the bad one.
    """
    try:
        first, second = (sparing_memory(draw).tobytes() for _ in range(2))
    except BadPicture as error:
        words = f"The model cannot compute here in {dtype}: {error}"
        raise SteadyError("model_unfit", words) from error
    if first != second:
        raise SteadyError("model_unfit", "One small picture, drawn twice, came out different.")


def choose_attention(
    transformer: Any,
    names: Sequence[str],
    draw: Draw,
    *,
    race: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """The first of ``names`` that draws a finite picture, or with ``race`` the fastest of them.

    It holds for the whole process. ``native`` is always set: the environment may name another.
    """
    took: dict[str, float] = {}
    for name in names:
        fatal = (lambda _: True) if name == "native" else is_poison
        with _refused(f"attention {name}", fatal, logging.INFO if race else logging.WARNING):
            transformer.set_attention_backend(name)
            if name == names[0] == "native":
                return name
            draw(64, 1)
            if not race:
                log.info("attention: %s", name)
                return name
            took[name] = _race(draw, clock)
    best = min(took, key=lambda name: took[name])
    if took[best] > took["native"] * _GAIN:
        best = "native"
    transformer.set_attention_backend("native")
    plain = draw(256, 2)
    transformer.set_attention_backend(best)
    log.info(
        "attention: %s (%s); %s as native", best,
        ", ".join(f"{name} {seconds:.3f} s" for name, seconds in took.items()),
        _likeness(draw(256, 2), plain),
    )  # fmt: skip
    return best


def compile_if_faster(transformer: Any, draw: Draw) -> bool:
    """Compile the repeated blocks; undone when that is not faster. Is it compiled now?"""
    cache = Path.home() / ".cache" / "steadydiffusion" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    plain, image = _race(draw), draw(256, 2)
    with _refused("compile"):
        transformer.compile_repeated_blocks(dynamic=True)
        _race(draw)  # compiles
        compiled = _race(draw)
        likeness = _likeness(draw(256, 2), image)
        log.info(
            "compile: %.3f s a picture, %.3f s without; %s as without", compiled, plain, likeness
        )
        if compiled < plain * _GAIN:
            return True
    for module in transformer.modules():
        module._compiled_call_impl = None
    return False


@contextlib.contextmanager
def _refused(
    what: str, fatal: Callable[[Exception], bool] = is_poison, level: int = logging.WARNING
) -> Iterator[None]:
    """Log what a way to compute raises, and go on without it; raise what is ``fatal``."""
    try:
        yield
    except Exception as error:  # compilers and kernels raise anything; the plain way is still there
        if fatal(error):
            raise
        log.log(level, "%s: cannot be used (%s)", what, " ".join(str(error).split())[:300])


def _likeness(one: Image.Image, other: Image.Image) -> str:
    return "the same pixels" if one.tobytes() == other.tobytes() else "not the same pixels"


def _race(draw: Draw, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the quicker of two small pictures."""
    took = []
    for _ in range(2):
        began = clock()
        draw(512, 4)
        took.append(clock() - began)
    return min(took)
