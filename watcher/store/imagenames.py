"""Picture names: one belongs to one job, for ever.

The table decides, and it is never pruned. Names are compared as disks that ignore case do. A
name is taken in the transaction that records its job.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from watcher.store.entries import to_json

if TYPE_CHECKING:
    from watcher.store.database import Database


def folded(text: str) -> str:
    """The spelling under which names are compared, as case-insensitive disks do."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", text.casefold())


def default_place(now: int) -> tuple[str, str]:
    """The folder and base of a picture that was given none: when it was asked for, to the second."""
    local = datetime.fromtimestamp(now / 1e6)
    return f"{local:%Y%m%d}", f"ImgGen_{local:%H%M%S}"


class Wish(NamedTuple):
    """A picture name somebody would like: ``base``, in ``folder`` or unique in all of them."""

    job_id: str
    folder: str
    base: str
    everywhere: bool


def give(database: "Database", wishes: Sequence[Wish]) -> list[str]:
    """A name for each wish, reserved for its job for ever; inside a write transaction.

    The next number of a family is read from the index, never found by trying; only names
    that somebody else's base happens to spell (``cat_2``) take another round.
    """
    if not wishes:
        return []
    folder_of = {folder: folded(folder) for folder in {wish.folder for wish in wishes}}
    places = [folder_of[wish.folder] for wish in wishes]
    bases = [folded(wish.base) for wish in wishes]
    #: among whom the numbers are given out
    families = [
        f"{'*' if wish.everywhere else place}/{base}"
        for wish, place, base in zip(wishes, places, bases, strict=True)
    ]
    number = {
        row["family"]: row["n"]
        for row in database.run(
            "SELECT family, max(n) AS n FROM image_names"
            f" WHERE n > 1 AND family IN {database.each('families')} GROUP BY family",
            families=to_json(sorted(set(families))),
        )
    }
    names, spelt = [""] * len(wishes), [""] * len(wishes)
    chosen: dict[tuple[str, str], int] = {}  # (folded name, folded folder) -> number
    anywhere: set[str] = set()
    open_ = list(range(len(wishes)))
    while open_:
        for k in open_:
            wish, place, family = wishes[k], places[k], families[k]
            while True:
                n = number[family] = number.get(family, 0) + 1
                end = "" if n == 1 else f"_{n}"
                spelling = bases[k] + end
                if (spelling, place) not in chosen and not (
                    wish.everywhere and spelling in anywhere
                ):
                    break
            names[k], spelt[k] = wish.base + end, spelling
            chosen[spelling, place] = n
            anywhere.add(spelling)
        taken: dict[str, set[str]] = {}
        for row in database.run(
            f"SELECT folded, folder FROM image_names WHERE folded IN {database.each('names')}",
            names=to_json([spelt[k] for k in open_]),
        ):
            taken.setdefault(row["folded"], set()).add(row["folder"])
        open_ = [
            k
            for k in open_
            if (folders := taken.get(spelt[k])) and (wishes[k].everywhere or places[k] in folders)
        ]
    database.insert(
        "image_names",
        ("folded", "folder", "family", "n", "job_id"),
        [
            (spelt[k], places[k], families[k], chosen[spelt[k], places[k]], wish.job_id)
            for k, wish in enumerate(wishes)
        ],
    )
    return names


def next_of(database: "Database", job_id: str, folder: str, name: str) -> str:
    """One more name of the family that ``name`` is of, for the same job; as :func:`give`."""
    row = database.run(
        "SELECT family, n FROM image_names WHERE folded = :name AND folder = :folder",
        name=folded(name),
        folder=folded(folder),
    )[0]
    base = name.removesuffix(f"_{row['n']}") if row["n"] > 1 else name
    wish = Wish(job_id, folder, base, everywhere=row["family"].startswith("*/"))
    return give(database, [wish])[0]
