"""The errors that dynalab raises on purpose.

Each message is one line that says what was wrong, where, and what would be right. The command line prints that line and
exits with code 2; library users catch :class:`DynalabError` or one of its children.
"""

from __future__ import annotations


class DynalabError(Exception):
    """Base of every error that a user can cause or cure."""


class TraceError(DynalabError):
    """A trace that cannot be read, written or used as asked.

    Parameters
    ----------
    message : str
        What is wrong and what would be right.
    path : str, optional
        File that holds the culprit.
    line : int, optional
        One-based line number in that file.
    """

    def __init__(self, message: str, *, path: object = None, line: int | None = None) -> None:
        self.path = None if path is None else str(path)
        self.line = line
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + message)


class ConfigError(DynalabError, ValueError):
    """A parameter with a value that cannot be used: names the field, the value and what would be right."""


class ReportError(DynalabError):
    """A report that could not be made."""
