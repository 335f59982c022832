"""How images are drawn where a comparison does not say: each family's published settings."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from eval.generate import SamplerSection, Scheduler
from eval.section import Section


@dataclass(frozen=True)
class Preset:
    """Settings and where they come from."""

    scheduler: Scheduler
    num_inference_steps: int
    guidance_scale: float
    source: str
    height: int | None = None
    width: int | None = None


PRESETS: dict[str, Preset] = {
    "sd15": Preset("pndm", 50, 7.5, "Diffusion-DPO (arXiv 2311.12908), pipeline default"),
    "sdxl": Preset("euler", 50, 5.0, "Diffusion-DPO (arXiv 2311.12908), pipeline default", 1024, 1024),
    "sd3": Preset("model", 28, 7.0, "model card of stable-diffusion-3-medium-diffusers", 1024, 1024),
    "sd35-medium": Preset("model", 40, 4.5, "model card of stable-diffusion-3.5-medium", 1024, 1024),
    "sd35-large": Preset("model", 28, 3.5, "model card of stable-diffusion-3.5-large", 1024, 1024),
    "flux-dev": Preset("model", 50, 3.5, "model card of FLUX.1-dev", 1024, 1024),
    "flux-schnell": Preset("model", 4, 0.0, "model card of FLUX.1-schnell", 1024, 1024),
    "auraflow": Preset("model", 50, 3.5, "model card of AuraFlow", 1024, 1024),
    "pixart": Preset("model", 20, 4.5, "PixArt-alpha (arXiv 2310.00426), pipeline default"),
    "geneval": Preset("ddim", 50, 9.0, "GenEval (arXiv 2310.11513), its generation script"),
    "spo": Preset("ddim", 20, 5.0, "SPO (arXiv 2406.04314), table 2"),
}
FAMILIES = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "AuraFlowPipeline": "auraflow",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
}

PresetName = Literal[
    "family", "sd15", "sdxl", "sd3", "sd35-medium", "sd35-large", "flux-dev", "flux-schnell", "auraflow", "pixart",
    "geneval", "spo"
]  # fmt: skip


class PlannedSampler(Section):
    """How images are drawn. What is null comes from the preset."""

    preset: PresetName = "family"
    """Published settings: ``family`` takes those of the model's family, read from its pipeline class."""
    scheduler: Scheduler | None = None
    """The solver: ddim, dpmpp (DPM-Solver++ 2M), euler, pndm, or `model` for the one in the model's folder."""
    num_inference_steps: int | None = Field(default=None, ge=1)
    """Denoising steps of an image."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """Classifier-free guidance; 1 switches it off."""
    negative_prompt: str | None = None
    """What the images should not show."""
    height: int | None = None
    """Pixels; null takes the preset's, or else the model's own size."""
    width: int | None = None
    """Pixels; null takes the preset's, or else the model's own size."""
    batch_size: int = Field(default=8, ge=1)
    """Images drawn at once. Changes speed, and the images only by rounding."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the model; float16 or bfloat16 on a GPU."""

    def for_model(self, folder: str | Path | None = None) -> SamplerSection:
        """The settings for the model in ``folder`` (a diffusers folder or hub id; a LoRA counts as its base).

        Raises ValueError if something is left open and the model's family has no preset.
        """
        given = {name: value for name, value in self.model_dump(exclude={"preset"}).items() if value is not None}
        if {"scheduler", "num_inference_steps", "guidance_scale"} <= given.keys():
            return SamplerSection(**given)
        name = self.preset if self.preset != "family" else family_preset(folder)
        preset = asdict(PRESETS[name])
        del preset["source"]
        return SamplerSection(**({key: value for key, value in preset.items() if value is not None} | given))


def family_preset(folder: str | Path | None) -> str:
    """Name of the preset of a model's family. Raises ValueError if its pipeline class is none we know."""
    if folder is None:
        raise ValueError("sampler.preset: `family` needs a model; name a preset or give scheduler, steps and guidance")
    kind = _config(folder, None).get("_class_name", "?")
    if kind in FAMILIES:
        return FAMILIES[kind]
    if kind == "StableDiffusion3Pipeline":
        transformer = _config(folder, "transformer")
        if not transformer.get("qk_norm"):
            return "sd3"
        return "sd35-large" if transformer.get("num_layers", 0) > 24 else "sd35-medium"
    if kind == "FluxPipeline":
        return "flux-dev" if _config(folder, "transformer").get("guidance_embeds") else "flux-schnell"
    raise ValueError(
        f"sampler.preset: no preset for {kind} of {str(folder)!r}; "
        f"allowed: {', '.join(PRESETS)}, or give scheduler, num_inference_steps and guidance_scale"
    )


def _config(folder: str | Path, part: str | None) -> dict[str, Any]:
    """``model_index.json`` of a model, or ``config.json`` of its ``part``; from the folder or the hub's cache."""
    name = f"{part}/config.json" if part else "model_index.json"
    file = Path(folder) / name
    if not file.is_file() and not Path(folder).is_dir():
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(str(folder), name))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot read {name} of {str(folder)!r}, by which its preset is chosen: {error}"
            ) from error
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}
