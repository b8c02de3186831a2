"""One template becomes many: matrix, zip, sample, seed lists, placeholders, wildcards.

The number of combinations is known before the first is built, and any one of them can be
built alone, so an expansion past a limit costs nothing and a sample of a huge product is
cheap. Everything that looks random is drawn from a digest of the text, the place and a salt
(the batch's ticket), so reading a file again gives the same.

Own expander instead of the library ``dynamicprompts``: that one pulls in Jinja2 and pyparsing,
reads wildcard files by itself, and gives meaning to ``$``, ``::`` and ``{a}`` in plain prompts.
Knows nothing of files, rows or job fields.
"""

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

MAX_TEXT = 8_000  #: characters of one expanded text; prompts may have half of it
MAX_NESTING = 8

#: name of a wildcard list -> its lines, or None when there is no such list
Wildcards = Callable[[str], Sequence[str] | None]

_RANGE = re.compile(r"\s*(\d{1,19})\s*\.\.\s*(\d{1,19})\s*")
_PLACEHOLDER = re.compile(r"\{([^{}|\s][^{}|]{0,79})\}")
_WILD = re.compile(r"__([^\W_](?:[\w/-]{0,78}?[^\W_])??)__|\{([^{}]*)\}")
#: Two characters that are no characters stand for braces without ``|`` while choices are made.
_MASKED = str.maketrans({"\ufdd0": "{", "\ufdd1": "}"})


class ExpansionFault(ValueError):
    """An expansion that cannot be made; the message is one sentence for a person."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


def values_of(raw: Any) -> Sequence[Any]:
    """The values of one axis: a list as it is, ``1..50`` as a range (not built), else that one."""
    if isinstance(raw, list):
        return raw
    if isinstance(raw, str) and (match := _RANGE.fullmatch(raw)):
        first, last = int(match[1]), int(match[2])
        return range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return [raw]


def seeds_of(raw: Any) -> Sequence[Any] | None:
    """The seeds of a list (ranges in it too) or a range like ``1..50``; None for a single seed."""
    if isinstance(raw, list):
        found: list[Any] = []
        for item in raw:
            several = values_of(item)
            if len(found) + length_of(several) > 1_000_000:
                raise ExpansionFault("`seed` lists more than a million seeds.")
            found += several
        return found
    if isinstance(raw, str) and _RANGE.fullmatch(raw):
        return values_of(raw)
    return None


def length_of(values: Sequence[Any]) -> int:
    """``len`` that also holds for ranges longer than a machine word."""
    return abs(values.stop - values.start) if isinstance(values, range) else len(values)


class Product:
    """Every combination of ``zip`` rows and ``matrix`` values, the last matrix name fastest."""

    def __init__(
        self, matrix: Mapping[str, Sequence[Any]], zipped: Mapping[str, Sequence[Any]]
    ) -> None:
        self._matrix = dict(matrix)
        self._zipped = dict(zipped)
        self._rows = length_of(next(iter(zipped.values()))) if zipped else 1
        self.total = self._rows
        for values in self._matrix.values():
            self.total *= length_of(values)

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The names of the matrix and their values; none where something is zipped."""
        names = {} if self._zipped else self._matrix
        return {name: [all_[n] for n in range(length_of(all_))] for name, all_ in names.items()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        picked: dict[str, Any] = {}
        for name, values in reversed(self._matrix.items()):
            index, at = divmod(index, length_of(values))
            picked[name] = values[at]
        row = {name: values[index] for name, values in self._zipped.items()}
        return row | dict(reversed(picked.items()))


def digest(*parts: str | int) -> int:
    """A number that is the same for the same parts, on every machine."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def sampled(total: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` different numbers below ``total``, of which there are more, growing."""
    source = random.Random(seed)
    if wanted * 3 > total:
        return sorted(source.sample(range(total), wanted))
    found: set[int] = set()
    while len(found) < wanted:
        found.add(source.randrange(total))
    return sorted(found)


@lru_cache(maxsize=64)
def _pieces(text: str) -> tuple[str, ...]:
    """Texts and, at odd places, what stands in braces between them."""
    return tuple(_PLACEHOLDER.split(text))


def placeholders_in(text: str) -> list[str]:
    """What stands in single braces in ``text``, in order."""
    return list(_pieces(text)[1::2])


def fill(text: str, names: Mapping[str, str]) -> str:
    """``{name}`` replaced for every name in ``names``; all other braces stay.

    Values are inserted as they are and not looked at again. Raises ExpansionFault before a
    text longer than MAX_TEXT is built.
    """
    pieces = list(_pieces(text))
    length = 0
    for number in range(1, len(pieces), 2):
        value = names.get(pieces[number])
        pieces[number] = "{" + pieces[number] + "}" if value is None else value
    for piece in pieces:
        length += len(piece)
    if length > MAX_TEXT:
        raise ExpansionFault(f"a text would become longer than {MAX_TEXT} characters")
    return "".join(pieces)


def wild(text: str, seed: int, wildcards: Wildcards | None) -> str:
    """``{a|b|c}`` and ``__list__`` replaced by one choice each, innermost first.

    A brace without ``|`` is text. Lines of a list may hold choices and lists themselves, to
    MAX_NESTING. A text longer than MAX_TEXT is left alone: no field takes it.
    Raises ExpansionFault for an unknown list, endless nesting or a text grown too long.
    """
    if len(text) > MAX_TEXT:
        return text
    source = random.Random(seed)
    chosen = False

    def choose(match: re.Match[str]) -> str:
        nonlocal chosen
        if match[1] is None:
            if "|" not in match[2]:
                return f"\ufdd0{match[2]}\ufdd1"
            chosen = True
            return source.choice(str(match[2]).split("|"))
        lines = wildcards(match[1]) if wildcards else None
        if lines is None:
            where = f"Write it into wildcards/{match[1]}.txt below the root, one choice a line."
            raise ExpansionFault(f"there is no wildcard list `{match[1]}`", where)
        if not lines:
            raise ExpansionFault(f"the wildcard list `{match[1]}` is empty")
        chosen = True
        return source.choice(lines)

    for _ in range(MAX_NESTING + 1):
        chosen = False
        text = _WILD.sub(choose, text)
        if len(text) > MAX_TEXT:
            raise ExpansionFault(f"a text would become longer than {MAX_TEXT} characters")
        if not chosen:
            return text.translate(_MASKED)
    raise ExpansionFault(f"wildcards are nested deeper than {MAX_NESTING} levels")
