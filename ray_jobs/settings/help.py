"""The ``--help`` of a verb, written from the schema: every field's name, type, default and documentation."""

import inspect
import textwrap
from collections.abc import Collection, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ray_jobs.settings import schema as shape
from ray_jobs.settings.loading import ConfigError
from ray_jobs.settings.problems import did_you_mean

WIDTH = 98
LONG = 120
"""Lines; of a longer page only the contents are shown."""
ALL = "all"

USAGE = """\
usage: palate {verb} [--config FILE] [--dry-run] [section.key=value ...]

{doc}

  --config FILE      a YAML file with any of the sections below
  --dry-run          print the resolved config and the plan, then stop
  --help SECTION     every setting of a section, such as {example}; several may be named{everything}
  section.key=value  change one value; wins over the file
"""
EVERYTHING = """
  --help all         every setting there is: {count} lines"""


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


def _field(path: str, field: FieldInfo, value: Any, indent: int, items: bool = True) -> Iterator[str]:
    """A field that is no section: its line, its documentation, and with ``items`` the sections that it may hold."""
    pad = " " * indent
    head = f"{pad}{path}: {shape.describe(field.annotation, field.metadata)}  ({_default(field, value)})"
    yield from _wrapped(head, indent + 8)
    yield from _paragraphs(field.description or "", indent + 4)
    held = shape.variants(shape.item_type(field.annotation)) if items else {}
    for tag, item in held.items():
        kind = f" with {shape.TAG} {tag}" if len(held) > 1 else ""
        yield from ["", *_wrapped(f"{pad}each item of {path}{kind}: {_first_line(item)}", indent + 4)]
        yield from _section(item, f"{path}.N.", None)


def _section(
    section: type[BaseModel], path: str, default: BaseModel | None, names: Collection[str] | None = None
) -> Iterator[str]:
    """The fields of one section, or those in ``names``; then the sections inside it."""
    default = default if type(default) is section else None
    inner = []
    for name, field in section.model_fields.items():
        if name == shape.TAG or (names is not None and name not in names):
            continue
        value = getattr(default, name) if default is not None else PydanticUndefined
        if shape.variants(field.annotation):
            inner.append((f"{path}{name}", field, value))
        else:
            yield from _field(f"{path}{name}", field, value, 2)
    for name, field, value in inner:
        yield from _group(name, field, value)


def _group(path: str, field: FieldInfo, default: Any = PydanticUndefined) -> Iterator[str]:
    """A field that is a section: a heading, its documentation, and every class that it can be."""
    sections = shape.variants(field.annotation)
    if default is PydanticUndefined and not field.is_required():
        default = field.get_default(call_default_factory=True)
    yield from ["", *_wrapped(path.upper() + _note(sections, default), 4)]
    yield from _paragraphs(_said_of(field), 2)
    common = _common(list(sections.values()), f"{path}.", default)
    if common:
        yield from _section(next(iter(sections.values())), f"{path}.", default, common)
    if len(sections) > 1:
        for tag, section in sections.items():
            yield from ["", *_wrapped(f"  {path}.{shape.TAG}={tag}: {_first_line(section)}", 6)]
            yield from _section(section, f"{path}.", default, set(section.model_fields) - common)


def _common(sections: Sequence[type[BaseModel]], path: str, default: Any) -> set[str]:
    """The fields of which there is the same to say in all of ``sections``."""

    def said(section: type[BaseModel], name: str) -> list[str]:
        return list(_section(section, path, default, {name}))

    first, *others = sections
    return {name for name in first.model_fields if all(said(other, name) == said(first, name) for other in others)}


def _note(sections: dict[str, type[BaseModel]], default: Any) -> str:
    chosen = f"default {shape.tag_of(type(default))}" if isinstance(default, BaseModel) else "default null"
    state = "required" if default is PydanticUndefined else chosen
    if len(sections) == 1:
        return "" if isinstance(default, BaseModel) else f" ({state})"
    return f" ({shape.TAG}: {' | '.join(sections)}; {state})"


def _said_of(field: FieldInfo) -> str:
    sections = shape.variants(field.annotation)
    return field.description or (_first_line(*sections.values()) if len(sections) == 1 else "")


def _contents(schema: type[BaseModel], path: str = "") -> Iterator[str]:
    """The sections of ``schema``, and those inside them, with their kinds and what they are for."""
    for name, field in schema.model_fields.items():
        sections = shape.variants(field.annotation)
        if not sections:
            continue
        default = PydanticUndefined if field.is_required() else field.get_default(call_default_factory=True)
        indent = 2 * len(path.split("."))
        head = _wrapped(f"{' ' * (indent - 2)}{path}{name}{_note(sections, default)}", indent + 6)
        yield from [*([] if path else [""]), *head, *_paragraphs(_said_of(field), indent + 2)]
        if len(sections) == 1 and not path:
            yield from _contents(*sections.values(), path=f"{name}.")


def _whole(name: str, field: FieldInfo, value: Any = PydanticUndefined, items: bool = True) -> list[str]:
    if shape.variants(field.annotation):
        return list(_group(name, field, value))
    return ["", *_field(name, field, value, 0, items)]


def _everything(section: type[BaseModel], path: str = "", default: Any = None) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Every field below ``section``: dotted path, the field, and its default in this place."""
    for name, field in section.model_fields.items():
        value = getattr(default, name) if type(default) is section else PydanticUndefined
        yield f"{path}{name}", field, value
        if value is PydanticUndefined and not field.is_required():
            value = field.get_default(call_default_factory=True)
        for inner in shape.variants(field.annotation).values():
            yield from _everything(inner, f"{path}{name}.", value)


def _some(schema: type[BaseModel], only: Sequence[str]) -> list[str]:
    """What there is to say of the sections or fields at these dotted names."""
    texts: dict[str, dict[str, None]] = {}
    for path, field, value in _everything(schema):
        # Several kinds of a section may have the field; what they say alike is said once.
        texts.setdefault(path, {})["\n".join(_whole(path, field, value)) if path in only else ""] = None
    for name in only:
        if name not in texts:
            hint = did_you_mean(name, list(texts)) or f"; allowed: {', '.join(schema.model_fields)}"
            raise ConfigError([f"--help {name}: there is no such section{hint}"], "the command line")
    return [line for name in only for text in texts[name] for line in text.splitlines()]


def help_text(schema: type[BaseModel], verb: str, doc: str, only: Sequence[str] = ()) -> str:
    """The page, at most 98 columns wide: every setting, or, where that is long, the sections there are.

    ``only`` names sections whose every setting is wanted, or ``all``. Raises ConfigError for one that there is not.
    """
    fields = schema.model_fields
    if only and ALL not in only:
        return "\n".join(_some(schema, only)).strip("\n")
    page = [line for name, field in fields.items() for line in _whole(name, field)]
    everything = ""
    if len(page) > LONG and ALL not in only:
        everything = EVERYTHING.format(count=f"{len(page):,}")
        plain = {name: field for name, field in fields.items() if not shape.variants(field.annotation)}
        page = [line for name, field in plain.items() for line in _whole(name, field, items=False)]
        page += ["", "SECTIONS", *_contents(schema)]
    example = next((name for name, field in fields.items() if shape.variants(field.annotation)), next(iter(fields)))
    head = USAGE.format(verb=verb, doc="\n".join(_paragraphs(doc, 0)), example=example, everything=everything)
    return "\n".join([*head.splitlines(), *page]).strip("\n")
