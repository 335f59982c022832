"""Every training preset runs: a few updates on a tiny model of its family, which is all that is replaced."""

import re
from pathlib import Path
from typing import get_args

import pytest
from diffusers import UNet2DConditionModel

from dpo_core.objectives import AnyObjective
from dpo_core.recipe import TrainSection
from ray_jobs.config import load_config
from ray_jobs.training.job import TrainJob
from tests.tiny_data import make_pairs
from tests.tiny_families import TINY
from tests.tiny_ip_adapter import make_tiny_ip_adapter
from tests.train_runs import rows, run

PRESETS = sorted((Path(__file__).parents[1] / "tune_configs" / "train").glob("*_*.yaml"))
FULL_MATRIX = ("sd15", "sdxl", "sd3", "flux")
SMALL = [
    "data.resolution=16", "data.min_side=16", "loop.max_steps=2", "loop.global_batch_size=4",
    "loop.worker_batch_size=2", "loop.log_every=1", "loop.checkpoint_every=2", "family.vae=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder / name) for name, make in TINY.items()}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"), 24, grid=8)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_trains_a_tiny_model_of_its_family(preset: Path, models, pairs, tmp_path):
    text = preset.read_text()
    kind = re.search(r"^family: \{kind: (\w+)", text, flags=re.M)
    assert kind is not None
    model = models["sdxl-refiner" if "refiner" in preset.stem else kind[1]]
    overrides = [*SMALL, f"family.model={model}", f"data.paths=[{pairs}]"]
    if "constant_with_warmup" in text:
        overrides.append("optim.warmup_steps=1")
    if "method: ip_adapter" in text:
        unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
        adapter, encoder = make_tiny_ip_adapter(tmp_path, unet)
        overrides += [f"policy.ip_adapter.model={adapter}", f"policy.ip_adapter.image_encoder={encoder}"]
    job = load_config(TrainJob, preset, overrides)
    config = TrainSection.model_validate(job.model_dump(include=set(TrainSection.model_fields)))
    run(config, tmp_path)
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == [1, 2]
    assert "not_finite" not in logged[1] or config.loop.precision == "fp16"
    assert (tmp_path / "model" / "provenance.json").exists()


def test_every_objective_has_a_preset_for_every_family_that_it_applies_to():
    there = {path.stem.rpartition("_")[0] for path in PRESETS}
    kinds = [section.model_fields["kind"].default for section in get_args(get_args(AnyObjective)[0])]
    # PatchDPO trains an IP-Adapter, which only the U-Net families have.
    needed = {f"{family}_{kind}" for family in FULL_MATRIX for kind in kinds if kind != "patchdpo"}
    needed |= {"sd15_patchdpo", "sdxl_patchdpo"}
    assert needed - there == set()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_says_what_to_expect_and_bears_its_own_name(preset: Path):
    lines = preset.read_text().splitlines()
    assert sum(line.startswith("# ") for line in lines) >= 2
    assert f"name: {preset.stem}," in preset.read_text()
