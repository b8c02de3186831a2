"""Every setting: its default, its meaning, and what may be said.

``Config.load(root)`` takes what ``config.yaml`` below the root and the environment say
(configfile.py). Relative paths are below the root. A value nobody can use is refused with what
may stand there. Knows nothing of jobs.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from watcher.addresses import Address, check_entry, key_of, without_query
from watcher.configfile import said_in_environment, said_in_file
from watcher.errors import SteadyError, value_words

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """``90``, ``90s``, ``10m``, ``2h`` or ``30d`` as seconds; ValueError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text)
    if not match:
        raise ValueError("write a time such as 90s, 10m, 2h or 30d")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def _read_by(reader: Callable[[str], Any]) -> BeforeValidator:
    """A setting that may be a text, which ``reader`` reads."""
    return BeforeValidator(lambda value: reader(value) if isinstance(value, str) else value)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _addresses(value: Any) -> Any:
    if isinstance(value, str):
        value = value.split()
    return {"to": value} if isinstance(value, list) else value


class ModelSetting(BaseModel):
    """What a name of `models` stands for. Left out: as the model and the other settings have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1, validation_alias=AliasChoices("source", "model"))
    engine: str | None = None
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0, le=30)
    width: int | None = Field(None, ge=16)
    height: int | None = Field(None, ge=16)
    max_side: int | None = Field(None, ge=16)
    max_pixels: int | None = Field(None, ge=256)
    url: str | None = None
    key: str | None = Field(None, repr=False)
    options: dict[str, Any] = Field(default_factory=dict, repr=False)

    @property
    def engine_options(self) -> dict[str, Any]:
        """What the engine is given beside the source."""
        said = {"url": self.url, "key": self.key}
        return self.options | {name: value for name, value in said.items() if value is not None}


WebhookEvent = Literal["job.completed", "job.failed", "job.cancelled", "batch.completed"]


class Webhook(BaseModel):
    """A receiver of the operator's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    secret: str
    events: list[WebhookEvent] = Field(default=list(get_args(WebhookEvent)), min_length=1)

    @model_validator(mode="after")
    def _usable(self) -> "Webhook":
        try:
            Address.of(self.url)
        except ValueError as error:
            raise ValueError(f"the url {error}") from None
        key_of(self.secret)
        return self


