"""What a comparison leaves besides its report: metrics, MLflow tables, registered versions, a console table."""

import json
import re
import time
from pathlib import Path
from typing import Any

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table

from eval.comparison import Comparison
from eval.provenance import training_of
from eval.verdict import amount, improved, level, p_text
from ray_jobs.record.tracking import Tracker


def record(comparison: Comparison, tracker: Tracker, out: Path) -> None:
    """Tables, images and the report of a comparison whose report lies in ``out``."""
    tracker.log_table(difference_columns(comparison), "eval/differences.json")
    tracker.log_table(image_columns(comparison, out), "eval/images.json")
    tracker.log_image(samples_grid(comparison, out), "eval/samples", 0)
    for name in ("report.html", "report.json", "report.schema.json"):
        tracker.log_artifact(out / name)


def register(comparison: Comparison, tracker: Tracker, out: Path, registered: str, places: dict[str, str]) -> None:
    """Make every compared model but the baseline a version of the model ``registered``; say which may be champion.

    The weights stay where they are (``places``, by name): a version holds their place and hash, the model's provenance
    and the result.
    """
    better = [name for name in comparison.models if name != comparison.baseline and improved(comparison, name)]
    best = max(better, key=lambda name: comparison.difference(name).win_rate, default=None)
    for name in comparison.models:
        if name == comparison.baseline:
            continue
        d, place = comparison.difference(name), Path(places[name])
        tracker.log_version(
            registered,
            folder=f"models/{name}",
            files=[file for file in (place / "provenance.json", out / "report.json") if file.is_file()],
            tags={
                "model": name,
                "weights": comparison.weights.get(name, ""),
                "folder": str(place),
                "protocol": str(comparison.protocol.get("hash", "")),
                "metric": comparison.headline.key,
                "delta": f"{d.delta:.6g}",
                "low": f"{d.low:.6g}",
                "high": f"{d.high:.6g}",
                "labelled_by": ", ".join(training_of(place).labelled_by),
            },
            alias="champion" if name == best else None,
        )


def difference_columns(comparison: Comparison) -> dict[str, list[Any]]:
    """Every difference of the comparison, column by column."""
    names = ("model", "against", "metric", "prompt_set", "delta", "low", "high", "win_rate", "p", "p_adjusted", "shown")
    return {name: [getattr(row, name) for row in comparison.differences] for name in names}


def image_columns(comparison: Comparison, folder: Path, *, prompts: int = 16) -> dict[str, list[Any]]:
    """The first image of the first ``prompts`` prompts and its headline score, a row each with a column per model."""
    headline = comparison.headline
    first: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in comparison.scores:
        if (row["scorer"], row["column"]) == (headline.scorer, headline.column):
            first.setdefault((row["prompt_set"], row["prompt_index"]), {}).setdefault(row["model"], row)
    shown = [first[key] for key in sorted(first)[:prompts]]
    columns: dict[str, list[Any]] = {"prompt": [row[comparison.baseline]["prompt"] for row in shown]}
    for name in comparison.models:
        columns[name] = [thumbnail(folder / row[name]["file"]) for row in shown]
        columns[f"{name} {headline.key}"] = [row[name]["score"] for row in shown]
    return columns


def thumbnail(file: Path, side: int = 256) -> Image.Image:
    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def samples_grid(comparison: Comparison, folder: Path, *, prompts: int = 8, side: int = 128) -> Image.Image:
    """The first image of the first ``prompts`` prompts: a row per prompt, a column per model, in the models' order."""
    first: dict[tuple[tuple[str, int], str], str] = {}
    for row in comparison.scores:
        first.setdefault(((row["prompt_set"], row["prompt_index"]), row["model"]), row["file"])
    shown = sorted({prompt for prompt, _ in first})[:prompts]
    grid = Image.new("RGB", (side * len(comparison.models), side * len(shown)))
    for y, prompt in enumerate(shown):
        for x, model in enumerate(comparison.models):
            with Image.open(folder / first[prompt, model]) as image:
                grid.paste(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (x * side, y * side))
    return grid


def note_metrics(comparison: Comparison, file: Path) -> None:
    """Append one line: ``eval/<metric>/<model>/mean`` of every model, ``delta`` and ``win_rate`` of all but the base.

    Further prompt sets and the control have their name in the path too.
    """
    values: dict[str, float] = {}

    def path(row: Any) -> str:
        parts = [row.metric, row.model]
        parts += [f"vs_{row.against}"] if getattr(row, "against", comparison.baseline) != comparison.baseline else []
        path = "/".join(["eval", *([row.prompt_set] if row.prompt_set != comparison.main_set else []), *parts])
        return re.sub(r"[^\w./ -]", "_", path)  # MLflow takes nothing else

    for row in comparison.levels:
        values[f"{path(row)}/mean"] = row.mean
    for row in comparison.differences:
        values |= {f"{path(row)}/delta": row.delta, f"{path(row)}/win_rate": row.win_rate}
    step = len(file.read_text("utf-8").splitlines()) if file.is_file() else 0
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")


def results_tables(comparison: Comparison) -> list[Table]:
    """For the console, a table for each prompt set: every model against the baseline and the control, on what each
    scorer decides by. The other columns are in the report."""
    metrics = {metric.key: metric for metric in comparison.metrics if metric.primary}
    levels = {(row.model, row.metric, row.prompt_set): row.mean for row in comparison.levels}
    tables = []
    for label in comparison.sets:
        counted = max((d.prompts for d in comparison.differences if d.prompt_set == label), default=0)
        title = f"{label}, {counted} {comparison.unit}s: differences with 95 % intervals"
        table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("models", "metric", "mean", "difference", "wins", "p adj."):
            table.add_column(name, justify="left" if name in ("models", "metric") else "right")
        for d in comparison.differences:
            if d.prompt_set != label or d.metric not in metrics:
                continue
            m = metrics[d.metric]
            table.add_row(
                f"{d.model} \N{MINUS SIGN} {d.against}",
                d.metric,
                level(levels[d.model, d.metric, label], m),
                f"{amount(d.delta, m, bare=True)} \\[{amount(d.low, m, bare=True)}, {amount(d.high, m, bare=True)}]",
                f"{d.win_rate:.0%}",
                p_text(d.p_adjusted),
                style="bold" if d.shown else None,
            )
        tables.append(table)
    return tables
