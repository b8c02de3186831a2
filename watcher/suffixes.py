"""Which files are job files, by their suffix, and what is said about all others.

The only list of suffixes people may drop: the inbox, the command, HTTP and the page ask here.
Knows nothing of what the files hold.
"""

import difflib
import os
import re

#: suffix -> the form its bytes are read in
FORMS = {
    ".yaml": ".yaml",
    ".yml": ".yaml",
    ".json": ".json",
    ".jsonl": ".jsonl",
    ".ndjson": ".jsonl",
    ".jsonlines": ".jsonl",
    ".csv": ".csv",
    ".tsv": ".tsv",
    ".tab": ".tsv",
    ".txt": ".txt",
    ".zip": "bundle",
    # pictures that carry a recipe: they are made again
    ".png": "picture",
    ".webp": "picture",
    ".jpg": "picture",
    ".jpeg": "picture",
}
TREE_SUFFIXES = frozenset(s for s, form in FORMS.items() if form in (".yaml", ".json"))
LINE_SUFFIXES = frozenset(s for s, f in FORMS.items() if f in (".jsonl", ".csv", ".tsv", ".txt"))
PICTURE_SUFFIXES = frozenset(s for s, form in FORMS.items() if form == "picture")
JOB_SUFFIXES = frozenset(FORMS)
#: Pictures that jobs may start from.
INPUT_SUFFIXES = PICTURE_SUFFIXES | {".bmp", ".tif", ".tiff", ".gif", ".avif"}
#: What Pillow opens of them. Never EPS, which starts an interpreter, nor SVG, which is a program.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MAX_PICTURE = 64 << 20  #: bytes of a picture that comes in
#: What is taken from a hot folder.
HOT_SUFFIXES = JOB_SUFFIXES | INPUT_SUFFIXES

#: What to do with kinds of files that people drop and that are not read.
_INSTEAD = {
    ".xlsx .xls .xlsm .ods .numbers": "Save the table as .csv.",
    ".docx .doc .odt .rtf .md .pages .pdf .html": "Save the prompts as .txt, one a line.",
    ".toml .ini .xml": "Write it as .yaml or .json.",
    ".gz .tar .tgz .bz2 .xz .zst .7z .rar": "Unpack it and drop what is inside.",
    ".gif .bmp .tif .tiff .heic .avif .jxl .svg": "Pictures are read as .png, .webp or .jpg.",
}
_REMEDIES = {suffix: words for names, words in _INSTEAD.items() for suffix in names.split()}
#: Files that editors, copiers and browsers make for a moment: never a word about these.
_PASSING = re.compile(r"\.(part|partial|crdownload|filepart|download|tmp|temp|sw[opx]|bak|lock)")
_PASSING_NAMES = re.compile(r"\d+|(sed|tmp)\w{5,}|", re.ASCII)


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def passing(name: str) -> bool:
    """Is this hidden, or one of the files editors and copiers make for a moment?"""
    if name.startswith(".") or name.endswith("~") or name[:1] == name[-1:] == "#":
        return True
    stem, suffix = os.path.splitext(name)
    if suffix in ("", "."):
        return _PASSING_NAMES.fullmatch(stem) is not None
    return _PASSING.fullmatch(suffix.lower()) is not None


def remedy_for(name: str) -> str:
    """What to do with a file that is not read, in one sentence."""
    suffix = suffix_of(name)
    if suffix in _REMEDIES:
        return _REMEDIES[suffix]
    near = difflib.get_close_matches(suffix, FORMS, n=1, cutoff=0.7) if len(suffix) > 2 else []
    if near:
        return f"Is {near[0]} meant? Rename it."
    return "Read are " + ", ".join(FORMS) + "."