class Notify(BaseModel):
    """Who is notified, by addresses of the library apprise, and when nobody is.

    ``quiet``: a span of the day, "22:00-07:00"; what happens then is told when it is over.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: list[str] = []
    quiet: str | None = None


class Config(BaseModel):
    """All settings of one root. Immutable; built once and handed to whoever needs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # -- where
    inbox: Path = Field(Path("inbox"), description="folder that is watched for job files")
    outputs: Path = Field(Path("outputs"), description="folder the pictures go to")
    inputs: Path = Field(Path("inputs"), description="folder of pictures that jobs start from")
    database: str = Field("steady.db", description="the record: a file, or postgresql://…")
    synchronous: Literal["full", "normal"] = Field(
        "full",
        description="full: what was answered is kept, also when the power goes. normal: for a slow "
        "disk; a power cut may cost half a minute of cancels and retries, but no file or picture",
    )

    # -- the HTTP door
    host: str = Field("127.0.0.1", description="address to listen on; others need a token")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    token: str | None = Field(None, description="secret for HTTP; auto makes one")
    allowed_hosts: Annotated[list[str], _read_by(_names)] = Field(
        default_factory=list,
        description="further names of a service without a token, when people reach it through a "
        'proxy or a tunnel, e.g. `allowed_hosts: [art.lan, "*.home.arpa"]`; others are refused',
    )
    public_url: str | None = Field(None, description="address in links, behind a proxy")
    call_patience: float = Field(
        30, ge=0,
        description="seconds a call of /v1 or /sdapi waits while the queue is paused, then 503. "
        "More for a program that does not try again, e.g. `call_patience: 600`; 0: not at all",
    )  # fmt: skip

    # -- the inbox
    settle_seconds: float = Field(1.0, ge=0, description="quiet time before a file is taken")
    rescan_seconds: float = Field(5.0, gt=0, description="looks into the inbox without an event")
    max_jobs_per_file: int = Field(1000, ge=1, description="jobs in one .yaml or .json file")
    max_lines: int = Field(100_000, ge=1, le=1_000_000, description="rows in one .jsonl or .csv")
    presets: Path = Field(
        Path("presets"), description="NAME.yaml here makes NAME/ in the inbox a hot folder"
    )
    max_queued: int = Field(
        1_000_000, ge=1,
        description="waiting jobs, then requests are answered 429 and files wait in the inbox; "
        "what was not read yet counts as one each; less where nobody may fill the queue for weeks, "
        "e.g. `max_queued: 10000`",
    )  # fmt: skip

    # -- the model
    engine: str = Field("zimage", description="zimage, diffusers, openai, or package.module:Class")
    model: str = Field("auto", description="auto, starter, a name below, a hub name or a folder")
    models: dict[str, ModelSetting] = Field(
        default_factory=dict, description="what jobs may name as their model (docs/models.md)"
    )
    loras: Path = Field(Path("loras"), description="folder of the LoRA files that jobs may name")
    upscalers: Path = Field(
        Path("upscalers"), description="folder of networks that enlarge (docs/upscaling.md)"
    )
    device: str = Field("auto", description="auto, cpu, mps, cuda or cuda:N")
    devices: Annotated[list[str], _read_by(_names)] = Field(
        default_factory=list,
        description="one worker each: auto for all there are; empty means device",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field("auto", description="number format")
    executor: Literal["local", "ray"] = Field("local", description="who runs the workers")
    ray_address: str = Field(
        "local", description="local (one of our own), auto, host:port or ray://… (docs/ray.md)"
    )
    ray_slots: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="workers on Ray; auto: as many as the cluster has room for, also later. A "
        "number leaves the rest to others, e.g. `ray_slots: 2`",
    )
    ray_resources: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="what one takes; empty means {GPU: 1}, with `device: cpu` {CPU: 1}",
    )
    model_patience: Annotated[float, _read_by(seconds_of)] = Field(
        60, ge=0,
        description="seconds a job may be passed by for jobs of the loaded model, then it is next. "
        "More where models load slowly and nobody waits, e.g. `model_patience: 10m`",
    )  # fmt: skip
    engine_options: dict[str, Any] = Field(
        default_factory=dict, description="further settings of the engine (docs/gpu.md)"
    )
    load_timeout_seconds: float = Field(600, gt=0, description="for loading the model")
    step_timeout_seconds: float | None = Field(
        None, gt=0, description="for one step; unset: max(60 s, 20 x the median)"
    )
    job_timeout_seconds: float = Field(3600, gt=0, description="for one picture")
    idle_unload: Annotated[float | None, _read_by(seconds_of)] = Field(
        None, description="end the worker after so long without work, e.g. 10m"
    )

    # -- what a job gets when it says nothing, and may ask for
    default_width: int | None = Field(None, ge=16, description="pixels; unset: the model's own")
    default_height: int | None = Field(None, ge=16, description="pixels; unset: the model's own")
    default_steps: int | None = Field(None, ge=1, description="unset: the model's own")
    max_side: int | None = Field(None, ge=16, description="pixels; unset: the model's own")
    max_pixels: int | None = Field(None, ge=256, description="width x height; unset: the model's")

    # -- the pictures
    image_format: Literal["png", "webp", "jpeg"] = Field("png", description="when a job says none")
    default_name: str | None = Field(
        None, max_length=80, pattern=r"^[\w{][\w.:{}-]*$",
        description='of pictures when a job says none, e.g. "{prompt}-{seed}"; unset: by the file or the time',
    )  # fmt: skip
    embed_metadata: bool = Field(True, description="the recipe inside the picture")

    # -- the queue
    cooldown: Annotated[float, _read_by(seconds_of)] = Field(
        0, ge=0,
        description="seconds a worker rests after every picture, so that the card stays cool and "
        "quiet, e.g. `cooldown: 5s`; max_temperature waits only when it is hot",
    )  # fmt: skip
    max_temperature: int | None = Field(
        None, ge=30, le=120, description="no job begins on a hotter card; degrees Celsius"
    )
    run_window: str | None = Field(
        None,
        description="when jobs of `priority: bulk` begin, e.g. at night while the card is yours by "
        'day: `run_window: "22:00-07:00"`, local time, or with a zone behind it: Europe/Berlin',
    )
    min_free_disk: ByteSize = Field(
        ByteSize(500_000_000), description="the queue waits below this, e.g. 2GB"
    )
    on_batch_done: Annotated[list[str], _read_by(str.split)] = Field(
        default_factory=list,
        description="command that is run when a batch is done, without a shell, e.g. "
        "`on_batch_done: [/usr/local/bin/tell-me]`; STEADY_FILE and others in its environment say "
        "of which (docs/operations.md)",
    )
    webhooks: list[Webhook] = Field(
        default_factory=list,
        description="{url, secret, events}: who is told (docs/notifications.md)",
    )
    webhook_hosts: dict[str, str] = Field(
        default_factory=dict,
        description="who may be told by a job's own `webhook`, and the secret that signs it, e.g. "
        "`webhook_hosts: {hooks.example.com: whsec_…}` (docs/notifications.md); others are refused",
    )
    notify: Annotated[Notify | None, BeforeValidator(_addresses)] = Field(
        None, description="addresses for mail, ntfy, Slack and others (docs/notifications.md)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much")

    root: Path = Field(Path(), exclude=True, description="set by load, no key")

    @field_validator("models", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name in value:
            if not re.fullmatch(r"\w[\w.-]{0,79}", str(name)) or name in ("auto", "starter"):
                raise ValueError(
                    f"{name!r} cannot be a name here; take letters, digits, `.`, `_` and `-`,"
                    " and neither auto nor starter"
                )
        return {
            str(name): {"source": said} if isinstance(said, str) else said
            for name, said in value.items()
        }

    @field_validator("devices", mode="after")
    @classmethod
    def _auto_stands_alone(cls, value: list[str]) -> list[str]:
        if "auto" in value and len(value) > 1:
            raise ValueError("auto means every device there is, and stands alone")
        return value

    @field_validator("database", mode="after")
    @classmethod
    def _record(cls, value: str) -> str:
        kind, sign, rest = value.partition("://")
        if not sign or kind == "sqlite":
            return value
        if kind not in ("postgres", "postgresql", "postgresql+psycopg"):
            raise ValueError("write a file, or postgresql://user@host/database")
        return f"postgresql+psycopg://{rest}"

    @field_validator("ray_address", mode="after")
    @classmethod
    def _address(cls, value: str) -> str:
        if not re.fullmatch(r"local|auto|(ray://)?[\w.:\[\]-]+:\d+", value):
            raise ValueError("write local, auto, host:port or ray://host:port")
        return value

    @field_validator("webhook_hosts", mode="after")
    @classmethod
    def _listed(cls, value: dict[str, str]) -> dict[str, str]:
        for host, secret in value.items():
            check_entry(host)
            key_of(secret)
        return value

    @field_validator("webhooks")
    @classmethod
    def _each_once(cls, value: list[Webhook]) -> list[Webhook]:
        for place, hook in enumerate(value):
            if hook.url in [other.url for other in value[:place]]:
                raise ValueError(
                    f"{without_query(hook.url)} stands there twice; list all its events once"
                )
        return value

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """Every key that may stand in config.yaml, and what it is."""
        return {name: field for name, field in cls.model_fields.items() if name != "root"}

    @classmethod
    def load(cls, root: Path | str = ".", **overrides: Any) -> "Config":
        """The settings of ``root``; ``overrides`` (command-line options) win over everything.

        Raises SteadyError ``bad_config``, naming the key, the allowed values and the nearest
        right name; ``bad_request`` for an option.
        """
        root = Path(root).absolute()
        kinds = {name: field.annotation for name, field in cls.settings().items()}
        said = said_in_file(root / "config.yaml", kinds) | said_in_environment(kinds)
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            config = cls(**said | given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(map(str, first["loc"])) or "config.yaml"
            code, name = ("bad_request", f"--{key}") if key in given else ("bad_config", key)
            raise SteadyError(code, f"`{name}`: {value_words(first)}.") from None
        folders = [name for name, kind in kinds.items() if kind is Path]
        below = {name: root / getattr(config, name).expanduser() for name in folders}
        return config.model_copy(update={"root": root, **below})

    @property
    def state(self) -> Path:
        """``.steady/``: lock, live.json and other things nobody needs to look at."""
        return self.root / ".steady"

    @property
    def uploads(self) -> Path:
        """What clients of OpenAI's Batch API uploaded, and said with their batches."""
        return self.state / "openai"

    @property
    def address(self) -> str:
        """Where people reach the service: ``public_url``, else what is listened on."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")

    @property
    def database_url(self) -> str:
        """What the store is opened with: a SQLAlchemy URL."""
        if "://" in self.database:
            return self.database
        return f"sqlite:///{self.root / Path(self.database).expanduser()}"

    @property
    def database_path(self) -> Path | None:
        """The SQLite file, or None when the record is on a server."""
        if "://" in self.database and not self.database.startswith("sqlite:///"):
            return None
        return Path(self.database_url.removeprefix("sqlite:///"))
