"""The runtime type checker that the tests put on dpo_core."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

_CONFIGURED = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check shapes and types at every call; an int may stand where a float is wanted, as type checkers have it.

    A function that takes a protocol which Python cannot check at run time stays as it is.
    """
    try:
        return _CONFIGURED(function)
    except BeartypeDecorHintPep3119Exception:
        return function
