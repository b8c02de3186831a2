"""What an engine may be told beside its model, read from the configuration. No torch here."""

from collections.abc import Container, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from watcher.errors import SteadyError, did_you_mean, value_words


class EngineOptions(BaseModel):
    """Base of each engine's own ``engine_options``, a field each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, given: Mapping[str, Any], *, without: Container[str] = ()) -> Self:
        """``given`` as written in the configuration; ``without``: names an engine does not have.

        Raises SteadyError ``bad_config``.
        """
        names = [name for name in cls.model_fields if name not in without]
        for name in given:
            if name not in names:
                words = f"`{name}` is no engine option. {did_you_mean(name, names)}"
                raise SteadyError("bad_config", words.rstrip())
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            words = f"Engine option `{first['loc'][0]}`: {value_words(first)}."
            raise SteadyError("bad_config", words) from None
