"""palate evaluate: draw the same prompts with several models, score the images, and report who is better.

With --verify-scorers it says instead which scorers of this machine give the numbers that were published.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dpo_core.embedded import resolve_model
from eval.comparison import Comparison
from eval.evaluation import finish, plan_work
from eval.report import Reproduce, write_report
from eval.sources import Source, find_source
from eval.verdict import cautions, verdicts
from ray_jobs.comparison import verify
from ray_jobs.comparison.job import EvaluateJob
from ray_jobs.comparison.outcome import note_metrics, record, register, results_tables
from ray_jobs.comparison.pool import run_pool
from ray_jobs.config import run_verb, save_config, to_yaml
from ray_jobs.record.tracking import track_run


def compare(job: EvaluateJob, console: Console | None = None) -> Comparison:
    """Draw and score on Ray what is not there yet; writes manifest.parquet and scores.parquet into ``job.out``.

    Raises ValueError for fewer than two models, a model that is not there, or whatever a scorer refuses.
    """
    work = plan_work(job, resolve_model)
    out = Path(job.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    scores = run_pool(job.tasks, work, out, console or Console())
    return finish(work, scores, out)


def locate(model: str) -> Source:
    """Where a model lies, and the base under it if it is a LoRA or an IP-Adapter."""
    return find_source(model, resolve=resolve_model, photos_scale=1.0)


def report(
    job: EvaluateJob,
    comparison: Comparison,
    *,
    title: str | None = None,
    training_curves: Mapping[str, str | Path] | None = None,
    sweep: Sequence[Mapping[str, Any]] | None = None,
    config: str | None = None,
    command: str | None = None,
) -> Path:
    """Write report.json and report.html into ``job.out`` and keep both in MLflow; returns the page.

    ``config`` and ``command`` are what the page says it is reproduced with, by default this job.
    """
    out = Path(job.out).resolve()
    save_config(job, out / "config.yaml")
    reproduce = Reproduce([command or f"palate evaluate --config {job.out}/config.yaml"], config or to_yaml(job))
    page = write_report(
        out,
        comparison,
        title=title or job.title,
        training_curves=training_curves or job.training_curves,
        sweep=sweep,
        reproduce=reproduce,
    )
    with track_run(job.tracking, out, config=job) as tracker:
        note_metrics(comparison, out / "metrics.jsonl")
        record(comparison, tracker, out)
        if job.register_as is not None:
            places = {name: locate(model).folder for name, model in job.models.items()}
            register(comparison, tracker, out, job.register_as, places)
    return page


def plan_rows(job: EvaluateJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    prompts = job.load_prompts()
    images = len(prompts) * job.images_per_prompt
    counts = {label: sum(prompt.set == label for prompt in prompts) for label in job.sets}
    rows = [
        ("folder", str(Path(job.out).resolve())),
        ("prompts", ", ".join(f"{count:,} of {label}" for label, count in counts.items())),
        ("images", f"{images:,} for each model, {images * len(job.models):,} in all"),
        ("tasks", f"{len(job.models) * -(-images // job.tasks.images_per_task):,}"),
    ]
    for name, model in job.models.items():
        try:
            source = locate(model)
        except ValueError as error:  # a plan may be made before its models are trained
            rows.append((f"model {name}", str(error)))
            continue
        kind = "images made elsewhere" if source.is_images else None
        laid = f"LoRA {job.loras[name].path} at {job.loras[name].scale:g}" if name in job.loras else None
        shown = f"IP-Adapter {job.adapters[name].path}" if name in job.adapters else None
        rows.append((f"model {name}", " on ".join(filter(None, [shown, laid, source.folder, source.base, kind]))))
    return rows


def main(argv: list[str] | None = None) -> int:
    def run(job: EvaluateJob) -> None:
        console = Console()
        comparison = compare(job, console)
        page = report(job, comparison)
        for table in results_tables(comparison):
            console.print(table)
        for sentence in verdicts(comparison):
            console.print(sentence)
        for sentence in cautions(comparison):
            console.print(sentence, style="yellow")
        console.print(f"report: {page}", soft_wrap=True)

    words = sys.argv[1:] if argv is None else argv
    if verify.FLAG in words:
        return verify.main([word for word in words if word != verify.FLAG])
    return run_verb(schema=EvaluateJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Workers unpickle by module name, and their `__main__` is another one: run what is importable by name.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["evaluate", *sys.argv[1:]]))
