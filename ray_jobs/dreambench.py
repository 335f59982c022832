"""palate dreambench: draw the subjects of DreamBench with an IP-Adapter, and score how well they are met."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dpo_core.embedded import resolve_model
from dpo_core.section import Section
from eval.dreambench import DreamBenchScores, SettingName, reference_files, score_dreambench, subject_prompts
from eval.scorers import AnyScorer
from eval.scorers.clip_i import ClipI
from eval.scorers.clip_t import ClipT
from eval.scorers.dino import Dino
from eval.subjects import SubjectSection, draw_subjects
from ray_jobs.cluster import start_ray
from ray_jobs.config import run_verb, save_config


class DreamBenchJob(Section):
    """A model with an IP-Adapter-Plus against DreamBench's photos."""

    out: str = "runs/dreambench"
    """Folder for `<subject>/<prompt>.png` and the scores. Images already there are kept, whoever made them."""
    references: str = "data/dreambench"
    """Folder with the photos, `<subject>/NN.jpg`, as github.com/google/dreambooth has them."""
    draw: SubjectSection | None = SubjectSection()
    """How images are drawn; null scores the images that are in `out`. Its setting is that of the scores too."""
    setting: SettingName | None = None
    """Setting of the scores where nothing is drawn: original or kosmosg."""
    scorers: list[AnyScorer] = Field(default=[Dino(), ClipI(), ClipT()], min_length=1)
    """What is measured; DreamBench's own three by default."""
    subjects: list[str] | None = None
    """Only these subjects, for a look; null for all thirty, which alone is the benchmark."""
    subjects_per_task: int = Field(default=2, ge=1)
    """Subjects that one task draws."""
    cpus_per_task: float = Field(default=1.0, gt=0)
    """CPUs of a task."""
    gpus_per_task: float | None = Field(default=None, ge=0)
    """GPUs of a task; null takes one where the cluster has any."""


def run(job: DreamBenchJob, console: Console | None = None) -> DreamBenchScores:
    """Draw what is missing, score everything; writes ``dreambench.json`` into ``job.out``.

    Raises ValueError for missing photos, an incomplete folder, or a model that cannot be loaded.
    """
    import ray
    from ray.exceptions import RayTaskError

    console = console or Console()
    out, prompts, setting = Path(job.out).resolve(), chosen_prompts(job), setting_of(job)
    out.mkdir(parents=True, exist_ok=True)
    reference_files(job.references, setting, prompts)
    save_config(job, out / "config.yaml")
    images, references = out / "images", str(Path(job.references).resolve())
    start_ray()
    gpus = job.gpus_per_task
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    device, resources = "cuda" if gpus else "cpu", ray.remote(num_cpus=job.cpus_per_task, num_gpus=gpus)
    try:
        if job.draw is not None:
            section = job.draw.model_copy(update={"model": resolve_model(job.draw.model)})
            names = list(prompts)
            parts = [names[i : i + job.subjects_per_task] for i in range(0, len(names), job.subjects_per_task)]
            task: Any = resources(draw_subjects)
            pending = [
                task.remote(section, references, images, device=device, prompts={name: prompts[name] for name in part})
                for part in parts
            ]
            for reference in track(pending, "drawing subjects", console=console, transient=True):
                ray.get(reference)
        score: Any = resources(score_dreambench)
        scores: DreamBenchScores = ray.get(
            score.remote(images, references, setting, job.scorers, device=device, prompts=prompts)
        )
    except RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from error
        raise
    (out / "dreambench.json").write_text(json.dumps(asdict(scores), indent=1).replace("NaN", "null"))
    return scores


def setting_of(job: DreamBenchJob) -> SettingName:
    """Raises ValueError where nothing says it, or two fields say different things."""
    drawn = job.draw.setting if job.draw else None
    said: list[SettingName] = [name for name in (job.setting, drawn) if name is not None]
    if len(set(said)) != 1:
        raise ValueError("setting: give original or kosmosg, once: where images are drawn, `draw.setting` says it")
    return said[0]


def chosen_prompts(job: DreamBenchJob) -> dict[str, list[str]]:
    """Raises ValueError for a subject that DreamBench does not have."""
    every = subject_prompts()
    unknown = [name for name in job.subjects or [] if name not in every]
    if unknown:
        raise ValueError(f"subjects: {', '.join(unknown)} are none of DreamBench's; allowed: {', '.join(every)}")
    return {name: texts for name, texts in every.items() if job.subjects is None or name in job.subjects}


def scores_table(scores: DreamBenchScores) -> Table:
    """The means and, for all thirty subjects, what others report."""
    table = Table(title=f"DreamBench, setting {scores.setting}, {len(scores.subjects)} subjects", box=SIMPLE_HEAD)
    table.add_column("")
    for column in scores.means:
        table.add_column(column, justify="right")
    cells = [f"{scores.means[name]:.3f} [{low:.3f}, {high:.3f}]" for name, (low, high) in scores.intervals.items()]
    table.add_row("this", *(cell.replace("[", "\\[") for cell in cells), style="bold")
    if len(scores.subjects) == len(subject_prompts()) and list(scores.means) == ["dino", "clip_i", "clip_t"]:
        for name, values in scores.published.items():
            table.add_row(f"{name} (published)", *("" if value != value else f"{value:.3f}" for value in values))
    return table


def plan_rows(job: DreamBenchJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    prompts = chosen_prompts(job)
    return [
        ("folder", str(Path(job.out).resolve() / "images")),
        ("setting", setting_of(job)),
        ("images", f"{sum(map(len, prompts.values())):,} of {len(prompts)} subjects"),
    ]


def main(argv: list[str] | None = None) -> int:
    def work(job: DreamBenchJob) -> None:
        scores = run(job)
        Console().print(scores_table(scores))
        Console().print(f"scores: {Path(job.out).resolve() / 'dreambench.json'}", soft_wrap=True)

    return run_verb(schema=DreamBenchJob, run=work, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["dreambench", *sys.argv[1:]]))
