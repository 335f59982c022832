"""YAML as people expect it: version 1.2 words, numbers such as ``1e-6``, no key twice, nothing executable.

PyYAML speaks YAML 1.1, where ``1e-6`` is a string, ``no`` is false, ``010`` is eight and ``1:30`` is ninety.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_WORDS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN\0"),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    _MERGE: (r"<<", "<"),
}


class Loader(yaml.SafeLoader):
    """Reads YAML 1.2 scalars; refuses a key that is given twice and a node that contains itself."""

    yaml_implicit_resolvers = {}


class Dumper(yaml.SafeDumper):
    """Writes what ``Loader`` reads back unchanged."""

    yaml_implicit_resolvers = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in _WORDS.items():
    _first_characters = ["" if character == "\0" else character for character in _first]
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first_characters)


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        line = key.start_mark.line + 1
        if key.value in seen:
            problem = f"the key {key.value!r} is given twice, first in line {seen[key.value]}"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        seen[key.value] = line
    return loader.construct_mapping(node, deep=True)


def _sequence(loader: Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _integer(loader: Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
Loader.add_constructor("tag:yaml.org,2002:seq", _sequence)
Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def _write_float(dumper: Dumper, value: float) -> yaml.ScalarNode:
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _write_text(dumper: Dumper, value: str) -> yaml.ScalarNode:
    # PyYAML folds these line ends when they stand in other than double quotes.
    style = '"' if any(mark in value for mark in "\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


Dumper.add_representer(float, _write_float)
Dumper.add_representer(str, _write_text)


def parse(text: str) -> Any:
    """The one document in ``text``. Raises ValueError with line and column when it is not YAML."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read(path: str | os.PathLike[str]) -> Any:
    """The document in a file. Raises ValueError when the file cannot be read or is not YAML."""
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error


def write(data: Any) -> str:
    """``data`` (mappings, sequences, scalars) as block YAML in its own key order."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
