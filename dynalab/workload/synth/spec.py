"""Everything that describes a synthetic workload: one frozen model, each field with its unit."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dynalab.errors import ConfigError
from dynalab.units import parse_duration
from dynalab.workload.synth.arrivals import ARRIVALS
from dynalab.workload.synth.lengths import LogNormals
from dynalab.workload.synth.names import suggestion

#: More requests than this in one trace are taken for a slip (a rate per hour, a duration in milliseconds).
MAX_REQUESTS = 20_000_000

#: Fields that say when requests come and how blocks are cut; a mixture takes all others from its parts.
TRAFFIC_FIELDS = frozenset(
    {
        "duration",
        "rate",
        "block_tokens",
        "arrivals",
        "arrival_cv",
        "period",
        "amplitude",
        "burst_factor",
        "burst_seconds",
    }
    | {"quiet_level", "mixture", "stratified"}
)


class WorkloadSpec(BaseModel):
    """A synthetic workload: who comes when, with which prompts, and what the prompts share.

    A prompt is ``system prompt + document + conversation so far + new message``. Sessions (one user's chat, one run
    of an agent) have one or more turns; a turn's prompt is the one before, its answer, and new tokens, unless the
    turn is a *retry* (the same prompt again) or an *edit* (an early part is kept, the rest replaced).

    Attributes
    ----------
    name : str
        The preset's name.
    duration : float
        Length of the trace in seconds.
    rate : float
        Mean arrival rate in requests (not sessions) per second.
    block_tokens : int
        Tokens per block.
    arrivals : str
        ``poisson``, ``gamma``, ``sinusoidal``, ``bursty`` or ``constant``.
    arrival_cv : float
        ``gamma``: standard deviation of the gaps between arrivals over their mean; 1 is Poisson, more is burstier.
    period : float or None
        ``sinusoidal``: seconds per wave; None makes one wave of the whole trace.
    amplitude : float
        ``sinusoidal``: swing of the rate as a share of its mean.
    burst_factor, burst_seconds, quiet_level : float
        ``bursty``: rate inside bursts over the mean rate, mean length of a burst in seconds, rate between bursts over
        the mean rate.
    system_prompts : int
        Number of applications, each with a system prompt of its own; 0 for none.
    system_tokens : LogNormals
        Their lengths in tokens.
    system_zipf : float
        Popularity: application i is chosen in proportion to ``i ** -system_zipf``.
    documents : int
        Number of documents that sessions ask about (after the system prompt); 0 for none.
    document_tokens : LogNormals
        Their lengths in tokens, cut to what the context window holds.
    document_zipf : float
        Popularity, as for system prompts.
    first_tokens, next_tokens : LogNormals
        New tokens of a session's first message, and of each later one.
    next_decay : float
        The k-th later message is ``k ** -next_decay`` times as long: people bring their material early on.
    output_tokens : LogNormals
        Lengths of answers in tokens.
    turns : float
        Mean turns per session (before the trace's window cuts them).
    turns_tail : float
        Exponent of the turns' tail (beta-geometric distribution): near 1 a few sessions have most turns; large values
        give a geometric distribution.
    max_turns : int
        No session is longer.
    gap_seconds : LogNormals
        Seconds from one turn's arrival to the next one's.
    pace_sigma : float
        Spread between sessions: all gaps of a session are multiplied by one log-normal factor with median 1 and this
        sigma.
    pace_turns : float
        Those who ask much ask quickly: all gaps of a session of n turns are multiplied by ``n ** -pace_turns``.
    edit_probability, retry_probability : float
        Shares of the later turns that are edits and retries.
    edit_above : int
        Only prompts longer than this many tokens are edited (elsewhere the turn just goes on).
    edit_keep : (float, float)
        Beta distribution of the share of the earlier full blocks (behind the system prompt and document) that an edit
        keeps.
    edit_ratio : LogNormals
        Prompt length after an edit over the length before.
    context_tokens : int
        Context window: a session ends before prompt + answer exceed it.
    mixture : dict of str to float
        Shares (of requests) of other presets; the fields of sessions above are then those presets' own.
    stratified : bool
        Spread the random draws evenly, so that short traces stay near the distribution (see `lengths`); False draws
        independently.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str
    duration: float = Field(default=3600.0, gt=0, le=366 * 86400.0)
    rate: float = Field(default=4.0, gt=0, le=1e6)
    block_tokens: int = Field(default=512, ge=1, le=65536)
    arrivals: str = "poisson"
    arrival_cv: float = Field(default=2.0, ge=0.05, le=20)
    period: float | None = Field(default=None, gt=0)
    amplitude: float = Field(default=0.5, ge=0, le=1)
    burst_factor: float = Field(default=4.0, gt=1, le=1000)
    burst_seconds: float = Field(default=30.0, gt=0)
    quiet_level: float = Field(default=0.25, ge=0, lt=1)
    system_prompts: int = Field(default=1, ge=0, le=1_000_000)
    system_tokens: LogNormals = Field(default=LogNormals.model_validate(1024))
    system_zipf: float = Field(default=1.0, ge=0, le=5)
    documents: int = Field(default=0, ge=0, le=1_000_000)
    document_tokens: LogNormals = Field(default=LogNormals.model_validate(0))
    document_zipf: float = Field(default=1.0, ge=0, le=5)
    first_tokens: LogNormals = Field(default=LogNormals.model_validate((200, 1.0)))
    next_tokens: LogNormals = Field(default=LogNormals.model_validate((100, 1.0)))
    next_decay: float = Field(default=0.0, ge=0, le=3)
    output_tokens: LogNormals = Field(default=LogNormals.model_validate((250, 0.6)))
    turns: float = Field(default=1.0, ge=1, le=1000)
    turns_tail: float = Field(default=4.0, ge=1.1, le=1000)
    max_turns: int = Field(default=64, ge=1, le=10_000)
    gap_seconds: LogNormals = Field(default=LogNormals.model_validate((60, 1.0)))
    pace_sigma: float = Field(default=0.0, ge=0, le=3)
    pace_turns: float = Field(default=0.0, ge=0, le=2)
    edit_probability: float = Field(default=0.0, ge=0, le=1)
    retry_probability: float = Field(default=0.0, ge=0, le=1)
    edit_above: int = Field(default=0, ge=0, le=10_000_000)
    edit_keep: tuple[float, float] = (1.0, 1.0)
    edit_ratio: LogNormals = Field(default=LogNormals.model_validate((1.0, 0.3)))
    context_tokens: int = Field(default=131_072, ge=2, le=10_000_000)
    mixture: dict[str, float] = Field(default_factory=dict)
    stratified: bool = True

    @field_validator("duration", "period", "burst_seconds", mode="before")
    @classmethod
    def _seconds(cls, value: Any, info: Any) -> Any:
        return None if value is None else parse_duration(value, field=info.field_name)

    @field_validator("arrivals")
    @classmethod
    def _process(cls, value: str) -> str:
        if value not in ARRIVALS:
            raise ValueError(f"no such arrival process; {suggestion(value, ARRIVALS)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.edit_probability + self.retry_probability > 1:
            raise ValueError("edit_probability and retry_probability add up to more than 1; lower one of them")
        if min(self.edit_keep) <= 0:
            raise ValueError(f"edit_keep {self.edit_keep}: both parameters of the beta distribution must be above 0")
        if any(not share > 0 for share in self.mixture.values()):
            raise ValueError(
                f"mixture {self.mixture}: every share must be above 0; leave out the presets you do not want"
            )
        expected = self.rate * self.duration
        if not 1 <= expected <= MAX_REQUESTS:
            raise ValueError(
                f"rate {self.rate:g} requests/s for duration {self.duration:g} s makes about {expected:.3g} requests; "
                f"choose both so that it is 1 to {MAX_REQUESTS:,}"
            )
        return self

    def override(self, **changes: Any) -> WorkloadSpec:
        """Return a copy with some fields changed, checked as a whole.

        Raises
        ------
        ConfigError
            For a field that does not exist (close ones are named) or a value that cannot be used.
        """
        for field in changes:
            if field not in WorkloadSpec.model_fields or field == "name":
                fields = [f for f in WorkloadSpec.model_fields if f != "name"]
                raise ConfigError(f"{field}: no such workload parameter; {suggestion(field, fields)}")
        try:
            return WorkloadSpec.model_validate({**dict(self), **changes})
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    """Say where the first problem lies, which value caused it, and what would be right."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    where = ".".join(str(part) for part in first["loc"])
    cure = ""
    if WorkloadSpec.model_fields[str(first["loc"][0])].annotation is LogNormals:
        cure = "; give a number, a pair (median, sigma), or parts, each (weight, median, sigma)"
    return f"{where}: {first['input']!r} cannot be used: {message[:1].lower()}{message[1:]}{cure}"
