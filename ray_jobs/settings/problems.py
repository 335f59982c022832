"""What is wrong with a config, in the words of the person who wrote it."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ray_jobs.settings import schema as shape

_NOT_A_SECTION = ("model_type", "model_attributes_type", "dict_type")


def shown(value: Any) -> str:
    """``value`` as a person wrote it, cut to one short line."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(word: Any, known: Sequence[str]) -> str:
    """``; did you mean 'x'?`` when something known looks like ``word``, else an empty string."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def _unknown_key(schema: type[BaseModel], place: shape.Place) -> str:
    name = place.path.rpartition(".")[2]
    prefix = place.path.removesuffix(name)
    siblings = list(place.owner.model_fields) if place.owner else []
    everywhere = [(path, owner) for path, owner, _ in shape.fields(schema) if path.rpartition(".")[2] == name]
    kinds = sorted({str(shape.tag_of(owner)) for path, owner in everywhere if path == place.path})
    if kinds and place.owner:
        return f"kind '{shape.tag_of(place.owner)}' has no such key (it belongs to kind {', '.join(kinds)})"
    if hint := did_you_mean(name, siblings):
        return "unknown key" + hint.replace("mean '", f"mean '{prefix}")
    if elsewhere := sorted({path for path, _ in everywhere}):
        return f"unknown key; did you mean '{elsewhere[0]}'?"
    return f"unknown key; allowed here: {', '.join(siblings) or 'nothing'}"


def _line(schema: type[BaseModel], error: ErrorDetails) -> tuple[str, str]:
    """The path that is wrong, and the sentence about it."""
    place, kind, value = shape.locate(schema, error["loc"]), error["type"], error["input"]
    path, allowed = place.path, shape.describe(place.annotation, place.metadata)
    words, tag_path = shape.choices(place.annotation), f"{place.path}.{shape.TAG}"
    reason = error["msg"].replace("Input should be", "must be")
    if kind == "extra_forbidden":
        return path, f"{path} = {shown(value)}: {_unknown_key(schema, place)}"
    if kind == "missing" and len(shape.variants(place.annotation)) < 2:
        return path, f"{path}: is required but not given; allowed: {allowed}"
    if kind in ("missing", "union_tag_not_found"):
        return tag_path, f"{tag_path}: is required but not given; allowed: {', '.join(words)}"
    if kind == "union_tag_invalid":
        tag = value.get(shape.TAG) if isinstance(value, Mapping) else value
        hint = did_you_mean(tag, words)
        return tag_path, f"{tag_path} = {shown(tag)}: is not known{hint or '; allowed: ' + ', '.join(words)}"
    if kind in ("literal_error", "enum"):
        return path, f"{path} = {shown(value)}: {reason}{did_you_mean(value, words)}"
    if kind in _NOT_A_SECTION and shape.variants(place.annotation):
        hint = f"; did you mean '{tag_path}={value}'?" if value in words else f"; allowed: {', '.join(_keys(place))}"
        return path, f"{path} = {shown(value)}: must be a section, key by key{hint}"
    if kind in ("value_error", "assertion_error"):
        given = "" if isinstance(value, Mapping | BaseModel) else f" = {shown(value)}"
        reason = reason.partition(", ")[2]
        return path, f"{path}{given}: {reason}" if path else reason
    return path, f"{path} = {shown(value)}: {reason}; allowed: {allowed}{_how_to_write(kind, value)}"


def _how_to_write(kind: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return ' (in YAML, put "quotes" around it)'
    return ", written as [a, b]" if kind in ("list_type", "tuple_type", "set_type") else ""


def _keys(place: shape.Place) -> list[str]:
    sections = shape.variants(place.annotation).values()
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def _leaves(data: Any, location: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(data, Mapping) and isinstance(tag := data.get(shape.TAG), str):
        location = (*location, tag)
    items = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if isinstance(value, Mapping | list):
            yield from _leaves(value, (*location, key))
        else:
            yield (*location, key), value


def booleans_as_numbers(schema: type[BaseModel], data: Mapping[str, Any]) -> list[str]:
    """True and false where a number belongs (pydantic would read them as 1 and 0)."""
    found = []
    for location, value in _leaves(data):
        if isinstance(value, bool):
            place = shape.locate(schema, location)
            allowed = shape.describe(place.annotation, place.metadata)
            if allowed.split()[0] in ("int", "float") and "bool" not in allowed:
                found.append(f"{place.path} = {shown(value)}: must be a number; allowed: {allowed}")
    return found


def sentences(schema: type[BaseModel], errors: Sequence[ErrorDetails]) -> list[str]:
    """One line for each thing that is wrong, in the order of the schema: path, value given, what is allowed."""
    lines: dict[str, str] = {}
    for error in errors:
        path, line = _line(schema, error)
        if path not in lines or not path:
            lines[path or line] = line
    return list(lines.values())
