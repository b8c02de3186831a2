"""What only a trial can tell: does the model work here, and which attention backend does?

``draw(side, forwards)`` makes a small square picture for nobody; it raises what the engine
raises. Whatever else a trial raises means: not this way.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from watcher.engine import BadPicture
from watcher.engines.shortage import is_poison, sparing_memory
from watcher.errors import SteadyError

log = logging.getLogger(__name__)

Draw = Callable[[int, int], Image.Image]


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


def choose_attention(transformer: Any, names: Sequence[str], draw: Draw) -> str:
    """The first of ``names`` that draws a finite picture.

    It holds for the whole process. ``native``, the last of them, is always set: the environment may
    name another.
    """
    *wanted, plain = names
    for name in wanted:
        try:
            transformer.set_attention_backend(name)
            draw(64, 1)
        except Exception as error:  # kernels raise anything; the plain way is still there
            if is_poison(error):
                raise
            words = " ".join(str(error).split())[:300]
            log.warning("attention %s: cannot be used (%s)", name, words)
        else:
            log.info("attention: %s", name)
            return name
    transformer.set_attention_backend(plain)
    return plain
