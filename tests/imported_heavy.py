"""What a worker with a real model imports as well: of its start, ten seconds in eleven.

Imported by a server of forked.py before it clones itself; nothing here may start a thread.
"""

import importlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # is read at the import
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # or numpy begins with a thread, which no clone has

_transformers, _diffusers = (
    importlib.import_module(f"{each}.utils.logging") for each in ("transformers", "diffusers")
)
_transformers.set_verbosity_error()
_diffusers.set_verbosity_error()
for _name in ("device", "diffusers", "zimage"):
    importlib.import_module(f"watcher.engines.{_name}")
for _module, _kind in (("diffusers", "ZImagePipeline"), ("transformers", "Qwen3Model")):
    getattr(importlib.import_module(_module), _kind)
_transformers.set_verbosity_warning()
_diffusers.set_verbosity_warning()
