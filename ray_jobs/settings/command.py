"""The command line that every verb shares."""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from ray_jobs.settings.help import help_text
from ray_jobs.settings.loading import ConfigError, load_config, to_yaml
from ray_jobs.settings.problems import did_you_mean

S = TypeVar("S", bound=BaseModel)

FLAGS = ("--config", "--dry-run", "--help")
INTERRUPTED = 130


def show(text: str) -> None:
    """Print to stdout; a reader that has gone away (``| head``) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def interrupted() -> int:
    """Say so in one line; returns the exit code of an interrupted command."""
    complain("interrupted")
    return INTERRUPTED


def _parse(argv: list[str]) -> tuple[str | None, list[str], set[str]]:
    """The config file, the words that are no flags, and the flags. Raises ConfigError."""
    config, words, flags, problems, rest = None, [], set(), [], list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag == "--config":
            if not equals and not rest:
                problems.append("--config: needs a file name")
            elif config is not None:
                problems.append(f"--config: is given twice, first as '{config}'")
            else:
                config = value if equals else rest.pop(0)
        elif word in ("--help", "-h", "--dry-run"):
            flags.add("--help" if word == "-h" else word)
        elif word.startswith("-"):
            hint = did_you_mean(flag, FLAGS) or f"; allowed: {', '.join(FLAGS)}"
            problems.append(f"{word}: is not known{hint}")
        elif not equals and word.endswith((".yaml", ".yml")):
            problems.append(f"{word}: did you mean '--config {word}'?")
        else:
            words.append(word)
    if problems:
        raise ConfigError(problems, "the command line")
    return config, words, flags


def _rows(rows: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def run_verb(
    schema: type[S],
    run: Callable[[S], None],
    plan: Callable[[S], list[tuple[str, str]]],
    argv: list[str] | None,
    doc: str,
    verb: str | None = None,
) -> int:
    """The command line of one verb: ``[--config FILE] [--dry-run] [--help [section]] [section.key=value ...]``.

    ``run`` does the work. ``plan`` says what would be done, as (name, value) rows, and is shown by ``--dry-run``.
    ``argv`` is ``sys.argv[1:]`` when None. Returns the exit code: 0; 1 after a ValueError of ``run``, told in one line;
    2 when the command line or the config is wrong; 130 when interrupted. ``verb`` is what help calls the verb, where
    that is not the name of its module.
    """
    try:
        path, words, flags = _parse(sys.argv[1:] if argv is None else argv)
        if "--help" in flags:
            only = [word for word in words if "=" not in word]
            show(help_text(schema, verb=verb or Path(inspect.getfile(run)).stem, doc=doc, only=only))
            return 0
        config = load_config(schema, path, words)
        if "--dry-run" in flags:
            show(f"{to_yaml(config)}\nPlan\n{_rows(plan(config))}")
            return 0
        run(config)
        return 0
    except ConfigError as error:
        complain(str(error))
        return 2
    except ValueError as error:
        complain(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return interrupted()
