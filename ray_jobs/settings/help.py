"""The ``--help`` of a verb, written from the schema: every field's name, type, default and documentation."""

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ray_jobs.config import ConfigError
from ray_jobs.settings import schema as shape
from ray_jobs.settings.problems import did_you_mean

WIDTH = 98

USAGE = """\
usage: palate {verb} [--config FILE] [--dry-run] [section.key=value ...]

{doc}

  --config FILE        a YAML file with any of the sections below
  --dry-run            print the resolved config and the plan, then stop
  --help [SECTION...]  print this page, or only some of its sections
  section.key=value    change one value; wins over the file
"""


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent)


def _paragraphs(text: str, indent: int) -> list[str]:
    blocks = [" ".join(block.split()) for block in inspect.cleandoc(text).split("\n\n")]
    return [line for block in blocks if block for line in _wrapped(" " * indent + block, indent)]


def _default(field: FieldInfo, value: Any = PydanticUndefined) -> str:
    if value is PydanticUndefined:
        if field.is_required():
            return "required"
        if field.default_factory is not None and not shape.variants(field.annotation):
            value = field.get_default(call_default_factory=True)
        else:
            value = field.default
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Path | str):
        return f"default {value}" if str(value) else 'default ""'
    if isinstance(value, tuple):
        value = list(value)
    return "default " + {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _first_line(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").strip().split("\n\n")[0].split())


def _field(path: str, field: FieldInfo, value: Any, indent: int) -> Iterator[str]:
    """A field that is no section: its line, its documentation, and the sections it may hold as items."""
    pad = " " * indent
    head = f"{pad}{path}: {shape.describe(field.annotation, field.metadata)}  ({_default(field, value)})"
    yield from _wrapped(head, indent + 8)
    yield from _paragraphs(field.description or "", indent + 4)
    items = shape.variants(shape.item_type(field.annotation))
    for tag, item in items.items():
        kind = f" with {shape.TAG} {tag}" if len(items) > 1 else ""
        yield from ["", *_wrapped(f"{pad}each item of {path}{kind}: {_first_line(item)}", indent + 4)]
        yield from _section(item, f"{path}.N.", None)


def _section(section: type[BaseModel], path: str, default: BaseModel | None) -> Iterator[str]:
    """The fields of one section, then the sections inside it."""
    inner = []
    for name, field in section.model_fields.items():
        value = getattr(default, name) if default is not None else PydanticUndefined
        if shape.variants(field.annotation):
            inner.append((f"{path}{name}", field, value))
        elif name != shape.TAG:
            yield from _field(f"{path}{name}", field, value, 2)
    for name, field, value in inner:
        yield from _group(name, field, value)


def _group(path: str, field: FieldInfo, default: Any = PydanticUndefined) -> Iterator[str]:
    """A field that is a section: a heading, its documentation, and every class that it can be."""
    sections = shape.variants(field.annotation)
    if default is PydanticUndefined and not field.is_required():
        default = field.get_default(call_default_factory=True)
    note = " (default null)" if default is None else ""
    if len(sections) > 1:
        chosen = shape.tag_of(type(default)) if isinstance(default, BaseModel) else None
        state = f"default {chosen}" if chosen else "default null" if default is None else "required"
        note = f" ({shape.TAG}: {' | '.join(sections)}; {state})"
    yield from ["", *_wrapped(path.upper() + note, 4)]
    yield from _paragraphs(field.description or (_first_line(*sections.values()) if len(sections) == 1 else ""), 2)
    for tag, section in sections.items():
        if len(sections) > 1:
            yield from ["", *_wrapped(f"  {path}.{shape.TAG}={tag}: {_first_line(section)}", 6)]
        yield from _section(section, f"{path}.", default if type(default) is section else None)


def help_text(schema: type[BaseModel], verb: str, doc: str, only: Sequence[str] = ()) -> str:
    """The page, at most 98 columns wide; only the sections named in ``only`` where some are named.

    Raises ConfigError for a section that the schema does not have.
    """
    known = schema.model_fields
    for name in only:
        if name not in known:
            hint = did_you_mean(name, list(known)) or f"; allowed: {', '.join(known)}"
            raise ConfigError([f"--help {name}: there is no such section{hint}"], "the command line")
    lines = [] if only else USAGE.format(verb=verb, doc="\n".join(_paragraphs(doc, 0))).splitlines()
    for name, field in known.items():
        if only and name not in only:
            continue
        if shape.variants(field.annotation):
            lines += _group(name, field)
        else:
            lines += ["", *_field(name, field, PydanticUndefined, 0)]
    return "\n".join(lines).strip("\n")
