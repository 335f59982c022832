"""Drawing subjects from reference photos with an IP-Adapter-Plus, as PatchDPO draws DreamBench."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from eval.dreambench import SCALES, SettingName, reference_files, subject_prompts
from eval.generate import generate, use_scheduler
from eval.models import load_pipeline
from eval.scorers.base import clip_pixels, rgb
from eval.section import Section

SIDE = 224
"""Pixels of what the image encoder sees."""
FRAME = 800
"""Side of the frame that DreamBench's boxes are given in, whatever the photo's size."""


class SubjectSection(Section):
    """Model, adapter and settings; the defaults are PatchDPO's."""

    model: str = "SG161222/RealVisXL_V1.0"
    """Diffusers folder or hub id under the adapter."""
    adapter: str = "h94/IP-Adapter/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"
    """An IP-Adapter-Plus: a file, or a file on the hub as owner/name/path/in/it. Ours is `ip_adapter.safetensors`."""
    image_encoder: str = "h94/IP-Adapter/models/image_encoder"
    """The CLIP vision model it reads: a folder, or a folder on the hub as owner/name/path/in/it."""
    setting: SettingName = "original"
    """original: all photos of a subject, scale 0.78; kosmosg: one photo, scale 0.65."""
    scale: float | None = None
    """Weight of the photos; null takes the setting's."""
    boxes: str | None = None
    """Folder with `<subject>/<photo>.json`, whose second mask's box it is cropped to; null shows it whole."""
    num_inference_steps: int = 30
    """Denoising steps."""
    guidance_scale: float = 5.0
    """Classifier-free guidance."""
    negative_prompt: str = "monochrome, lowres, bad anatomy, worst quality, low quality"
    """What the images should not show."""
    seed: int = 42
    """Seed of every image, together with its prompt."""
    height: int | None = None
    """Pixels; null takes the model's own size."""
    width: int | None = None
    """Pixels; null takes the model's own size."""
    batch_size: int = 2
    """Images drawn at once."""
    dtype: str = "float16"
    """Precision of the model."""


def draw_subjects(
    section: SubjectSection,
    references: str | Path,
    out: str | Path,
    *,
    device: str = "cpu",
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Draw ``<subject>/<prompt>.png`` below ``out``, what is not there yet; returns how many were drawn.

    ``references`` holds ``<subject>/NN.jpg``; ``prompts`` by subject, DreamBench's own by default. PatchDPO draws two
    images from one generator, so its images depend on their neighbours; ours have a generator each.
    Raises ValueError if the model, the adapter or photos are not there.
    """
    prompts = subject_prompts() if prompts is None else prompts
    photos = reference_files(references, section.setting, prompts)
    missing = {
        subject: [text for text in texts if not (Path(out) / subject / f"{text}.png").is_file()]
        for subject, texts in prompts.items()
    }
    if not any(missing.values()):
        return 0
    pipeline = load_subject_pipeline(section, device)
    for subject, texts in missing.items():
        if not texts:
            continue
        views = [view(photo, _box(section.boxes, subject, photo)) for photo in photos[subject]]
        tokens = mean_tokens(pipeline, views)
        for start in range(0, len(texts), section.batch_size):
            batch = texts[start : start + section.batch_size]
            with projected(pipeline):
                images = generate(
                    pipeline,
                    batch,
                    [section.seed] * len(batch),
                    num_inference_steps=section.num_inference_steps,
                    guidance_scale=section.guidance_scale,
                    negative_prompt=section.negative_prompt,
                    height=section.height,
                    width=section.width,
                    ip_adapter_image_embeds=[given(tokens, len(batch), section.guidance_scale > 1)],
                )
            for text, image in zip(batch, images, strict=True):
                target = Path(out) / subject / f"{text}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                aside = target.with_suffix(".part")
                image.save(aside, format="PNG")
                aside.replace(target)
    return sum(map(len, missing.values()))


def load_subject_pipeline(section: SubjectSection, device: str) -> Any:
    """The pipeline with its adapter at the section's scale. Raises ValueError if a part cannot be loaded."""
    from transformers import CLIPVisionModelWithProjection

    pipeline = load_pipeline(section.model, device, section.dtype)
    use_scheduler(pipeline, "model")
    folder, name = _split(section.image_encoder, whole=True)
    try:
        encoder: Any = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=pipeline.dtype, subfolder=name)
        pipeline.register_modules(image_encoder=encoder.to(device))
        folder, name = _split(section.adapter, whole=False)
        place, _, weight = name.rpartition("/")
        pipeline.load_ip_adapter(folder, subfolder=place, weight_name=weight, image_encoder_folder=None)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot load the adapter {section.adapter!r}: {error}") from error
    pipeline.set_ip_adapter_scale(SCALES[section.setting] if section.scale is None else section.scale)
    return pipeline


def view(photo: Path, box: Sequence[float] | None = None) -> Image.Image:
    """The photo as the encoder sees it: cropped to ``box`` (of an 800-pixel frame), fitted into 224 x 224, on white."""
    with Image.open(photo) as opened:
        image = rgb(opened)
    if box is not None:
        image = image.crop(tuple(int(side * image.width / FRAME) for side in box))  # pyright: ignore[reportArgumentType]
    ratio = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
    whole = Image.new("RGB", (SIDE, SIDE), "white")
    whole.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return whole


@torch.no_grad()
def mean_tokens(pipeline: Any, views: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, tokens of no image) ``[1, n, width]``: the resampler's output, averaged over the photos.

    Handing several photos to diffusers would put their tokens side by side instead.
    """
    encoder, layer = pipeline.image_encoder, pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    pixels = clip_pixels(views, SIDE).to(encoder.device, encoder.dtype)
    states = encoder(pixels, output_hidden_states=True).hidden_states[-2]
    nothing = encoder(torch.zeros_like(pixels[:1]), output_hidden_states=True).hidden_states[-2]
    return layer(states).mean(dim=0, keepdim=True), layer(nothing)


def given(tokens: tuple[torch.Tensor, torch.Tensor], images: int, guided: bool) -> torch.Tensor:
    """What the pipeline takes for ``images`` of one subject: ``[images, 1, n, width]``, before it those of no image
    where guidance needs them."""
    shown, nothing = (part[:, None].expand(images, -1, -1, -1) for part in tokens)
    return torch.cat([nothing, shown]) if guided else shown


@contextmanager
def projected(pipeline: Any) -> Iterator[None]:
    """While this lasts, the pipeline takes tokens as they are: they went through the resampler already."""
    layers = pipeline.unet.encoder_hid_proj.image_projection_layers
    kept, layers[0] = layers[0], torch.nn.Identity()
    try:
        yield
    finally:
        layers[0] = kept


def _box(boxes: str | None, subject: str, photo: Path) -> list[float] | None:
    if boxes is None:
        return None
    import json

    file = Path(boxes) / subject / f"{photo.stem}.json"
    try:
        return [float(side) for side in json.loads(file.read_text())["mask"][1]["box"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"no box of {subject}/{photo.stem} in {str(file)!r}: {error}") from error


def _split(place: str, *, whole: bool) -> tuple[str, str]:
    """(folder or hub id, what in it). ``whole``: the place is a folder itself, not a file in one."""
    path = Path(place)
    if path.exists():
        return (str(path), "") if whole else (str(path.parent), path.name)
    owner, name, *rest = [*place.split("/"), ""]
    return f"{owner}/{name}", "/".join(part for part in rest if part)
