"""Everything that a process of ours may come to import, the engines' libraries aside.

Imported by the server of forked.py before it forks.
"""

import gc
import importlib
import os
import pkgutil

from PIL import Image

import api
import watcher

_ON_SERVER = "STEADY_DATABASE" in os.environ  #: where the record lies, see roots.py
#: What is not for every watcher: torch, Ray, PostgreSQL.
_HEAVY = ["watcher.engines.", "watcher.executor.ray.", *["watcher.store.server"] * (not _ON_SERVER)]
_OTHERS = [
    "crashing",
    "dataset",
    "encodings.ascii",
    "encodings.idna",
    "encodings.utf_16_be",
    "encodings.utf_16_le",
    "encodings.utf_8_sig",
    "engines",
    "forked",
    "sqlalchemy.dialects.sqlite",
    "typer._adapters",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    *["sqlalchemy.dialects.postgresql.psycopg"] * _ON_SERVER,
]

for _package in (watcher, api):
    for _found in pkgutil.walk_packages(_package.__path__, f"{_package.__name__}."):
        if not _found.name.startswith(tuple(_HEAVY)) and not _found.name.endswith("__main__"):
            importlib.import_module(_found.name)
for _name in _OTHERS:
    importlib.import_module(_name)
Image.init()  # the formats

gc.collect()
gc.freeze()  # what was imported is not walked again by any of them
