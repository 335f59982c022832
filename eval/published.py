"""Numbers that papers report for the same base model, prompts and sampler, to stand beside a report's own."""

import csv
from collections.abc import Sequence
from pathlib import Path

from eval.plan import ComparisonPlan
from eval.presets import PRESETS
from eval.results import Metric, Published

FILE = Path(__file__).with_name("published.csv")
BASES = {
    "runwayml/stable-diffusion-v1-5": "sd15",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}


def published_rows(plan: ComparisonPlan, metrics: Sequence[Metric], bases: dict[str, str]) -> list[Published]:
    """Reference rows for a plan whose baseline is a known base model, drawn with the papers' settings.

    ``bases``: model name -> hub id. Empty unless base, steps, guidance and at least one whole prompt set match: under
    other settings the same checkpoint was published with ImageReward from -0.163 to 0.113.
    """
    base = BASES.get(bases.get(plan.baseline, plan.models[plan.baseline]))
    if base is None or plan.limit is not None or plan.split != "all":
        return []
    preset = PRESETS[base]
    given = (plan.sampler.num_inference_steps, plan.sampler.guidance_scale)
    if plan.sampler.preset not in ("family", base) or any(
        value not in (None, wanted)
        for value, wanted in zip(given, (preset.num_inference_steps, preset.guidance_scale), strict=True)
    ):
        return []
    keys = {metric.scorer: metric.key for metric in metrics if metric.primary}
    variants = {scorer.variant_id: keys[scorer.label] for scorer in plan.scorers}
    rows = []
    with FILE.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            key = next((key for variant, key in variants.items() if variant.startswith(row["metric"])), None)
            if row["base"] == base and row["prompt_set"] in plan.sets and key is not None:
                start, value = _number(row["base_value"]), _number(row["value"])
                rate = _number(row["win_rate"])
                rows.append(
                    Published(
                        row["prompt_set"],
                        key,
                        row["method"],
                        start,
                        value,
                        None if start is None or value is None else round(value - start, 6),
                        None if rate is None else rate / 100,
                        row["source"],
                        row["note"],
                    )
                )
    return rows


def _number(text: str) -> float | None:
    return float(text) if text else None
