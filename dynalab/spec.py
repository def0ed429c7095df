"""The base of frozen fact sheets and configurations: pydantic models whose refusals are one-line `ConfigError`s."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo

from dynalab.errors import ConfigError
from dynalab.units import parse_duration, parse_size


class Spec(BaseModel):
    """A frozen set of checked fields; unknown fields are refused, for they are mostly misspelt ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: What the errors call it.
    _what: ClassVar[str] = "spec"

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            name = f" {values['name']!r}" if isinstance(values.get("name"), str) else ""
            raise ConfigError(f"{self._what}{name}: {_first_line(error, type(self))}") from None


def _first_line(error: ValidationError, spec: type[Spec]) -> str:
    """Turn pydantic's report into one line: the first culprit, its value, and what would be right."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first.get("ctx", {}).get("error"), ConfigError):
        return message  # The parsers of sizes and durations name field, value and cure themselves.
    if not field:
        return message
    if first["type"] == "missing":
        return f"{field} is missing; {message.lower()}"
    if first["type"] == "extra_forbidden":
        return f"{field} is no field of it; write one of {', '.join(spec.model_fields)}"
    return f"{field}: {first['input']!r:.80}: {message[0].lower()}{message[1:]}"


# What people write where a field wants bytes, seconds or several values: for pydantic's BeforeValidator.


def as_size(value: object, info: ValidationInfo) -> int:
    """Read a size such as "8GiB" [bytes]."""
    return parse_size(value, field=str(info.field_name))


def as_seconds(value: object, info: ValidationInfo) -> float:
    """Read a duration such as "5s" [s]."""
    return parse_duration(value, field=str(info.field_name))


def as_list(value: object) -> list[Any]:
    """Return values without repetition, from a text such as "1,4,16" too."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return list(dict.fromkeys(value)) if isinstance(value, Iterable) else [value]
