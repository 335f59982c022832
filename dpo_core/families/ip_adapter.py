"""Image prompts: an IP-Adapter in a U-Net, the encoder of the images it is shown, and the adapter as a file again."""

import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_core.section import Section

ADAPTER_FILE = "ip_adapter.safetensors"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class IPAdapterSection(Section):
    """An IP-Adapter (arXiv 2308.06721), as PatchDPO tunes it (arXiv 2412.03177); with ``method: ip_adapter``."""

    model: str | None = None
    """The adapter's weights: a safetensors file, or a file on the hub as owner/name/path/in/it.safetensors."""
    image_encoder: str | None = None
    """The CLIP vision model that it reads: a folder, or a folder on the hub as owner/name/path/in/it."""
    resampler: bool = False
    """Also train the projection of the image's states; otherwise only the keys and values of its attention."""


class ImagePrompt:
    """An IP-Adapter put into a U-Net."""

    def __init__(self, section: IPAdapterSection, unet: Any, device: torch.device, dtype: torch.dtype) -> None:
        """Load the image encoder in ``dtype`` and put the adapter into ``unet``, in the U-Net's precision.

        Raises ValueError when one of them cannot be loaded or does not fit.
        """
        assert section.model is not None
        assert section.image_encoder is not None
        self.trains_projection = section.resampler
        self.projection, layers = read_adapter(section.model)
        if section.resampler and "latents" not in self.projection:
            raise ValueError(f"policy.ip_adapter.resampler: {section.model!r} has no resampler; set it to false")
        self.encoder = load_image_encoder(section.image_encoder).to(device, dtype).requires_grad_(False).eval()
        try:
            unet._load_ip_adapter_weights(
                [{"image_proj": self.projection, "ip_adapter": layers}], low_cpu_mem_usage=False
            )
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"policy.ip_adapter.model: {section.model!r} does not fit the U-Net: {error}") from error
        self.pooled = "proj.weight" in self.projection
        unet.requires_grad_(False)
        for name, parameter in unet.named_parameters():
            attention = ".to_k_ip." in name or ".to_v_ip." in name
            parameter.requires_grad_(attention or (section.resampler and name.startswith("encoder_hid_proj.")))

    @torch.no_grad()
    def embed(self, images: UInt8[Tensor, "n 3 side side"]) -> Float[Tensor, "n 1 ..."]:
        """The last but one hidden state of each image, [n, 1, tokens, width]; [n, 1, width] for a plain IP-Adapter.

        An image that is all black is a dropped one: the encoder then sees zeros after normalisation, as it does in
        diffusers' pipeline for the unconditional half. Each is encoded alone, so that its bits do not depend on others.
        """
        rows = []
        for image in images.to(self.encoder.device):
            mean, std = (image.new_tensor(x, dtype=torch.float32)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
            dropped = not bool(image.any())
            pixels = torch.zeros_like(image, dtype=torch.float32) if dropped else (image / 255 - mean) / std
            output = self.encoder(pixels[None].to(self.encoder.dtype), output_hidden_states=not self.pooled)
            state = output.image_embeds if self.pooled else output.hidden_states[-2]
            rows.append(torch.zeros_like(state) if dropped and self.pooled else state)
        return torch.stack(rows)

    def write(self, folder: Path, unet: Any, dtype: torch.dtype) -> None:
        """Write what ``load_ip_adapter`` of diffusers loads: the adapter as it is now in ``unet``."""
        processors = [unet.attn_processors[name] for name in unet.attn_processors]
        state = {
            f"ip_adapter.{index}.{name}.weight": getattr(processor, name)[0].weight
            for index, processor in enumerate(processors)
            if hasattr(processor, "to_k_ip")
            for name in ("to_k_ip", "to_v_ip")
        }
        projection = self.projection
        if self.trains_projection:
            projection = original_resampler(unet.encoder_hid_proj.image_projection_layers[0].state_dict())
        state |= {f"image_proj.{name}": tensor for name, tensor in projection.items()}
        state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
        save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})


def read_adapter(model: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The image projection and the attention layers of an IP-Adapter file. Raises ValueError when it is none."""
    if not model.endswith(".safetensors"):
        raise ValueError(f"policy.ip_adapter.model: {model!r} is not a safetensors file, and nothing else is read")
    try:
        state = load_file(hub_file(model))
    except (OSError, ValueError) as error:
        raise ValueError(f"policy.ip_adapter.model: {model!r} cannot be loaded: {error}") from error
    projection, layers = (
        {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
        for start in ("image_proj.", "ip_adapter.")
    )
    if not layers or not ({"latents", "proj.weight"} & projection.keys()):
        raise ValueError(
            f"policy.ip_adapter.model: {model!r} is not an IP-Adapter or IP-Adapter-Plus: it holds "
            f"{', '.join(sorted({name.split('.')[0] for name in state}))}; image_proj.* and ip_adapter.* are needed"
        )
    return projection, layers


def hub_file(path: str) -> str:
    """``path`` if it is there, else the local copy of the hub's file owner/name/path."""
    parts = path.split("/", 2)
    if Path(path).exists() or Path(path).is_absolute() or len(parts) < 3:
        return path
    from huggingface_hub import hf_hub_download

    return hf_hub_download("/".join(parts[:2]), parts[2])


def load_image_encoder(source: str) -> Any:
    """A CLIP vision model in float32. Raises ValueError when there is none."""
    from transformers import CLIPVisionModelWithProjection

    parts = source.split("/", 2)
    on_hub = not Path(source).exists() and len(parts) == 3 and not Path(source).is_absolute()
    place: dict[str, Any] = {"subfolder": parts[2]} if on_hub else {}
    try:
        name = "/".join(parts[:2]) if on_hub else source
        return CLIPVisionModelWithProjection.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **place)
    except (OSError, ValueError) as error:
        raise ValueError(f"policy.ip_adapter.image_encoder: {source!r} cannot be loaded: {error}") from error


ORIGINAL = (
    (r"^layers\.(\d+)\.ln0\.", r"layers.\1.0.norm1."),
    (r"^layers\.(\d+)\.ln1\.", r"layers.\1.0.norm2."),
    (r"^layers\.(\d+)\.attn\.to_out\.0\.", r"layers.\1.0.to_out."),
    (r"^layers\.(\d+)\.attn\.", r"layers.\1.0."),
    (r"^layers\.(\d+)\.ff\.0\.", r"layers.\1.1.0."),
    (r"^layers\.(\d+)\.ff\.1\.net\.0\.proj\.", r"layers.\1.1.1."),
    (r"^layers\.(\d+)\.ff\.1\.net\.2\.", r"layers.\1.1.3."),
)
"""Names of diffusers' resampler, and of the one in IP-Adapter files."""


def original_resampler(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' IPAdapterPlusImageProjection as IP-Adapter files have it, with keys and values in one matrix."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, original in ORIGINAL:
            name = re.sub(pattern, original, name)
        named[name] = tensor
    for name in [name for name in named if name.endswith(".to_k.weight")]:
        stem = name.removesuffix("to_k.weight")
        named[f"{stem}to_kv.weight"] = torch.cat([named.pop(name), named.pop(f"{stem}to_v.weight")])
    return named
