"""IP-Adapters: a model that is shown photos beside its prompt. Loading one, and drawing with it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from eval.models import PROVENANCE
from eval.scorers.base import clip_pixels, rgb

SIDE = 224
"""Pixels of what the image encoder sees."""
FRAME = 800
"""Side of the frame that DreamBench's boxes are given in, whatever the photo's size."""
Tokens = tuple[torch.Tensor, torch.Tensor]
"""Of photos, and of no image; each [1, n, width]."""


def trained_encoder(folder: str | Path) -> str:
    """The image encoder that an exported adapter was trained with. Raises ValueError if nothing tells it."""
    path = Path(folder) / PROVENANCE
    facts = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    named = facts.get("config", {}).get("policy", {}).get("ip_adapter", {}).get("image_encoder")
    if not named:
        raise ValueError(f"{str(folder)!r} does not say which image encoder its adapter reads; give it")
    return str(named)


def attach(pipeline: Any, adapter: str, image_encoder: str, scale: float) -> None:
    """Put an adapter into ``pipeline``, with its encoder on the pipeline's device in its precision.

    ``adapter``: a file, or a file on the hub as owner/name/path/in/it; ``image_encoder``: a folder, likewise.
    Raises ValueError if a part cannot be loaded or does not fit.
    """
    from transformers import CLIPVisionModelWithProjection

    folder, name = _split(image_encoder, whole=True)
    try:
        encoder: Any = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=pipeline.dtype, subfolder=name)
        pipeline.register_modules(image_encoder=encoder.to(pipeline.device))
        folder, name = _split(adapter, whole=False)
        place, _, weight = name.rpartition("/")
        pipeline.load_ip_adapter(folder, subfolder=place, weight_name=weight, image_encoder_folder=None)
    except (OSError, RuntimeError, AttributeError) as error:
        raise ValueError(f"cannot load the adapter {adapter!r} with {image_encoder!r}: {error}") from error
    pipeline.set_ip_adapter_scale(scale)


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
def mean_tokens(pipeline: Any, views: Sequence[Image.Image]) -> Tokens:
    """(tokens, tokens of no image) ``[1, n, width]``: what the projection makes of each photo, averaged over them.

    An IP-Adapter-Plus reads the encoder's last but one states, a plain one its embedding. Handing several photos to
    diffusers would put their tokens side by side instead.
    """
    from diffusers.models.embeddings import ImageProjection

    encoder, layer = pipeline.image_encoder, pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    pixels = clip_pixels(views, SIDE).to(encoder.device, encoder.dtype)
    if isinstance(layer, ImageProjection):
        states = encoder(pixels).image_embeds
        nothing = torch.zeros_like(states[:1])
    else:
        states = encoder(pixels, output_hidden_states=True).hidden_states[-2]
        nothing = encoder(torch.zeros_like(pixels[:1]), output_hidden_states=True).hidden_states[-2]
    return layer(states).mean(dim=0, keepdim=True), layer(nothing)


def given(tokens: Sequence[Tokens], guided: bool) -> torch.Tensor:
    """What the pipeline takes for a batch of images, one of ``tokens`` for each: ``[images, 1, n, width]``, before it
    those of no image where guidance needs them."""
    shown, nothing = (torch.cat([pair[part] for pair in tokens])[:, None] for part in (0, 1))
    return torch.cat([nothing, shown]) if guided else shown


@contextmanager
def shown(pipeline: Any, photos: Sequence[tuple[str, ...]], guided: bool) -> Iterator[Callable[[Sequence[Any]], Any]]:
    """While this lasts, the pipeline takes tokens as they are. Gives: manifest rows -> what the pipeline is called with
    beside their prompts, so that it sees the photos in ``references`` of each row, one of ``photos``."""
    tokens = {files: mean_tokens(pipeline, [view(Path(file)) for file in files]) for files in dict.fromkeys(photos)}
    with projected(pipeline):
        yield lambda rows: {
            "ip_adapter_image_embeds": [given([tokens[tuple(row["references"])] for row in rows], guided)]
        }


@contextmanager
def projected(pipeline: Any) -> Iterator[None]:
    """While this lasts, the pipeline takes tokens as they are: they went through the projection already."""
    layers = pipeline.unet.encoder_hid_proj.image_projection_layers
    kept, layers[0] = layers[0], torch.nn.Identity()
    try:
        yield
    finally:
        layers[0] = kept


def adapter_name(adapter: str, image_encoder: str, scale: float) -> str:
    """Names an adapter's exact weights, its encoder and its scale (first 16 hex digits)."""
    file, encoder = Path(adapter), Path(image_encoder)
    bytes_of = [file, *sorted(encoder.rglob("*.safetensors")), *sorted(encoder.rglob("*.bin"))]
    digest = hashlib.sha256(f"{scale:g} {'' if encoder.exists() else image_encoder}".encode())
    for part in bytes_of:
        digest.update(hashlib.sha256(part.read_bytes()).digest() if part.is_file() else str(part).encode())
    return digest.hexdigest()[:16]


def _split(place: str, *, whole: bool) -> tuple[str, str]:
    """(folder or hub id, what in it). ``whole``: the place is a folder itself, not a file in one."""
    path = Path(place)
    if path.exists():
        return (str(path), "") if whole else (str(path.parent), path.name)
    owner, name, *rest = [*place.split("/"), ""]
    return f"{owner}/{name}", "/".join(part for part in rest if part)
