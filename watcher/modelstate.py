"""The models of a root while its watcher works: what they allow now, which are here, what waits.

One for each watcher; asked and changed by its main thread. What engines say of themselves is kept
in the record, so a crash loses nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from watcher import models
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.executor import Files
from watcher.jobs import Job
from watcher.limits import Limits
from watcher.models.cards import ENGINES_SAID, limits_of, said_by
from watcher.models.loras import lora_files
from watcher.models.upscalers import upscaler_file
from watcher.store import JobStore
from watcher.upscaling import LANCZOS, REFINE

LAST_MODEL = "last_model"  #: where the record keeps which model a run of jobs had last
_NAME_IT = "Name it under `models` again, or cancel its jobs."
ErrorData = dict[str, Any]  #: an error as plain data


class ModelState:
    """What is known of the models that jobs may name.

    Attributes:
        choice: the root's own model, and where it runs.
        limits: what jobs are judged by now.
        absent: models whose files are not here, by name.
        kept: why jobs of a model wait, by its name.
    """

    def __init__(self, config: Config, store: JobStore, probe: models.Probe) -> None:
        self._config = config
        self._store = store
        self.choice = models.choose(config, store, probe)
        self.limits = self._judged_by(store.get(ENGINES_SAID))
        self.absent: dict[str, SteadyError] = {}
        self.kept: dict[str, ErrorData] = {}
        self._heard: object = None  #: the EngineInfo that jobs are judged by

    def _judged_by(self, said: Any) -> Limits:
        return limits_of(self.choice.profile, self._config, self.choice.name, said)

    def wanted(self) -> list[str]:
        """The models that jobs wait for."""
        return [name or self.limits.usual.name for name in self._store.waiting_models()]

    def first(self) -> str:
        """The model that workers begin with: the one they had, if jobs wait for it."""
        wanted = self.wanted()
        order = (self._store.get(LAST_MODEL), self.limits.usual.name, *wanted)
        return next((name for name in order if name in wanted and self.limits.named(name)), "")

    def heed(self, info: ErrorData | None, model: str) -> bool:
        """Judge jobs by what the engine of ``model`` says it accepts; was that news?"""
        if not info or info is self._heard:
            return False
        card = self.limits.named(model) or self.limits.usual
        said = said_by(info, card)
        known = self._store.get(ENGINES_SAID) or {}
        if known.get(card.name) != said:
            known = known | {card.name: said}
            self._store.put(ENGINES_SAID, known)
        self.limits = self._judged_by(known)
        self._heard = info
        return True

    def look(self, slots: Sequence[Mapping[str, Any]]) -> None:
        """Find out which models' files are missing, and why jobs of a model wait.

        ``slots``: how the executor's are, as its ``status`` says it.
        """
        self.limits = limits = self._judged_by(self._store.get(ENGINES_SAID))
        self.absent = {card.name: card.absent for card in limits.cards if card.absent}
        kept = {}
        for name in set(self.wanted()):
            ailing = [slot.get("ailing", {}).get(name) for slot in slots]
            if limits.named(name) is None:
                words = f"`{name}` is no model of config.yaml any more."
                kept[name] = SteadyError("model_not_found", words, remedy=_NAME_IT).as_dict()
            elif name in self.absent:
                kept[name] = self.absent[name].as_dict()
            elif ailing and all(ailing):
                kept[name] = ailing[0]
        self.kept = kept

    def files(self, job: Job) -> Files:
        """The LoRA files of a job and that of its upscaler. Raises SteadyError: what became of one."""
        found: dict[str, Any] = {}
        if job.request.lora:
            card = self.limits.card(job.request.__dict__)
            found["loras"] = lora_files(self._config, job.request.lora, card)
        upscale = job.request.upscale
        method = LANCZOS if upscale is None else upscale.get("method", LANCZOS)
        if method not in (LANCZOS, REFINE):
            found["upscaler"] = str(upscaler_file(self._config.upscalers, method))
        return found

    def troubles(
        self, slots: Sequence[Mapping[str, Any]]
    ) -> tuple[list[ErrorData], list[ErrorData]]:
        """What of the workers and models holds the queue, and what keeps only some from drawing.

        A slot's trouble is the queue's only where every slot has one, and a model's only where it
        is the root's own.
        """
        usual = self.limits.usual.name
        ill = [
            (slot, found)
            for slot in slots
            if (found := slot["trouble"]) and found.get("model", usual) in ("", usual)
        ]
        kept = [
            error
            | {"model": name, "message": f"Jobs of the model `{name}` wait: {error['message']}"}
            for name, error in self.kept.items()
            if name != usual
        ]
        held = [self.kept[usual]] if usual in self.kept else []
        if len(ill) == len(slots):
            held = [found for _, found in ill]
            ill = []
        warnings = [
            found
            | {
                "slot": slot["slot"],
                "message": f"Worker {slot['slot']} ({slot['device']}) does not run, the others do: "
                + found["message"],
            }
            for slot, found in ill
        ]
        return held, warnings + kept
