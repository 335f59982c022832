"""Weights of scorers: finding the file, reading it without running what is in it, loading it key for key, naming it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

M = TypeVar("M", bound=torch.nn.Module)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def is_place(place: str) -> bool:
    """Is it a path, and not a hub id ``owner/name``?"""
    return Path(place).exists() or Path(place).is_absolute() or place.startswith((".", "~")) or place.count("/") != 1


def find_file(place: str, name: str) -> Path:
    """The file ``name`` of a folder or a hub id (from its local copy, or downloaded unless the hub is switched off);
    ``place`` itself if it is a file. Raises ValueError if there is none."""
    path = Path(place).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / name).is_file():
            return path / name
        raise ValueError(f"no {name} in {place!r}")
    if is_place(place):
        raise ValueError(f"no file or folder {place!r}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(place, name))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot get {name} of {place!r} from the hub: {error}") from error


def in_folder(place: str, name: str) -> str:
    """The file ``name`` of a folder, if there is one, else ``place``: what :func:`find_file` reads, without the hub."""
    file = Path(place).expanduser() / name
    return str(file) if file.is_file() else place


def read_state(file: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, on the CPU. Pickled files are read with ``weights_only=True``, so they run nothing.

    A state dict under ``state_dict`` or ``model`` is unwrapped, and a ``module.`` before every key dropped.
    Raises ValueError for a file that is none, is damaged, or holds something else.
    """
    path = Path(file)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{str(file)!r} is no checkpoint; allowed: a file ending in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            read: object = load_file(path)
        else:
            read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own errors for a damaged file
        raise ValueError(f"cannot read the checkpoint {str(file)!r}: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(read, Mapping) and isinstance(read.get(wrapper), Mapping):
            read = read[wrapper]
    if not isinstance(read, Mapping) or not all(torch.is_tensor(value) for value in read.values()):
        raise ValueError(f"{str(file)!r} holds no state dict (names and tensors)")
    state = {str(name): tensor for name, tensor in read.items()}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def load_exactly(network: M, state: Mapping[str, torch.Tensor], source: object, *, skip: Sequence[str] = ()) -> M:
    """Put ``state`` into ``network``, which may have been made on the meta device; returns it in ``eval`` mode.

    Every parameter must be there in its shape and nothing else may be, but names that end in one of ``skip``.
    Raises ValueError that names what is missing, left over or of another shape.
    """
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(tuple(skip))} if skip else dict(state)
    wanted = network.state_dict()
    problems = [
        *_listed("missing", sorted(wanted.keys() - kept.keys())),
        *_listed("left over", sorted(kept.keys() - wanted.keys())),
        *_listed(
            "of another shape",
            [
                f"{name} {tuple(kept[name].shape)} instead of {tuple(wanted[name].shape)}"
                for name in sorted(wanted.keys() & kept.keys())
                if kept[name].shape != wanted[name].shape
            ],
        ),
    ]
    if problems:
        raise ValueError(f"{str(source)!r} does not fit {type(network).__name__}: {'; '.join(problems)}")
    network.load_state_dict(kept, strict=True, assign=True)
    return network.eval()


def _listed(what: str, names: Sequence[str], most: int = 4) -> list[str]:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return [f"{what}: {', '.join(names[:most])}{more}"] if names else []


def weights_name(place: str) -> str:
    """Names exact weights: the first 16 digits of a file's sha256, of a folder's weight and JSON files together, or
    ``owner/name@commit`` of the local copy of a hub id (``@unknown`` without one)."""
    path = Path(place).expanduser()
    if path.is_file():
        return _hash_of((_stamp(path),))
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in (*SUFFIXES, ".json") and f.is_file())
        return _hash_of(tuple(_stamp(file) for file in files))
    return f"{place}@{_commit(place)}" if not is_place(place) else place


def _stamp(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


@lru_cache
def _hash_of(stamps: tuple[tuple[str, int, int], ...]) -> str:
    """sha256 of one file, or over the sha256 of several; size and time only tell the cache that a file has changed."""
    digests = []
    for path, _, _ in stamps:
        with open(path, "rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").digest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return whole.hex()[:16]


def _commit(repository: str) -> str:
    from huggingface_hub import constants

    main = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs" / "main"
    return main.read_text().strip() if main.is_file() else "unknown"


def from_folder(kind: Any, place: str, **options: Any) -> Any:
    """A transformers model of class ``kind`` from a folder or hub id, in ``eval`` mode.

    Raises ValueError if it is not there, is of another shape, or lacks weights, which ``from_pretrained`` alone would
    leave random.
    """
    if is_place(place) and not Path(place).expanduser().is_dir():
        raise ValueError(f"cannot load {kind.__name__}: no folder {place!r}")
    try:
        network, info = kind.from_pretrained(place, output_loading_info=True, **options)
    except RuntimeError as error:  # weights of another size, which it has listed in the log
        raise ValueError(f"{place!r} does not fit {kind.__name__}: tensors of another shape") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load {kind.__name__} from {place!r}: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{place!r} does not fit {kind.__name__}: {'; '.join(_listed('missing', missing))}")
    return network.eval()


def empty(build: Callable[[], M]) -> M:
    """The module that ``build`` makes, its parameters on the meta device: no memory, no random numbers. Buffers are
    real, since no checkpoint brings those that are computed."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build()
