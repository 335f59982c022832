"""A Comparison becomes report.json (every number), its schema, and report.html (one file that needs nothing else)."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from eval import plots
from eval.comparison import Comparison
from eval.gallery import Grid, galleries
from eval.section import Record
from eval.verdict import amount, cautions, claims_of, level, p_text, verdicts

TEMPLATES = Path(__file__).parent / "templates"
LIBRARIES = ("palate", "torch", "diffusers", "transformers", "peft", "open_clip_torch", "numpy", "scipy", "pillow")


@dataclass(frozen=True)
class Reproduce(Record):
    """What somebody needs to get the same report."""

    commands: list[str] = field(default_factory=list)
    config: str = ""
    """The resolved config, YAML."""


@dataclass(frozen=True)
class About(Record):
    """What report.json tells beyond the comparison's own numbers."""

    title: str
    summary: list[str]
    """The verdicts, one sentence each."""
    cautions: list[str]
    versions: dict[str, str]
    sweep: list[dict[str, Any]]
    reproduce: Reproduce
    shown: dict[str, list[list[Any]]]
    """Grid of the page -> (prompt set, index, seed) of its rows."""


def write_report(
    out_dir: str | Path,
    comparison: Comparison,
    *,
    title: str,
    training_curves: str | Path | Mapping[str, str | Path] | None = None,
    sweep: Sequence[Mapping[str, Any]] | None = None,
    reproduce: Reproduce | None = None,
) -> Path:
    """Write ``report.json``, ``report.schema.json`` and ``report.html`` into ``out_dir``, where the comparison's images
    are; returns the page.

    ``training_curves``: a metrics.jsonl, or label -> metrics.jsonl for several. ``sweep``: one dict per trial, the same
    keys in each: settings, ``delta``, further results. ``reproduce``: commands and config shown at the end.
    """
    out_dir = Path(out_dir)
    curves = {} if training_curves is None else training_curves
    files = curves if isinstance(curves, Mapping) else {"training": curves}
    grids = galleries(comparison, out_dir)
    about = About(
        title=title,
        summary=verdicts(comparison),
        cautions=cautions(comparison),
        versions=versions(),
        sweep=[dict(row) for row in sweep or []],
        reproduce=reproduce or Reproduce(),
        shown={grid.title: [[row.prompt_set, row.index, row.seed] for row in grid.rows] for grid in grids},
    )
    facts = {"$schema": "report.schema.json", **_plain(about), **comparison.numbers()}
    (out_dir / "report.json").write_text(json.dumps(facts, indent=1, allow_nan=False, default=str), "utf-8")
    (out_dir / "report.schema.json").write_text(json.dumps(report_schema(), indent=1), "utf-8")
    page = out_dir / "report.html"
    page.write_text(_render(comparison, about, grids, plots.training_curves(files)), "utf-8")
    return page


def report_schema() -> dict[str, Any]:
    """The JSON schema of report.json."""
    whole, about = (TypeAdapter(kind).json_schema() for kind in (Comparison, About))
    properties = {name: part for name, part in whole["properties"].items() if name != "scores"} | about["properties"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "report.json of a comparison",
        "type": "object",
        "properties": {"$schema": {"type": "string"}} | properties,
        "required": sorted(properties),
        "additionalProperties": False,
        "$defs": whole["$defs"] | about["$defs"],
    }


def versions() -> dict[str, str]:
    """Python and the libraries that the numbers depend on; one that is not installed as a package is left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _plain(about: About) -> dict[str, Any]:
    return TypeAdapter(About).dump_python(about, mode="json")


def _render(comparison: Comparison, about: About, grids: Sequence[Grid], curves: str | None) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    main = [d for d in comparison.headlines() if d.prompt_set == comparison.main_set]
    leading = sum(d.against == comparison.baseline for d in main)
    shown_groups = list(dict.fromkeys((row.group, row.prompt_set) for row in comparison.groups))
    contrasts = list(dict.fromkeys((d.model, d.against) for d in comparison.differences))
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        about=about,
        leading=about.summary[:leading],
        further=about.summary[leading:],
        grids=[grid for grid in grids if grid.rows],
        contrasts=contrasts,
        metrics={metric.key: metric for metric in comparison.metrics},
        levels={(row.model, row.metric, row.prompt_set): row for row in comparison.levels},
        tested={(d.model, d.against, d.metric, d.prompt_set): d for d in comparison.differences},
        trained_on=_trained_on(comparison),
        trained=_trained(comparison),
        whole=_whole,
        images=len({(row["model"], row["file"]) for row in comparison.scores}),
        counts={
            label: max((d.prompts for d in comparison.differences if d.prompt_set == label), default=0)
            for label in comparison.sets
        },
        colours=dict(zip(comparison.models, plots.COLOURS * len(comparison.models), strict=False)),
        forest=plots.forest(comparison),
        explaining=plots.forest(comparison, primary=False),
        win_rates=plots.win_rates(comparison),
        distributions=plots.distributions(comparison),
        groups=[(group, label, plots.group_bars(comparison, group, label)) for group, label in shown_groups],
        curves=curves,
        sweep_plot=plots.sweep_plot(about.sweep),
        claims=claims_of(comparison),
        signed=_signed,
        amount=amount,
        level=level,
        p_text=p_text,
        cell=_cell,
    )


def _trained_on(comparison: Comparison) -> dict[str, str]:
    """Prompt set -> how many of its prompts are among any of the training captions."""
    told = {}
    for label in dict.fromkeys(row.prompt_set for row in comparison.overlaps):
        mine = [row for row in comparison.overlaps if row.prompt_set == label]
        shared = len({index for row in mine for index in row.indices})
        unread = sum(row.captions is None for row in mine)
        count = f"{'at least ' if unread else ''}{shared} of {mine[0].prompts}"
        told[label] = "unknown" if unread == len(mine) else count
    return told


def _trained(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Model -> column -> who labelled its data and what picked it, with the columns that say something of any model."""
    columns = {"Labelled by": "labelled_by", "Picked by": "picked_by"}
    told = {
        name: {
            column: ", ".join(getattr(comparison.training[name], key)) if name in comparison.training else ""
            for column, key in columns.items()
            if any(getattr(facts, key) for facts in comparison.training.values())
        }
        for name in comparison.models
    }
    return told if any(any(row.values()) for row in told.values()) else {}


def _signed(value: float) -> str:
    """A correlation."""
    return f"{value:.2f}".replace("-", "\u2212")


def _whole(value: float) -> str:
    """A rating with its sign."""
    return f"{round(value):+d}".replace("-", "\u2212")


def _cell(value: Any) -> str:
    """A value of a sweep's table as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
