"""Model folders: loading one as a pipeline, and naming its exact weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from eval.loras import LORA_FILE, lay_on

ADAPTER_FILE = "ip_adapter.safetensors"
PROVENANCE = "provenance.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pipeline(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    base: str | Path | None = None,
) -> Any:
    """A diffusers pipeline ready to generate: on ``device`` in ``dtype``, no safety checker, no progress bars.

    ``folder`` is a diffusers folder, a hub id, or a LoRA folder (``pytorch_lora_weights.safetensors`` beside a
    ``provenance.json`` whose ``base_model`` names the model under it; ``base`` says where that lies now if elsewhere),
    or an IP-Adapter folder, of which this loads the base (:func:`eval.adapters.attach` puts the adapter in).
    The safety checker is left out because it replaces images by black ones, which would still get scores.

    Raises ValueError if there is no such model or the dtype is unknown.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    torch_dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    if is_laid_on(folder):
        pipeline = _load_full(str(base or base_model(folder)), torch_dtype)
        if denoiser := _base_denoiser(folder):
            _replace_denoiser(pipeline, denoiser, torch_dtype)
    else:
        pipeline = _load_full(str(folder), torch_dtype)
    if is_lora(folder):
        lay_on(pipeline, folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def is_lora(folder: str | Path) -> bool:
    """Does the folder hold a LoRA (and no whole pipeline)?"""
    path = Path(folder)
    return (path / LORA_FILE).is_file() and not (path / "model_index.json").is_file()


def is_laid_on(folder: str | Path) -> bool:
    """Does the folder hold only what is laid on a base: a LoRA or an IP-Adapter?"""
    return is_lora(folder) or is_ip_adapter(folder)


def is_ip_adapter(folder: str | Path) -> bool:
    """Does the folder hold an IP-Adapter that training has exported (and no whole pipeline)?"""
    path = Path(folder)
    return (path / ADAPTER_FILE).is_file() and not (path / "model_index.json").is_file()


def base_model(folder: str | Path) -> str:
    """The model a LoRA or adapter folder belongs on, read from its ``provenance.json``."""
    path = Path(folder) / PROVENANCE
    if not path.is_file():
        raise ValueError(
            f"folder {str(folder)!r} has no {PROVENANCE}, so its base model is unknown; give the base as the model and "
            "this folder as the LoRA on it (`loras`), or export the run again"
        )
    named = json.loads(path.read_text()).get("base_model")
    if not named:
        raise ValueError(f"{path} does not name its base model (key 'base_model')")
    return str(named)


def _base_denoiser(folder: str | Path) -> str | None:
    """Where the denoiser under a LoRA comes from, if not from its base model."""
    path = Path(folder) / PROVENANCE
    return json.loads(path.read_text()).get("base_denoiser") if path.is_file() else None


def _replace_denoiser(pipeline: Any, source: str, dtype: torch.dtype) -> None:
    from diffusers.models.auto_model import AutoModel

    name = "unet" if "unet" in pipeline.components else "transformer"
    problem: Exception | None = None
    for place in ({"subfolder": name}, {}):
        try:
            pipeline.register_modules(**{name: AutoModel.from_pretrained(source, torch_dtype=dtype, **place)})
            return
        except (OSError, ValueError) as error:
            problem = problem or error
    raise ValueError(f"cannot load the denoiser {source!r} that the LoRA was trained on: {problem}")


def model_hash(folder: str | Path, *, base: str | Path | None = None) -> str:
    """Names the exact weights: sha256 over names and bytes of a folder's JSON and weight files (first 16 hex digits).

    That of a LoRA or adapter includes its base. A hub id gives ``<id>@<commit>`` of the local copy, ``<id>@unknown``
    without one.
    """
    path = Path(folder)
    if not path.is_dir():
        return _hub_name(str(folder))
    digest = hashlib.sha256()
    if is_laid_on(folder):
        digest.update(model_hash(base or base_model(folder)).encode())
        if denoiser := _base_denoiser(folder):
            digest.update(model_hash(denoiser).encode())
        files = [path / (LORA_FILE if is_lora(folder) else ADAPTER_FILE)]
    else:
        files = sorted(f for f in path.rglob("*") if f.suffix in {".json", ".safetensors", ".bin", ".txt"})
        files = [f for f in files if f.name != PROVENANCE]
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def check_place(name: str) -> None:
    """Raise ValueError unless ``name`` is a diffusers folder, or reads like a hub id."""
    path = Path(name)
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise ValueError(
            f"no model in {name!r}: a diffusers folder has a model_index.json, a LoRA folder a {LORA_FILE}"
        )
    if path.is_file():
        raise ValueError(f"{name!r} is a file; give a diffusers folder or a hub id, and a LoRA file under `loras`")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
        raise ValueError(f"no model folder {name!r}; give an existing diffusers folder or a hub id 'owner/name'")


def _load_full(name: str, dtype: torch.dtype) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    check_place(name)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        index: Any = DiffusionPipeline.load_config(name)
        without: dict[str, Any] = {}
        if "safety_checker" in index:
            without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return DiffusionPipeline.from_pretrained(name, dtype=dtype, **without)
    except OSError as error:
        raise ValueError(f"cannot load model {name!r}: {error}") from error


def _hub_name(name: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "model_index.json") if name.count("/") == 1 else None
    return f"{name}@{Path(cached).parent.name if isinstance(cached, str) else 'unknown'}"
