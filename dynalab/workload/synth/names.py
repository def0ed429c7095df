"""Close matches for a misspelt name, for errors that cure."""

from __future__ import annotations

from collections.abc import Iterable

from dynalab.errors import did_you_mean


def suggestion(name: str, known: Iterable[str]) -> str:
    """Say which of the `known` names were probably meant, or all of them if none is close.

    Examples
    --------
    >>> suggestion("poison", ["poisson", "gamma"])
    'did you mean poisson?'
    """
    known = list(known)
    close = did_you_mean(name, known)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(known)}"
