"""PatchDPO's own layout (arXiv 2412.03177): reference and generated images with patch quality maps."""

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from dpo_core.data import locations, schema
from dpo_core.data.quarantine import Quarantined, Reason
from dpo_core.data.sources import safe_pickle
from dpo_core.data.sources.base import Pointer, Record, Source, Told, decided, malformed

QUALITY_FILE = "patch_quality.pkl"
PICKLE_LIMIT = 8 << 30
REFERENCE = re.compile(r"(.+)_entity_0\.png")
GENERATED = re.compile(r"(.+)_gen_(\d+)\.png")


class PatchDPO(Source):
    """Triplets as the released trainer of PatchDPO reads them; its training set itself was never released.

    ``sample{i}/<prompt>_entity_0.png`` is the reference, ``<prompt>_gen_{k}.png`` are generated from it, and
    patch_quality.pkl holds ``[i][k] -> {target_map, gene_map}``. A pair is the reference (chosen, patch_quality_0 =
    target_map) and one generated image (patch_quality_1 = gene_map). The pickle is read without running it. The prompt
    is what stands before ``_entity_0`` (the trainer cuts it at the first underscore).
    """

    kind: Literal["patchdpo"] = "patchdpo"
    folder: str = ""
    """The folder with sample0, sample1, ... and patch_quality.pkl, or its URL."""
    quality_file: str = QUALITY_FILE
    """Name of the pickle in that folder."""

    expects: ClassVar[str] = "`sample{i}/<prompt>_entity_0.png`, `<prompt>_gen_{k}.png`, `patch_quality.pkl`"
    extra: ClassVar[tuple[str, ...]] = schema.QUALITY

    def files(self) -> list[str]:
        if not self.folder:
            raise ValueError("source.folder is empty; give the folder with sample0, sample1, ...")
        found = locations.find(self.folder, (".png",))
        if not found:
            raise ValueError(f"source.folder: {self.folder!r} holds no .png")
        return [*found, locations.inside(self.folder, self.quality_file)]

    def told(self) -> Iterator[Told]:
        *images, pickled = self.files()
        try:
            maps = safe_pickle.load(locations.read_bytes(pickled, PICKLE_LIMIT))
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{pickled} {error}") from error
        samples: dict[int, dict[str, str]] = {}
        for file in images:
            number = re.fullmatch(r"sample(\d+)", locations.name_of(locations.folder_of(file)))
            if number:
                samples.setdefault(int(number[1]), {})[locations.name_of(file)] = file
            else:
                yield malformed(file, 0, "does not lie in a folder sample{i}")
        for index, names in sorted(samples.items()):
            yield from _of_sample(index, names, maps)


def _of_sample(index: int, names: dict[str, str], maps: Any) -> Iterator[Told]:
    references = {match[1]: name for name in names if (match := REFERENCE.fullmatch(name))}
    for name, file in sorted(names.items()):
        if REFERENCE.fullmatch(name):
            continue
        match = GENERATED.fullmatch(name)
        if match is None:
            yield malformed(file, index, "is neither <prompt>_entity_0.png nor <prompt>_gen_{k}.png")
        elif match[1] not in references:
            yield malformed(file, index, f"there is no {match[1]}_entity_0.png beside it", Reason.IMAGE_MISSING)
        else:
            yield _pair(index, int(match[2]), match[1], names[references[match[1]]], file, maps)


def _pair(index: int, number: int, prompt: str, reference: str, generated: str, maps: Any) -> Record | Quarantined:
    entry = _at(_at(maps, index), number)
    quality = [_at(entry, name) for name in ("target_map", "gene_map")]
    arrays = [
        entry.values for entry in quality if isinstance(entry, safe_pickle.FloatArray) and entry.values is not None
    ]
    if len(arrays) < 2:
        detail = f"{QUALITY_FILE} has no target_map and gene_map at [{index}][{number}]"
        return malformed(generated, index, detail, Reason.QUALITY_MISSING)
    if any(array.ndim != 2 or not array.size for array in arrays):
        shapes = " and ".join(str(array.shape) for array in arrays)
        return malformed(generated, index, f"maps of shape {shapes}", Reason.QUALITY_MALFORMED)
    values = {"caption": [prompt], **decided(0)}
    values |= {name: array.tolist() for name, array in zip(schema.QUALITY, arrays, strict=True)}
    return Record(generated, index, (Pointer(reference), Pointer(generated)), values)


def _at(values: Any, key: Any) -> Any:
    """``values[key]``, None where there is no such thing; the keys of a dict may be numbers or their text."""
    if isinstance(values, dict):
        return values.get(key, values.get(str(key)))
    if isinstance(values, list | tuple) and isinstance(key, int) and key < len(values):
        return values[key]
    return None
