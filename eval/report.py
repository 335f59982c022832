"""A Comparison becomes report.json (every number) and report.html (one file that needs nothing else)."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval import plots
from eval.comparison import Comparison, Difference, Metric
from eval.gallery import galleries

TEMPLATES = Path(__file__).parent / "templates"
LIBRARIES = ("palate", "torch", "diffusers", "transformers", "peft", "open_clip_torch", "numpy", "scipy", "pillow")
ALPHA = 0.05


@dataclass(frozen=True)
class Reproduce:
    """What somebody needs to get the same report."""

    commands: list[str] = field(default_factory=list)
    config: str = ""
    """The resolved config, YAML."""


def write_report(
    out_dir: str | Path,
    comparison: Comparison,
    *,
    title: str,
    training_curves: str | Path | Mapping[str, str | Path] | None = None,
    sweep: Sequence[Mapping[str, Any]] | None = None,
    reproduce: Reproduce | None = None,
) -> Path:
    """Write ``report.json`` and ``report.html`` into ``out_dir``, where the comparison's images are; returns the page.

    ``training_curves``: a metrics.jsonl, or label -> metrics.jsonl for several. ``sweep``: one dict per trial, the same
    keys in each: settings, ``delta``, further results. ``reproduce``: commands and config shown at the end.
    """
    out_dir = Path(out_dir)
    reproduce = reproduce or Reproduce()
    curves = {} if training_curves is None else training_curves
    files = curves if isinstance(curves, Mapping) else {"training": curves}
    verdicts = [
        verdict(d, comparison.headline, comparison.baseline)
        for d in comparison.differences
        if d.metric == comparison.headline.key
    ]
    grids = galleries(comparison, out_dir)
    facts = {
        "title": title,
        "summary": verdicts,
        **comparison.numbers(),
        "versions": versions(),
        "sweep": [dict(row) for row in sweep or []],
        "reproduce": {"commands": reproduce.commands, "config": reproduce.config},
        "shown": {name: [[row.prompt, row.seed] for row in rows] for name, _, rows in grids},
    }
    (out_dir / "report.json").write_text(json.dumps(facts, indent=1, allow_nan=False, default=str), "utf-8")
    page = out_dir / "report.html"
    page.write_text(
        _render(
            comparison,
            title=title,
            verdicts=verdicts,
            grids=grids,
            reproduce=reproduce,
            curves=plots.training_curves(files),
            sweep=list(sweep or []),
            sweep_plot=plots.sweep_plot(sweep or []),
        ),
        "utf-8",
    )
    return page


def verdict(difference: Difference, metric: Metric, baseline: str) -> str:
    """One plain sentence. A winner is only named if p stays below 0.05 after Holm's adjustment."""
    d, name = difference, f"{metric.scorer}/{metric.column}"
    numbers = f"{amount(d.delta, metric)} [{amount(d.low, metric, bare=True)}, {amount(d.high, metric, bare=True)}]"
    rate = f"wins {d.win_rate:.0%} [{d.win_low:.0%}, {d.win_high:.0%}] of {d.prompts} prompts (ties count half)"
    if (d.p if d.p_holm is None else d.p_holm) < ALPHA:
        better = (d.delta > 0) == metric.higher_is_better
        return f"{d.model} {'beats' if better else 'is worse than'} {baseline} on {name}: {numbers}, {rate}."
    told = (
        ""
        if d.minimum_detectable is None
        else (
            f" A difference of {amount(d.minimum_detectable, metric).lstrip('+')} would show in four of five such runs."
        )
    )
    return f"No difference shown between {d.model} and {baseline} on {name}: {numbers}, {rate}.{told}"


def amount(value: float, metric: Metric, *, bare: bool = False) -> str:
    """A difference with its sign: in points (hundredths) for shares, as it is for other scores."""
    text = f"{100 * value:+.1f}" if metric.is_share else f"{value:+.3f}"
    return text.replace("-", "\u2212") + (" points" if metric.is_share and not bare else "")


def level(value: float, metric: Metric) -> str:
    return f"{100 * value:.1f} %" if metric.is_share else f"{value:.3f}"


def p_text(p: float | None) -> str:
    return "" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def versions() -> dict[str, str]:
    """Python and the libraries that the numbers depend on; one that is not installed as a package is left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _render(comparison: Comparison, **parts: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metrics = {metric.key: metric for metric in comparison.metrics}
    helpers = {"amount": amount, "level": level, "p_text": p_text, "cell": _cell}
    groups = list(dict.fromkeys(row.group for row in comparison.groups))
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        metrics=metrics,
        forest=plots.forest(comparison),
        groups=[(group, plots.group_bars(comparison, group)) for group in groups],
        alpha=ALPHA,
        prompts=len({row["prompt_index"] for row in comparison.scores}),
        images=len({(row["model"], row["file"]) for row in comparison.scores}),
        versions=versions(),
        levels={(row.model, row.metric): row for row in comparison.levels},
        tested={(row.model, row.metric): row for row in comparison.differences},
        colours=dict(zip(comparison.models, plots.COLOURS * len(comparison.models), strict=False)),
        **parts,
        **helpers,
    )


def _cell(value: Any) -> str:
    """A value of a sweep's table as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
