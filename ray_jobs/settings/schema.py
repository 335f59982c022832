"""What errors, overrides and help ask of a config schema: nested pydantic models, unions tagged by ``kind``."""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

TAG = "kind"
"""The field whose value chooses the class of a tagged union."""

_WORDS = {type(None): "null", Path: "path", Any: "anything"}
_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of", "pattern": "matching"}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}


@dataclass(frozen=True)
class Place:
    """Where a location of a pydantic error points to."""

    path: str
    """Dotted, as an override is written."""
    annotation: Any
    """The type that is wanted there; None when the schema has nothing there."""
    metadata: Sequence[Any]
    """The constraints of the field."""
    owner: type[BaseModel] | None
    """The section that should hold the last part of the path."""


def tag_of(section: type[BaseModel]) -> str | None:
    """The value of ``kind`` that chooses this class, None for a class without tag."""
    field = section.model_fields.get(TAG)
    return str(get_args(field.annotation)[0]) if field and get_origin(field.annotation) is Literal else None


def variants(annotation: Any) -> dict[str, type[BaseModel]]:
    """The section classes that a value of this type can be, by tag (by class name where there is none)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {tag_of(annotation) or annotation.__name__: annotation}
    if get_origin(annotation) is Annotated:
        return variants(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return {tag: section for part in get_args(annotation) for tag, section in variants(part).items()}
    return {}


def item_type(annotation: Any) -> Any:
    """The type of the elements of a list, tuple or mapping; None for everything else."""
    if get_origin(annotation) is Annotated:
        return item_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for part in get_args(annotation) if (found := item_type(part)) is not None), None)
    if get_origin(annotation) in (list, set, frozenset, tuple, dict, Sequence, Mapping):
        return get_args(annotation)[-1 if get_origin(annotation) in (dict, Mapping) else 0]
    return None


def locate(schema: type[BaseModel], location: Sequence[str | int]) -> Place:
    """Follow ``location`` (field names, tags and indices, as in a pydantic error) through ``schema``."""
    annotation, metadata, owner, path = schema, (), None, []
    for part in location:
        choices = variants(annotation)
        if part in choices and len(choices) > 1:
            annotation = choices[str(part)]
            continue
        section = next(iter(choices.values())) if len(choices) == 1 else None
        if section is not None:
            field = section.model_fields.get(str(part))
            annotation, metadata = (field.annotation, field.metadata) if field else (None, ())
            owner = section
        elif (element := item_type(annotation)) is not None:
            annotation, metadata, owner = element, (), None
        elif annotation is not None:
            break  # the arm of a union of plain types, such as int | str
        path.append(str(part))
    return Place(".".join(path), annotation, metadata, owner)


def fields(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], FieldInfo]]:
    """Every field below ``schema``: dotted path, the section it stands in, and the field itself."""
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}", schema, field
        for section in variants(field.annotation).values():
            yield from fields(section, f"{prefix}{name}.")


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What may be written there, in words: ``float > 0, <= 1`` or ``full | lora | null``."""
    base, arguments = get_origin(annotation), get_args(annotation)
    if base is Annotated:
        inner = [found for extra in arguments[1:] for found in getattr(extra, "metadata", [extra])]
        return describe(arguments[0], [*inner, *metadata])
    if variants(annotation):
        return "section | null" if type(None) in arguments else "section"
    if base in (Union, types.UnionType):
        text = " | ".join(describe(part) for part in arguments if part is not type(None))
    elif base is Literal:
        text = " | ".join(str(choice) for choice in arguments)
    elif base in (dict, Mapping):
        text = f"map of {describe(arguments[0])} to {describe(arguments[1])}"
    elif base is tuple and arguments[-1] is not Ellipsis:
        text = f"[{', '.join(describe(part) for part in arguments)}]"
    elif base is not None and arguments:
        text = f"list of {describe(arguments[0])}"
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        text = " | ".join(str(member.value) for member in annotation)
    else:
        text = _WORDS.get(annotation) or getattr(annotation, "__name__", str(annotation))
    limits = [f"{sign} {getattr(m, key)}" for m in metadata for key, sign in _LIMITS.items() if hasattr(m, key)]
    lengths = [f"{word} {getattr(m, key)} long" for m in metadata for key, word in _LENGTHS.items() if hasattr(m, key)]
    optional = " | null" if type(None) in arguments else ""
    return " ".join([text, ", ".join([*limits, *lengths])]).strip() + optional


def choices(annotation: Any) -> list[str]:
    """The words that a closed type allows (literals, enums, tags), [] for an open type."""
    if len(found := variants(annotation)) > 1:
        return list(found)
    base, arguments = get_origin(annotation), get_args(annotation)
    if base is Literal:
        return [str(choice) for choice in arguments]
    if base in (Union, types.UnionType, Annotated):
        return [choice for part in arguments for choice in choices(part)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    return []
