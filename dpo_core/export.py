"""The result of a run: a folder that diffusers loads, with its provenance and a model card."""

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dpo_core.families.base import LoadedFamily
from dpo_core.families.ip_adapter import ADAPTER_FILE

LIBRARIES = ("palate", "torch", "diffusers", "transformers", "peft")

CARD = """---
base_model: {base}
library_name: diffusers
tags: [text-to-image, preference-optimisation, {objective}{method_tag}]
---
# {name}

{base} after {steps} updates of {method} {objective} training with Palate on {pairs} preference pairs
(global batch {batch}, learning rate {lr}).

```python
{usage}
```

`provenance.json` holds the whole configuration, the hash of the base weights and of the data, and library versions.
"""

METHODS = {"full": "full", "lora": "LoRA", "ip_adapter": "IP-Adapter"}

USAGE_FULL = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipeline("a prompt").images[0]"""

USAGE_LORA = """from diffusers import AutoModel, DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{base}"{parts})
pipeline.load_lora_weights("path/to/this/folder")
image = pipeline("a prompt").images[0]"""

USAGE_IP_ADAPTER = """from diffusers import AutoModel, DiffusionPipeline
from transformers import CLIPVisionModelWithProjection

image_encoder = CLIPVisionModelWithProjection.from_pretrained("{image_encoder}")
pipeline = DiffusionPipeline.from_pretrained("{base}", image_encoder=image_encoder{parts})
pipeline.load_ip_adapter("path/to/this/folder", subfolder="", weight_name="{file}", image_encoder_folder=None)
image = pipeline("a prompt", ip_adapter_image=reference).images[0]"""


def export_model(
    folder: Path, family: LoadedFamily, *, name: str, config: dict[str, Any], facts: dict[str, Any], dtype: torch.dtype
) -> None:
    """Write the tuned model to ``folder``: aside first, then renamed, so that it is complete or absent.

    ``config`` is the resolved training config, ``facts`` what else the provenance should tell (steps, hashes, pairs).
    """
    method = config["policy"]["method"]
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    family.export(partial, dtype, method == "lora")
    base, denoiser = config["family"]["model"], config["family"]["denoiser"]
    provenance = {
        "name": name,
        "kind": "pipeline" if method == "full" else method,
        "base_model": base,
        "base_denoiser": denoiser,
        **facts,
        "config": config,
        "versions": {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES},
    }
    (partial / "provenance.json").write_text(json.dumps(provenance, indent=1))
    card = CARD.format(
        name=name,
        base=base,
        steps=facts.get("steps"),
        pairs=facts.get("pairs"),
        method=METHODS[method],
        method_tag="" if method == "full" else f", {method.replace('_', '-')}",
        objective=config["objective"]["kind"],
        batch=config["loop"]["global_batch_size"],
        lr=config["optim"]["lr"],
        usage=usage(config),
    )
    (partial / "README.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def usage(config: dict[str, Any]) -> str:
    """Code that draws an image with what was exported, on the model that it was trained on."""
    family, policy = config["family"], config["policy"]
    parts = ""
    if family["denoiser"] is not None:
        name = "unet" if family["kind"] in ("sd15", "sdxl") else "transformer"
        parts = f', {name}=AutoModel.from_pretrained("{family["denoiser"]}", subfolder="{name}")'
    if policy["method"] == "lora":
        return USAGE_LORA.format(base=family["model"], parts=parts)
    if policy["method"] == "ip_adapter":
        encoder = policy["ip_adapter"]["image_encoder"]
        return USAGE_IP_ADAPTER.format(base=family["model"], parts=parts, image_encoder=encoder, file=ADAPTER_FILE)
    return USAGE_FULL
