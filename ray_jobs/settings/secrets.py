"""Passwords in addresses: refused in configs, which are kept and shown, and left out of whatever is written."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit


def without_secrets(text: str) -> str:
    """``text``, an address or a message with addresses in it, without users and passwords before hosts."""
    return re.sub(r"(?<=://)[^/\s@]+@", "", text)


def secrets_in(data: Any, path: str = "") -> Iterator[str]:
    """A sentence for each address with a password anywhere in a config; it does not repeat the password."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield from secrets_in(value, f"{path}.{name}" if path else str(name))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from secrets_in(value, f"{path}[{index}]")
    elif isinstance(data, str) and "://" in data and has_password(data):
        yield (
            f"{path}: holds a password, and configs are saved, logged and shown; leave it out and set environment "
            "variables where the job runs (MLFLOW_TRACKING_URI or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD; for data those of its storage)"
        )


def has_password(address: str) -> bool:
    try:
        return urlsplit(address).password is not None
    except ValueError:  # no address
        return False
