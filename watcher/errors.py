"""Everything that can go wrong, in one table: what happened and what to do.

One registry serves HTTP (status), the command line (exit code), the page and the
inbox's ``.error.json`` files, so the same mishap reads the same at every door.
This module knows nothing of files, SQL or HTTP and imports nothing of ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class ErrorClass(StrEnum):
    """What the queue does about a job that failed so."""

    INVALID = "invalid"  #: the request is wrong; running it again changes nothing
    OUT_OF_MEMORY = "out_of_memory"  #: the device is too small, also after the engine's second way
    TRANSIENT = "transient"  #: worth another try by itself
    ENVIRONMENT = "environment"  #: disk, device or folder: the queue waits, no job pays for it
    INTERNAL = "internal"  #: a fault of ours or the engine's


@dataclass(frozen=True)
class ErrorKind:
    """One row of the registry.

    ``status`` is the HTTP status, ``exit`` the command's exit code, ``what`` one plain
    sentence and ``do`` the remedy, an imperative sentence.
    """

    status: int
    exit: int
    what: str
    do: str
    klass: ErrorClass = ErrorClass.INVALID


_OOM = ErrorClass.OUT_OF_MEMORY
_ENV = ErrorClass.ENVIRONMENT
_INT = ErrorClass.INTERNAL

#: code -> what it means at every door. Every code raised is here, and every code here is raised.
ERRORS: dict[str, ErrorKind] = {
    # -- reading a job file or a body
    "empty_file": ErrorKind(422, 2, "The file is empty.", "Write at least a prompt into it and drop it again."),
    "encoding": ErrorKind(422, 2, "The file is not UTF-8 text.", "Save it as UTF-8 and drop it again."),
    "bad_yaml": ErrorKind(422, 2, "The file is not valid YAML.", "Mend the line named; put a prompt with punctuation in quotes, or write it under `prompt: |`."),
    "bad_json": ErrorKind(422, 2, "The file is not valid JSON.", "Mend the line named."),
    "bad_csv": ErrorKind(422, 2, "The table cannot be read.", "Give it a header row with a `prompt` column."),
    "bad_shape": ErrorKind(422, 2, "The file holds no job.", "Write one mapping with a prompt, a list of such mappings, or a batch with `jobs`."),
    "duplicate_key": ErrorKind(422, 2, "A key is written twice.", "Keep one of the two."),
    "unsafe_yaml": ErrorKind(422, 2, "The file uses anchors, aliases or tags, or is nested too deeply.", "Write the values out in full."),
    "prompt_cut_at_hash": ErrorKind(422, 2, "A ` #` starts a YAML comment and would cut the text off.", "Put the whole text in quotes."),
    "unknown_field": ErrorKind(422, 2, "A field is not known.", "Use the nearest name given, or remove the field."),
    "missing_field": ErrorKind(422, 2, "A required field is missing.", "Add it."),
    "wrong_type": ErrorKind(422, 2, "A value has the wrong type.", "Write the type that is asked for."),
    "out_of_range": ErrorKind(422, 2, "A value is outside the allowed range.", "Choose a value inside the range given."),
    "size_not_multiple_of_16": ErrorKind(422, 2, "Width and height must be multiples of 16.", "Take one of the two nearest sizes given."),
    "bad_name": ErrorKind(422, 2, "The name cannot be used for a file or folder.", "Use letters, digits, `.`, `_` and `-`, at most 80, not starting with `.` or `-`."),
    "bad_placeholder": ErrorKind(422, 2, "A placeholder or a list of the batch does not fit.", "Declare the name under `matrix` or `zip`, and give lists of the lengths asked for."),
    "too_large": ErrorKind(413, 2, "The file or body is larger than allowed.", "Split it, or use .jsonl or .csv for many jobs."),
    "too_many_jobs": ErrorKind(422, 2, "The file makes more jobs than allowed.", "Split it, or use .jsonl or .csv."),
    "all_rows_refused": ErrorKind(422, 2, "No row of the file can be used.", "Mend the rows; each is listed with its reason."),
    "bad_picture": ErrorKind(422, 2, "The picture cannot be started from.", "Use a whole PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF."),
    "bad_bundle": ErrorKind(422, 2, "The .zip cannot be read.", "Pack one job file and the pictures it names, without links or passwords."),
    "bad_reference": ErrorKind(422, 2, "This does not name a picture that may be started from.", "Name a file below inputs/, a picture made before, or job:ID."),
    "input_missing": ErrorKind(422, 2, "The picture to start from is not there.", "Put it below inputs/ under that name, or send it again."),
    "input_failed": ErrorKind(409, 1, "The picture to start from was not made.", "Run that job again, then this one."),
    "no_recipe": ErrorKind(422, 2, "The picture carries no recipe.", "Drop a picture made by this service or one with an A1111 `parameters` text."),
    "bad_preset": ErrorKind(422, 2, "The preset cannot be used.", "Mend the preset, then drop the file again."),
    "not_a_regular_file": ErrorKind(422, 2, "This is not a regular file.", "Copy the file itself into the inbox; links, pipes and folders are not followed."),
    "unreadable": ErrorKind(422, 2, "The service may not read this file.", "Give the service's user or group read permission (chmod g+r) and drop it again."),
    "crashed_service": ErrorKind(422, 2, "Reading this file stopped the service again and again, so it was set aside unread.", "Look at the file; move it back to the inbox to try again."),
    "unsupported_suffix": ErrorKind(422, 2, "Files of this kind are not read.", "Use .yaml, .json, .jsonl, .csv, .tsv, .txt, a .zip with one of these, or a picture that carries a recipe."),
    "key_conflict": ErrorKind(422, 2, "The same key was used before with other content.", "Use a new key, or send the same content."),
    # -- asking
    "bad_request": ErrorKind(400, 2, "The request cannot be read.", "Send a well-formed request."),
    "bad_content_type": ErrorKind(415, 2, "The body's type is not known.", "Send a type that is listed, or name the file."),
    "job_not_found": ErrorKind(404, 3, "There is no job with this id.", "Check the id, or look it up in the list of jobs."),
    "batch_not_found": ErrorKind(404, 3, "There is no batch with this ticket.", "Check the ticket."),
    "image_not_found": ErrorKind(404, 3, "There is no picture with this name.", "Check the name, or look it up in the list of jobs."),
    "image_not_ready": ErrorKind(400, 4, "The picture is not ready.", "Ask for the status and come back when it is completed."),
    "no_preview": ErrorKind(404, 4, "There is no preview of this picture now.", "Ask again while it is being made; after that, for the picture itself."),
    "image_deleted": ErrorKind(410, 3, "The picture was deleted.", "Its page still has what it was made from: `Edit and run` makes it anew."),
    "delivery_not_found": ErrorKind(404, 3, "There is no delivery with this id.", "Look it up at GET /webhooks/deliveries."),
    "model_not_found": ErrorKind(404, 3, "There is no model with this name.", "Use one that `steady model list` names."),
    "not_accepted": ErrorKind(422, 2, "The model does not take what the job asks of it.", "Remove it, or name another model."),
    "lora_not_found": ErrorKind(422, 2, "There is no LoRA with this name.", "Use one that `steady lora list` names."),
    "lora_unsuitable": ErrorKind(422, 2, "The LoRA cannot be used with this model.", "Take one that was made for this model, as a .safetensors file."),
    "lora_changed": ErrorKind(409, 2, "The LoRA's file is another one than the job was recorded with.", "Bring the file back, or submit the job anew."),
    "file_not_found": ErrorKind(404, 3, "There is no file with this id.", "Check the id, or upload the file again."),
    "not_found": ErrorKind(404, 3, "There is nothing here.", "Check the address."),
    "request_timeout": ErrorKind(408, 4, "The request did not arrive in time.", "Send it again, on a better connection or in smaller parts."),
    "too_many_connections": ErrorKind(503, 4, "Too many connections are open.", "Close some of them, or ask again in a few seconds.", _ENV),
    "method_not_allowed": ErrorKind(405, 2, "This address does not take this method.", "Use a method the Allow header names."),
    "wrong_state": ErrorKind(409, 1, "The job's state does not allow this.", "Only a waiting or running job can be cancelled, only a failed or cancelled one run again."),
    "queue_full": ErrorKind(429, 4, "The queue is full.", "Come back when some jobs are done."),
    "queue_paused": ErrorKind(503, 4, "The queue is paused, so no picture is being made.", "Send it again when the queue goes on (`steady resume`); nothing was kept of it.", _ENV),
    "unauthorized": ErrorKind(401, 4, "A valid token is needed.", "Send the token as `Authorization: Bearer`."),
    "cross_origin": ErrorKind(403, 4, "Another site may not ask this.", "Open the service's own page."),
    "bad_host": ErrorKind(400, 4, "The Host header is not allowed.", "Use an address listed in `allowed_hosts`."),
    "range_not_satisfiable": ErrorKind(416, 2, "The picture ends before the bytes asked for.", "Ask for bytes it has; Content-Range says how many."),
    # -- making a picture
    "out_of_memory": ErrorKind(500, 1, "The device ran out of memory.", "Ask for a smaller picture.", _OOM),
    "non_finite": ErrorKind(500, 1, "The model produced no valid numbers, so there is no picture.", "Try bfloat16 or float32 (`dtype`), or another seed.", _INT),
    "blank_picture": ErrorKind(500, 1, "The picture is one constant colour.", "Try another seed; on old cards set `dtype: float32`.", _INT),
    "engine_failed": ErrorKind(500, 1, "The model failed on this job.", "See the log for the cause, then run the job again.", _INT),
    "device_error": ErrorKind(500, 1, "The device reported an error three times.", "See the log; the worker was started anew each time.", ErrorClass.TRANSIENT),
    "worker_crashed": ErrorKind(500, 1, "The worker process died twice while making this picture.", "See the log; change the job before running it again.", _INT),
    "watcher_crashed": ErrorKind(500, 1, "The service died ten times while this job was running.", "See the log; change the job before running it again.", _INT),
    "server_failed": ErrorKind(502, 1, "The server that makes the pictures failed on this job three times.", "See that server's log, then run the job again.", ErrorClass.TRANSIENT),
    "server_refused": ErrorKind(422, 2, "The server that makes the pictures refuses this job.", "Change the job as it says."),
    "bad_answer": ErrorKind(502, 1, "The answer of the server that makes the pictures cannot be used.", "See that server's log, and `url` and `options` of the model.", _INT),
    "timed_out": ErrorKind(500, 1, "The job took longer than allowed.", "Ask for a smaller picture, or raise `job_timeout_seconds`.", _INT),
    "cancelled": ErrorKind(409, 1, "The job was cancelled.", "Run it again if you want it after all."),
    # -- the service and its surroundings
    "bad_config": ErrorKind(500, 4, "The configuration cannot be used.", "Mend the key named in config.yaml or the environment.", _ENV),
    "already_running": ErrorKind(503, 4, "Another watcher already works on this root.", "Stop it, or use another --root.", _ENV),
    "not_ready": ErrorKind(503, 4, "The service is not ready.", "Wait, or see what `steady doctor` says.", _ENV),
    "watcher_down": ErrorKind(503, 4, "The watcher is not running, so jobs wait.", "Start it with `steady serve` or `steady watch`.", _ENV),
    "model_loading": ErrorKind(503, 4, "The model is not loaded yet.", "Wait a moment; jobs sent now are made as soon as it is.", _ENV),
    "inbox_degraded": ErrorKind(503, 4, "The inbox is watched less well than it should be.", "Read the words; files are still taken, perhaps later.", _ENV),
    "model_missing": ErrorKind(503, 4, "The model is not on this machine.", "Run `steady model pull` with its name, or name another.", _ENV),
    "model_damaged": ErrorKind(503, 4, "The model cannot be loaded.", "Run `steady model verify` with its name.", _ENV),
    "model_unfit": ErrorKind(503, 4, "The model does not compute as it should on this device.", "Try another `dtype`, `attention: native`, or a newer driver; every job is kept.", _ENV),
    "device_lost": ErrorKind(503, 4, "The device the model needs is not there.", "Bring it back, or set `model` and `device` anew; every job is kept.", _ENV),
    "server_away": ErrorKind(503, 4, "The server that makes the pictures is not there.", "Start it, or mend `url`; the queue goes on by itself.", _ENV),
    "disk_full": ErrorKind(503, 4, "The disk is full.", "Free some space; the queue goes on by itself.", _ENV),
    "folder_gone": ErrorKind(503, 4, "A folder of the service is not there or cannot be written.", "Bring it back; the queue goes on by itself.", _ENV),
    "database_trouble": ErrorKind(503, 4, "The record cannot be read or written.", "Check the database file and its disk; the queue goes on by itself.", _ENV),
    "database_damaged": ErrorKind(503, 4, "The record is damaged or of a newer version.", "Restore a copy, or move the file away to start anew; it is never overwritten.", _ENV),
    "worker_unavailable": ErrorKind(503, 4, "The worker process cannot be started.", "See the log; the service tries again by itself.", _ENV),
    "repeated_failures": ErrorKind(503, 4, "Five jobs in a row failed the same way, so the queue was paused.", "Mend the cause, then `steady resume`.", _ENV),
    "undelivered": ErrorKind(503, 4, "Somebody could not be told what happened.", "See GET /webhooks/deliveries for the reason; mend the receiver, then resend.", _ENV),
    "stopping": ErrorKind(503, 4, "The service is stopping.", "Ask again when it is back.", _ENV),
    "internal": ErrorKind(500, 1, "Something went wrong inside the service.", "See the log, and please report it.", _INT),
    "timeout": ErrorKind(504, 5, "The time to wait has passed; the job goes on.", "Look again later with `steady status`."),
    "upscaler_unusable": ErrorKind(422, 2, "The picture cannot be made larger this way.", "Take `lanczos`, `refine` or the name of a .safetensors file in upscalers/."),
    "extra_missing": ErrorKind(500, 4, "An optional part is not installed.", "Install the extra named.", _ENV),
}  # fmt: skip


@dataclass(frozen=True)
class ValueFault:
    """One thing wrong with one value of a job file or body.

    ``pointer`` is a JSON pointer into the parsed body (``/jobs/6/width``), ``line`` and
    ``column`` count from 1, ``row`` is the 1-based row of a table, ``document`` the 1-based
    YAML document. ``value`` is a short ``repr`` (at most 80 characters) and is never sent
    over HTTP. ``message`` is one sentence without the value.
    """

    code: str
    message: str
    key: str | None = None
    pointer: str | None = None
    file: str | None = None
    line: int | None = None
    column: int | None = None
    row: int | None = None
    document: int | None = None
    value: str | None = None
    allowed: str | None = None
    remedy: str | None = None

    def as_dict(self, *, value: bool = True) -> dict[str, Any]:
        """The filled members only; ``value=False`` leaves the offending value out (HTTP)."""
        members = {k: v for k, v in asdict(self).items() if v is not None}
        if not value:
            members.pop("value", None)
        return members

    def error(self) -> "SteadyError":
        """The refusal of what has this one fault, in its words."""
        return SteadyError(self.code, self.message, problems=[self], remedy=self.remedy or "")


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """The remedy for a name nobody knows: the nearest of ``known``, else ``otherwise``."""
    import difflib  # only for whoever mistyped a name

    near = difflib.get_close_matches(word[:100], list(known), n=1, cutoff=cutoff)
    return f"Did you mean `{near[0]}`?" if near else otherwise


_MAPPING, _NUMBER = "it must be a mapping", "it must be a number"
_WHOLE, _TRUTH = "it must be a whole number", "it must be true or false"
#: What is wrong with a value, by the validator's name for it.
_VALUE_WORDS = {
    "missing": "it is missing",
    "byte_size": "write a size such as 500MB or 2GB",
    "byte_size_unit": "write a size such as 500MB or 2GB",
    "extra_forbidden": "it is no setting",
    "list_type": "it must be a list",
    "dict_type": _MAPPING, "model_type": _MAPPING, "model_attributes_type": _MAPPING,
    "float_type": _NUMBER, "float_parsing": _NUMBER,
    "int_type": _WHOLE, "int_parsing": _WHOLE, "int_from_float": _WHOLE,
    "bool_type": _TRUTH, "bool_parsing": _TRUTH,
    "string_type": "it must be text",
    "string_too_short": "it is empty",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "it must be {expected}",
    "string_pattern_mismatch": "it is not written as it has to be",
}  # fmt: skip


def value_words(error: Mapping[str, Any]) -> str:
    """What is wrong with a setting, by the validator's ``error``; goes on from its name."""
    if known := _VALUE_WORDS.get(error["type"]):
        return known.format(**error.get("ctx", {}))
    said = error["msg"].removeprefix("Value error, ")
    return str(said).replace("Input should be", "it must be").rstrip(".")


