"""The result of a run: a folder that diffusers loads, with its provenance and a model card."""

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dpo_core.families.base import LoadedFamily

LIBRARIES = ("palate", "torch", "diffusers", "transformers", "peft")

CARD = """---
base_model: {base}
library_name: diffusers
tags: [text-to-image, preference-optimisation, {objective}{lora_tag}]
---
# {name}

{base} after {steps} updates of {method} {objective} training with Palate on {pairs} preference pairs
(global batch {batch}, learning rate {lr}).

```python
{usage}
```

`provenance.json` holds the whole configuration, the hash of the base weights and of the data, and library versions.
"""

USAGE_FULL = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipeline("a prompt").images[0]"""

USAGE_LORA = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("path/to/this/folder")
image = pipeline("a prompt").images[0]"""


def export_model(
    folder: Path, family: LoadedFamily, *, name: str, config: dict[str, Any], facts: dict[str, Any], dtype: torch.dtype
) -> None:
    """Write the tuned model to ``folder``: aside first, then renamed, so that it is complete or absent.

    ``config`` is the resolved training config, ``facts`` what else the provenance should tell (steps, hashes, pairs).
    """
    lora = config["policy"]["method"] == "lora"
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    family.export(partial, dtype, lora)
    base = config["family"]["model"]
    provenance = {
        "name": name,
        "kind": "lora" if lora else "pipeline",
        "base_model": base,
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
        method="LoRA" if lora else "full",
        lora_tag=", lora" if lora else "",
        objective=config["objective"]["kind"],
        batch=config["loop"]["global_batch_size"],
        lr=config["optim"]["lr"],
        usage=USAGE_LORA.format(base=base) if lora else USAGE_FULL,
    )
    (partial / "README.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
