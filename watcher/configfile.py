"""What config.yaml and the environment say, by key, before anybody judges the values.

``STEADY_<KEY>`` in the environment is the same as the key in the file. Whoever calls names the keys
there are, each with its type; any other is refused with the nearest right name.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_origin

import yaml

from watcher.errors import SteadyError, did_you_mean

#: Environment names with our prefix that are no configuration keys.
_NOT_KEYS = {"STEADY_ROOT"}


class _Settings(yaml.SafeLoader):
    """Reads YAML, and refuses a key that stands twice in one mapping, as job files do."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises SteadyError bad_config."""
        names = [str(key.value) for key, _ in node.value]
        if twice := [name for n, name in enumerate(names) if name in names[:n]]:
            raise SteadyError("bad_config", f"`{twice[0]}` stands twice in config.yaml.")
        return super().construct_mapping(node, deep)


def said_in_file(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says; nothing where there is none. Raises SteadyError bad_config."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Settings)  # noqa: S506 (a safe one)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:  # a day that no calendar has
        where = f" (line {error.problem_mark.line + 1})" if hasattr(error, "problem_mark") else ""
        raise SteadyError("bad_config", f"{path.name} cannot be read{where}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SteadyError("bad_config", f"{path.name} must hold `key: value` lines.")
    said = {str(key): value for key, value in values.items()}
    _refuse_unknown(said, kinds, path.name)
    return said


def said_in_environment(kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What ``STEADY_<KEY>`` say, but for empty ones; mappings, and lists of such, are JSON.

    Raises SteadyError bad_config.
    """
    said = {
        name.removeprefix("STEADY_").lower(): text
        for name, text in os.environ.items()
        if name.startswith("STEADY_") and name not in _NOT_KEYS
    }
    if "delivery" not in said:  # what on_batch_done is told is no setting
        _refuse_unknown(said, kinds, "environment")
    values: dict[str, Any] = {name: said[name] for name in kinds if said.get(name)}
    for name, text in values.items():
        if get_origin(kinds[name]) in (dict, list) and kinds[name] != list[str]:
            try:
                values[name] = json.loads(text)
            except ValueError:
                raise SteadyError("bad_config", f"`{name}` (environment) is no JSON.") from None
    return values


def _refuse_unknown(names: Iterable[str], kinds: Mapping[str, Any], where: str) -> None:
    for name in names:
        if name not in kinds:
            words = f"`{name}` ({where}) is no setting. {did_you_mean(name, kinds)}"
            raise SteadyError("bad_config", words.rstrip())
