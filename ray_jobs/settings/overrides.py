"""Dotted overrides, and the defaults below what the user gave."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ray_jobs.settings import schema as shape
from ray_jobs.settings import yaml12


def parse_override(text: str) -> tuple[list[str], Any]:
    """``a.b=value`` -> (["a", "b"], value). The value stays text, except ``[...``, ``{...`` and ``null``.

    Raises ValueError when ``text`` is not of that form.
    """
    path, equals, value = text.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"'{text}': is not an override; write section.key=value, such as optim.lr=1e-6")
    if value.startswith(("[", "{")) or value == "null":
        try:
            return parts, yaml12.parse(value)
        except ValueError as error:
            raise ValueError(f"{path} = '{value}': is not YAML: {error}") from error
    return parts, value


def put(data: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set the value at a dotted path, making sections on the way; list items go by their index.

    Raises ValueError when the path leads through something that is neither a section nor a list.
    """
    inner: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(inner, list):
            if not (part.isdecimal() and int(part) < len(inner)):
                allowed = f"allowed: 0 to {len(inner) - 1}" if inner else "the list is empty"
                raise ValueError(f"{'.'.join(parts)}: '{part}' is not an item of {'.'.join(parts[:depth])}; {allowed}")
            key: Any = int(part)
        elif isinstance(inner, dict):
            key = part
            if not last and inner.get(key) is None:
                inner[key] = {}
        else:
            raise ValueError(f"{'.'.join(parts)}: {'.'.join(parts[:depth])} is {inner!r}, which has no keys")
        if last:
            inner[key] = value
        else:
            inner = inner[key]


def complete(given: Mapping[str, Any], schema: type[BaseModel], default: BaseModel | None = None) -> dict[str, Any]:
    """``given`` with the values of ``default`` below it, section by section.

    A section of another ``kind`` than its default takes nothing from that default: what the user wrote for the other
    kind stays and is refused by the schema, what merely was a default goes.
    """
    explicit = {name: getattr(default, name) for name in default.model_fields_set} if default else {}
    merged = {**explicit, **given}
    for name, value in given.items():
        field = schema.model_fields.get(name)
        if field is None or not isinstance(value, Mapping):
            continue
        sections = shape.variants(field.annotation)
        below = getattr(default, name) if default else field.get_default(call_default_factory=True)
        if not isinstance(below, BaseModel) or type(below) not in sections.values():
            below = None
        tag = value.get(shape.TAG, shape.tag_of(type(below)) if below else None)
        section = next(iter(sections.values())) if len(sections) == 1 else sections.get(str(tag))
        if section is not None:
            merged[name] = complete(value, section, below if type(below) is section else None)
            if len(sections) > 1:
                merged[name][shape.TAG] = tag
    return merged
