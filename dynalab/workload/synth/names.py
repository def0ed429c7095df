"""Close matches for a misspelt name, for errors that cure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(name: str, known: Iterable[str]) -> str:
    """Say which of the `known` names were probably meant, or all of them if none is close.

    Examples
    --------
    >>> suggestion("poison", ["poisson", "gamma"])
    'did you mean poisson?'
    """
    known = list(known)
    close = get_close_matches(str(name), known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(known)}"
