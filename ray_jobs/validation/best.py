"""``RUN/best``: the model of the checkpoint that is best by a held-out number, whatever becomes of the checkpoint."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.provenance import PICKED_BY
from ray_jobs.validation.book import PREFIX, WORK
from ray_jobs.validation.section import BestSection

log = logging.getLogger(__name__)
FOLDER = "best"
OLD = f"{WORK}/best.old"


def picked(run_dir: Path) -> dict[str, Any] | None:
    """What picked the model in ``RUN/best``: ``name`` of the metric, ``mode``, ``step``, ``value``, ``setup``."""
    try:
        facts = json.loads((run_dir / FOLDER / "provenance.json").read_text(encoding="utf-8"))
        return facts[PICKED_BY][0]
    except (OSError, ValueError, LookupError):
        return None


def is_best(
    run_dir: Path, section: BestSection, setup: str, row: dict[str, float], earlier: Sequence[dict[str, Any]]
) -> bool:
    """Whether a checkpoint with these numbers is better than the one that is kept, or than all ``earlier`` rows.

    The rows count where nothing is kept: on a machine that has the run from object storage, the best one may be there.
    A model that was picked by another metric, or on other held-out pairs, cannot be compared and gives way.
    """
    name = PREFIX + str(section.metric)
    if name not in row:
        return False
    kept = picked(run_dir)
    if kept is None:
        values = [before[name] for before in earlier if before["step"] > 0 and name in before]
    elif (kept["name"], kept["mode"], kept["setup"]) == (section.metric, section.mode, setup):
        values = [kept["value"]]
    else:
        return True
    return all(row[name] > value if section.mode == "max" else row[name] < value for value in values)


def provenance_of(section: BestSection, setup: str, step: int, row: dict[str, float]) -> dict[str, Any]:
    """For ``provenance.json``: evaluation reads there that this number is no independent judge of the model."""
    assert section.metric is not None
    value = row[PREFIX + section.metric]
    entry = {"name": section.metric, "mode": section.mode, "step": step, "value": value, "setup": setup}
    return {PICKED_BY: [entry]}


def keep(run_dir: Path, model: Path) -> None:
    """Put ``model`` in the place of the best one; :func:`mend` finishes this after a crash in between."""
    best, old = run_dir / FOLDER, run_dir / OLD
    shutil.rmtree(old, ignore_errors=True)
    if best.exists():
        best.rename(old)
    model.rename(best)
    shutil.rmtree(old, ignore_errors=True)


def mend(run_dir: Path) -> None:
    """Bring back the best model if a crash left it aside: the one that was to replace it is validated again."""
    best, old = run_dir / FOLDER, run_dir / OLD
    if old.exists() and not best.exists():
        log.warning("validation was killed while it replaced the best model; the one before is back")
        old.rename(best)
    shutil.rmtree(old, ignore_errors=True)
