"""What the tests of validation ask for."""

import json
from pathlib import Path

PAIRS, LEVELS, SEED, STEPS = 6, 5, 3, 4
PROMPTS = ["a red cat", "two trees"]


def settings(held_out: Path) -> list[str]:
    return [
        "validation.enabled=true", f"validation.paths=[{held_out}]", f"validation.pairs={PAIRS}",
        f"validation.seed={SEED}", f"validation.levels={LEVELS}", "validation.batch_size=4",
        f"validation.prompts={json.dumps(PROMPTS)}", "validation.sampler.num_inference_steps=2",
    ]  # fmt: skip
