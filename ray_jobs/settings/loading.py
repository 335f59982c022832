"""From a YAML file and dotted overrides to a validated config, and back."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ray_jobs.settings import yaml12
from ray_jobs.settings.overrides import complete, parse_override, put
from ray_jobs.settings.problems import booleans_as_numbers, sentences
from ray_jobs.settings.secrets import secrets_in

S = TypeVar("S", bound=BaseModel)


class ConfigError(ValueError):
    """A config that cannot be used. ``problems`` holds one line for each thing that is wrong with it."""

    def __init__(self, problems: list[str], source: str = "the config") -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} in {source}:", *(f"  {problem}" for problem in problems)]))
        self.problems = problems


def load_config(schema: type[S], path: str | os.PathLike[str] | None, overrides: list[str]) -> S:
    """Defaults of ``schema`` < the YAML file at ``path`` < ``overrides`` (``a.b=value``, left to right).

    Raises ConfigError that lists every problem at once: dotted path, value given, what is allowed.
    """
    source = " and ".join([*([str(path)] if path else []), *(["the overrides"] if overrides else [])]) or "the defaults"
    given: dict[str, Any] = {}
    if path is not None:
        try:
            read = yaml12.read(path)
        except ValueError as error:
            raise ConfigError([f"{path}: {error}"], source) from error
        if not isinstance(read, Mapping | None):
            raise ConfigError([f"{path}: must hold sections (key: value lines), not {type(read).__name__}"], source)
        given = dict(read or {})
    problems = []
    for text in overrides:
        try:
            put(given, *parse_override(text))
        except ValueError as error:
            problems.append(str(error))
    return _validated(schema, given, problems, source)


def _validated(schema: type[S], given: dict[str, Any], problems: list[str], source: str) -> S:
    merged = complete(given, schema)
    problems = problems + booleans_as_numbers(schema, merged) + list(secrets_in(merged))
    try:
        config = schema.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(problems + sentences(schema, error.errors()), source) from error
    if problems:
        raise ConfigError(problems, source)
    return config


def to_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that ``load_config`` reads back to an equal object."""
    return yaml12.write(config.model_dump(mode="json"))


def save_config(config: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write the resolved config; the file is complete or absent."""
    aside = Path(f"{path}.part")
    aside.write_text(to_yaml(config), encoding="utf-8")
    aside.replace(path)
