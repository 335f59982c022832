"""Prompt sets of the hub: fetched when asked for, kept in the hub's own cache."""

import re
from pathlib import Path

from eval.prompts.files import SUFFIXES

HUB_SETS = {
    "hpdv2": [f"zhwang/HPDv2:benchmark/{style}.json" for style in ("anime", "concept-art", "paintings", "photo")],
    "pickapic_v2_test": ["yuvalkirstain/pickapic_v2_no_images@test_unique"],
    "pickapic_v2_validation": ["yuvalkirstain/pickapic_v2_no_images@validation_unique"],
    "pickapic_v1_test": ["yuvalkirstain/pickapic_v1_no_images@test_unique"],
    "pickapic_v1_validation": ["yuvalkirstain/pickapic_v1_no_images@validation_unique"],
}
"""Sets that are too large or not ours to ship. HPDv2's order (style by style) is that of its benchmark."""
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<split>[\w.-]+)|:(?P<file>[\w./-]+))?")


def is_hub_id(name: str) -> bool:
    """Does it read ``owner/name``, ``owner/name@split`` or ``owner/name:file``? Paths with a known ending do not."""
    match = HUB_ID.fullmatch(name)
    ends_like_a_file = match is not None and not match["file"] and Path(name).suffix in SUFFIXES
    return match is not None and not ends_like_a_file and not name.startswith((".", "/"))


def fetch(name: str) -> list[Path]:
    """The files of a hub set, from the cache or the hub. Raises ValueError if they cannot be had."""
    return [file for place in HUB_SETS.get(name, [name]) for file in _fetch(place)]


def _fetch(place: str) -> list[Path]:
    from huggingface_hub import HfApi, hf_hub_download

    match = HUB_ID.fullmatch(place)
    assert match is not None, place
    repository, split, file = match["id"], match["split"], match["file"]
    try:
        names = [file] if file else sorted(HfApi().list_repo_files(repository, repo_type="dataset"))
        wanted = [name for name in names if name == file or _belongs(name, split)]
        if not wanted:
            raise ValueError(
                f"hub dataset {repository!r} has no prompt file{f' of split {split!r}' if split else ''}; "
                f"it has {', '.join(names[:8])}"
            )
        return [Path(hf_hub_download(repository, name, repo_type="dataset")) for name in wanted]
    except (OSError, ConnectionError) as error:
        raise ValueError(f"cannot get prompts {place!r} from the hub: {error}") from error


def _belongs(name: str, split: str | None) -> bool:
    """Files of a split are called ``<split>-00000-of-00001.parquet``, ``<split>.jsonl`` or lie in ``<split>/``."""
    path = Path(name)
    if path.suffix not in SUFFIXES or path.suffix in (".json", ".txt"):
        return False
    return split is None or path.stem == split or path.stem.startswith(f"{split}-") or split in path.parts[:-1]
