"""``run.html``: how a training run stands, in one file that needs nothing else."""

import base64
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from dpo_core.diagnostics import BUCKETS
from ray_jobs.record.readings import SHOWN
from ray_jobs.record.run_status import RunStatus
from ray_jobs.validation.book import PREFIX
from ray_jobs.validation.measure import BY_TIMESTEP
from ray_jobs.validation.told import newest_grid, validation_rows

TEMPLATE = Path(__file__).parents[1] / "web" / "run.html.j2"
PANELS = (
    {"train/loss": "loss", "train/implicit_accuracy": "implicit accuracy", "train/margin": "margin"},
    {
        "train/chosen_error_vs_reference": "chosen error vs reference",
        "train/rejected_error_vs_reference": "rejected error vs reference",
        "train/gradient_factor": "gradient factor",
    },
    {"train/grad_norm": "gradient norm", "train/lr": "learning rate", "data/quarantined": "pairs in quarantine"},
)
"""What is drawn of the training, a row of panels each."""
HELD_OUT = {
    "validation/implicit_accuracy": "implicit accuracy",
    "validation/chosen_error_vs_reference": "chosen error vs reference",
    "validation/rejected_error_vs_reference": "rejected error vs reference",
}
IN_TILES = {
    "train/loss": "",
    "train/implicit_accuracy": "validation/implicit_accuracy",
    "train/margin": "",
    "train/chosen_error_vs_reference": "validation/chosen_error_vs_reference",
    "train/rejected_error_vs_reference": "validation/rejected_error_vs_reference",
    "train/gpu_memory_gb": "",
}
"""The numbers that stand large, and what of the held-out ones stands under each."""
ALARMS = ("error", "alarm", "skipped updates", "validation failed")


def write_page(status: RunStatus) -> Path:
    """``run.html`` in the run folder: facts, curves, sample images and config."""
    from jinja2 import Environment

    from eval.plots import training_curves

    name, folder = status.folder.name, status.folder
    plots = [
        plot for curves in PANELS if status.rows and (plot := training_curves({name: folder / "metrics.jsonl"}, curves))
    ]
    rows = [row for row in validation_rows(folder) if PREFIX + "margin" in row]
    grid, facts = newest_grid(folder), status.facts()
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(
        name=name,
        facts=facts,
        step=status.step,
        total=status.total,
        tiles=tiles(status, facts, rows[-1] if rows else {}),
        in_tiles={"updates", "speed", "ends in about", *(SHOWN[key] for key in IN_TILES)},
        alarms=ALARMS,
        plots=plots,
        held_out=held_out_curves(name, rows) if rows else None,
        buckets=by_noise(rows[-1]) if rows else None,
        validated=rows[-1]["step"] if rows else 0,
        grid=base64.b64encode(grid.read_bytes()).decode() if grid is not None else None,
        config=yaml.safe_dump(status.config, sort_keys=False),
        running=status.state in ("running", "starting", "stopping"),
        written=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.now)),
    )
    path = folder / "run.html"
    aside = path.with_name(".run.html.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def tiles(status: RunStatus, facts: dict[str, str], held_out: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and a remark of what stands large."""
    percent = f"{100 * status.step / status.total:.0f} %"
    ends = f"{percent}, ends in about {facts['ends in about']}" if "ends in about" in facts else percent
    found = [("updates", f"{status.step:,} of {status.total:,}", ends)]
    if "speed" in facts:
        pairs, _, each = facts["speed"].partition(", ")
        found.append(("speed", pairs, each))
    last = status.rows[-1] if status.rows else {}
    for key, other in IN_TILES.items():
        if key in last:
            remark = f"held out {held_out[other]:.4g}, update {held_out['step']:,}" if other in held_out else ""
            found.append((SHOWN[key], f"{last[key]:.4g}", remark))
    return found


def held_out_curves(name: str, rows: list[dict[str, Any]]) -> str | None:
    """Curves of the rows of one setup alone: numbers of another one would look like a jump."""
    from eval.plots import training_curves

    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        return training_curves({name: file.name}, HELD_OUT, smoothed=False)


def by_noise(row: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """The numbers of a validated checkpoint in each part of the noise schedule, little noise first."""
    table = []
    for bucket in range(BUCKETS):
        keys = {name: f"{PREFIX}{name}_by_timestep/{bucket}" for name in BY_TIMESTEP}
        if all(key in row for key in keys.values()):
            label = f"{100 * bucket // BUCKETS} to {100 * (bucket + 1) // BUCKETS} %"
            table.append((label, {name.replace("_", " "): f"{row[key]:.3g}" for name, key in keys.items()}))
    return table