class SteadyError(Exception):
    """The one exception type of the product: a registered ``code`` and the facts of this case.

    One whose code is of class environment is a :class:`Trouble`, any other a :class:`Failure`.

    Attributes:
        code: a key of :data:`ERRORS`.
        message: one sentence for a person; the registry's ``what`` when not given.
        problems: the single faults, for a refused file or body.
        remedy: what to do; the registry's ``do`` when not given.
    """

    def __new__(cls, code: str, *_: Any, **__: Any) -> "SteadyError":
        """Make a Trouble or a Failure of it."""
        if cls is SteadyError:
            cls = Trouble if ERRORS[code].klass is ErrorClass.ENVIRONMENT else Failure
        return super().__new__(cls)

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        problems: Sequence[ValueFault] = (),
        remedy: str = "",
    ) -> None:
        self.code = code
        self.kind = ERRORS[code]
        self.message = message or self.kind.what
        self.remedy = remedy or self.kind.do
        self.problems = tuple(problems)
        super().__init__(code, self.message)

    @classmethod
    def told(cls, said: Mapping[str, Any]) -> "SteadyError":
        """What :meth:`as_dict` gave, as an error again; ``internal`` for a code nobody knows."""
        code = said.get("code")
        words, remedy = str(said.get("message") or ""), str(said.get("remedy") or "")
        return cls(code if code in ERRORS else "internal", words, remedy=remedy)

    def as_fault(self, key: str | None = None, value: str | None = None) -> ValueFault:
        """The same as the fault of one value; the other way round than :meth:`ValueFault.error`."""
        return ValueFault(self.code, self.message, key=key, value=value, remedy=self.remedy)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"

    def as_dict(self, *, value: bool = True) -> dict[str, Any]:
        """What ``.error.json`` holds and, with ``value=False``, the core of an HTTP problem."""
        body: dict[str, Any] = {"code": self.code, "message": self.message, "remedy": self.remedy}
        if self.problems:
            body["problems"] = [p.as_dict(value=value) for p in self.problems]
        return body


class Trouble(SteadyError):
    """Disk, device, folder or record: the queue waits, and no job pays for it. Raise SteadyError."""


class Failure(SteadyError):
    """What concerns one file, job or request alone: the queue goes on. Raise SteadyError."""
