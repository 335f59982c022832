"""The config of a comparison that runs on a cluster."""

from eval.plan import ComparisonPlan
from ray_jobs.comparison.pool import TasksSection
from ray_jobs.record.tracking import TrackingSection


class EvaluateJob(ComparisonPlan):
    """A comparison, and where it runs and is kept."""

    out: str = "runs/compare"
    """Folder for images, scores and report, seen by every node under this path. Images already there are kept."""
    title: str = "Model comparison"
    """Head of the report."""
    training_curves: dict[str, str] = {}
    """Label -> metrics.jsonl of a run, shown in the report."""
    tasks: TasksSection = TasksSection()
    tracking: TrackingSection = TrackingSection()
    register_as: str | None = None
    """Name of a registered model in MLflow that the compared models become versions of. The best one gets the alias
    `champion`, and only if it is shown to be better than the baseline by an independent scorer."""
