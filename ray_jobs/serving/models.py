"""Which models a server offers: names and the folders or hub ids behind them."""

import re
from dataclasses import dataclass
from pathlib import Path

from dpo_core.embedded import resolve_model
from eval.models import LORA_FILE, base_model, is_lora
from ray_jobs.serving.section import MODEL_NAME

INDEX = "model_index.json"
HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


@dataclass(frozen=True)
class ServedModel:
    """A model by the name clients use for it."""

    name: str
    source: str
    """A diffusers folder, a LoRA folder or a hub id."""
    base: str | None
    """The model under a LoRA, else None."""
    created: int
    """Unix seconds: when the folder was written; 0 for a hub id."""

    @property
    def kind(self) -> str:
        """``pipeline``, ``LoRA on <base>`` or ``hub``."""
        if self.base is not None:
            return f"LoRA on {self.base}"
        return "pipeline" if Path(self.source).is_dir() else "hub"


def served_models(models: dict[str, str], runs: str | None) -> dict[str, ServedModel]:
    """The models of a config by name: the named ones in their order, then ``<run>/model`` of every run in ``runs``.

    Raises ValueError, naming the models that were found nearby, if a folder holds no model.
    """
    served = {name: _resolve(f"models.{name}", name, source) for name, source in models.items()}
    if runs is not None:
        folders = find_models(Path(runs))
        if not folders:
            raise ValueError(f"runs: no run under {runs!r} holds a model; a run keeps it in <run>/model")
        for folder in folders:
            name = folder.parent.name
            if not re.fullmatch(MODEL_NAME, name):
                raise ValueError(f"runs: {name!r} cannot be a model name; name it yourself: models.<name>={folder}")
            if name in served:
                raise ValueError(f"runs: {folder} would be served as {name!r}, which models.{name} already names")
            served[name] = _resolve("runs", name, str(folder))
    return served


def find_models(runs: Path) -> list[Path]:
    """Every ``<run>/model`` folder under ``runs`` that holds a model, by name."""
    return sorted(path for path in runs.glob("*/model") if _holds_model(path))


def _resolve(field: str, name: str, source: str) -> ServedModel:
    place = resolve_model(source)
    folder = Path(place)
    if _holds_model(folder):
        base = resolve_model(base_model(folder)) if is_lora(folder) else None
        file = folder / (INDEX if base is None else LORA_FILE)
        return ServedModel(name, place, base, int(file.stat().st_mtime))
    is_path = folder.exists() or (folder.parent.is_dir() and folder.parent != Path("."))
    if re.fullmatch(HUB_ID, source) and not is_path:
        return ServedModel(name, source, None, 0)
    problem = f"holds neither {INDEX} nor {LORA_FILE}" if folder.is_dir() else "does not exist"
    raise ValueError(f"{field}: model folder {place!r} {problem}; {_found_near(folder)}")


def _holds_model(folder: Path) -> bool:
    return (folder / INDEX).is_file() or (folder / LORA_FILE).is_file()


def _found_near(folder: Path) -> str:
    """What to say about models near a folder that holds none: the runs beside it, or beside the run it lies in."""
    for root in (folder, folder.parent, folder.parent.parent):
        found = [str(path) for path in find_models(root)] if root.is_dir() else []
        found += [str(path) for path in sorted(root.glob("*")) if _holds_model(path)] if root.is_dir() else []
        if found:
            return f"found: {', '.join(found)}"
    return "no other model was found near it; allowed: a diffusers folder, a LoRA export, a hub id, or 'embedded'"
