"""Ways to compute that only a trial can judge: attention backends, and compiled blocks.

``draw(side, forwards)`` makes a small square picture for nobody; it raises what the engine raises.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from watcher.engine import BadPicture
from watcher.zimage.shortage import is_out_of_memory, is_poison

log = logging.getLogger("watcher.zimage")

Draw = Callable[[int, int], None]


def choose_attention(transformer: Any, names: Sequence[str], draw: Draw) -> str:
    """The first of ``names`` that draws a finite picture; it holds for the whole process."""
    for name in names:
        if name == "native" and name == names[0]:
            return name  # diffusers' own default: nothing to set
        try:
            transformer.set_attention_backend(name)
            draw(64, 1)
        except (RuntimeError, ValueError, ImportError, BadPicture) as error:
            if name == "native" or is_poison(error):
                raise
            log.info("attention %s: cannot be used (%s)", name, error)
        else:
            log.info("attention: %s", name)
            return name
    return "native"


def compile_if_faster(transformer: Any, draw: Draw) -> bool:
    """Compile the repeated blocks; undone when that is not faster. Is it compiled now?"""
    cache = Path.home() / ".cache" / "steadydiffusion" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    plain = _race(draw)
    try:
        transformer.compile_repeated_blocks(dynamic=True)
        _race(draw)  # compiles
        compiled = _race(draw)
    except RuntimeError as error:
        if is_poison(error) or is_out_of_memory(error):
            raise
        log.warning("compile: not possible here (%s)", " ".join(str(error).split())[:300])
    else:
        log.info("compile: %.3f s a picture, %.3f s without", compiled, plain)
        if compiled < plain:
            return True
    for module in transformer.modules():
        module._compiled_call_impl = None
    return False


def _race(draw: Draw) -> float:
    """Seconds of the quicker of two small pictures."""
    took = []
    for _ in range(2):
        began = time.perf_counter()
        draw(512, 4)
        took.append(time.perf_counter() - began)
    return min(took)
