"""Sessions of one workload: lengths turn by turn, what each turn shares with the one before, and when it comes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from dynalab.errors import ConfigError
from dynalab.workload.synth.lengths import Floats, LogNormals, alongside, spread, zipf_pick
from dynalab.workload.synth.spec import WorkloadSpec

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Turns:
    """Requests in session order (turns of one session follow each other), one column per fact.

    Attributes
    ----------
    first : ndarray of bool
        True where a session starts.
    input_tokens, output_tokens : ndarray of int64
    shared : ndarray of int64
        Blocks taken over from the turn before (0 where a session starts).
    system, document : ndarray of int64
        Which system prompt and which document the prompt starts with; -1 for none.
    system_blocks, prefix_blocks : ndarray of int64
        Full blocks of the system prompt, and of system prompt and document together.
    time : ndarray of float64
        Wanted arrival in seconds.
    """

    first: npt.NDArray[np.bool_]
    input_tokens: Ints
    output_tokens: Ints
    shared: Ints
    system: Ints
    document: Ints
    system_blocks: Ints
    prefix_blocks: Ints
    time: Floats

    def __len__(self) -> int:
        return self.input_tokens.size

    def head(self, n: int) -> Turns:
        """Keep the first `n` rows; a session that is cut loses its last turns."""
        return Turns(**{f.name: getattr(self, f.name)[:n] for f in fields(self)})

    @staticmethod
    def concatenate(parts: list[Turns]) -> Turns:
        """Put several workloads side by side; their system prompts and documents stay apart."""
        columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Turns)}
        for name in ("system", "document"):
            base, moved = 0, []
            for part in parts:
                ids = getattr(part, name)
                moved.append(np.where(ids >= 0, ids + base, -1))
                base += int(ids.max(initial=-1)) + 1
            columns[name] = np.concatenate(moved)
        return Turns(**columns)


def draw_turns(spec: WorkloadSpec, arrivals: Floats, n_requests: int, rng: np.random.Generator) -> Turns:
    """Draw sessions until they have `n_requests` turns.

    Time is a ring: what a session would do after the trace's end happens at its beginning instead, as the rest of
    another session that had begun before the trace did. So the load neither ramps up nor fades out, and the first
    requests of a trace are partly in mid-conversation, as in a trace that was cut from a running service.

    Parameters
    ----------
    spec : WorkloadSpec
    arrivals : ndarray of float64
        Arrival times of the whole trace in seconds: sessions start where requests are dense.
    n_requests : int
    rng : numpy.random.Generator

    Returns
    -------
    Turns
    """
    system_tokens = spec.system_tokens.tokens(spread(rng, spec.system_prompts))
    document_tokens = spec.document_tokens.tokens(spread(rng, spec.documents))
    parts: list[Turns] = []
    missing = n_requests
    while missing > 0:
        n_turns_mean = min(spec.turns, spec.max_turns)
        batch = _draw_batch(spec, arrivals, int(missing / n_turns_mean * 1.02) + 8, rng, system_tokens, document_tokens)
        parts.append(batch)
        missing -= len(batch)
    columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Turns)}
    return Turns(**columns).head(n_requests)


def _draw_batch(
    spec: WorkloadSpec,
    arrivals: Floats,
    n_sessions: int,
    rng: np.random.Generator,
    system_tokens: Ints,
    document_tokens: Ints,
) -> Turns:
    length = spread(rng, n_sessions, stratified=spec.stratified)
    u_turns, u_system, u_document, u_start, u_pace = alongside(rng, length, 5, stratified=spec.stratified)
    system = zipf_pick(u_system, spec.system_prompts, spec.system_zipf) if spec.system_prompts else _none(n_sessions)
    document = zipf_pick(u_document, spec.documents, spec.document_zipf) if spec.documents else _none(n_sessions)
    if spec.documents and spec.system_prompts:
        system = document % spec.system_prompts  # a document is always read with the same system prompt
    head = system_tokens[system] if spec.system_prompts else np.zeros(n_sessions, np.int64)
    longest_answer = max(int(np.rint(spec.output_tokens.largest)), 1)
    room = spec.context_tokens - longest_answer - 1
    if head.max() > room:
        raise ConfigError(
            f"context_tokens: {spec.context_tokens} cannot hold a system prompt of {head.max()} tokens and an answer"
            f" of up to {longest_answer}; make the window larger, or lower system_tokens or output_tokens"
        )
    prefix = head + (np.minimum(document_tokens[document], room - head) if spec.documents else 0)

    n_turns = draw_turn_counts(spec, u_turns)
    start = np.cumsum(n_turns) - n_turns
    session = np.repeat(np.arange(n_sessions), n_turns)
    first_prompt = np.minimum(prefix + np.maximum(spec.first_tokens.tokens(length), 1), room + 1)
    inputs, output, shared, gaps, alive = _grow(spec, rng, start, n_turns, first_prompt, prefix)

    pace = LogNormals(parts=((1.0, 1.0, spec.pace_sigma),)).sample(u_pace) * n_turns**-spec.pace_turns
    gaps *= pace[session]
    since = np.cumsum(gaps)
    began = np.interp(u_start * arrivals.size, np.arange(arrivals.size), arrivals)
    time = began[session] + since - since[start][session]
    lap = np.floor(time / spec.duration)
    time -= lap * spec.duration

    session, lap = session[alive], lap[alive]
    first = np.ones(session.size, np.bool_)
    first[1:] = (session[1:] != session[:-1]) | (lap[1:] != lap[:-1])
    return Turns(
        first=first,
        input_tokens=inputs[alive],
        output_tokens=output[alive],
        shared=np.where(first, 0, shared[alive]),
        system=system[session],
        document=document[session],
        system_blocks=(head // spec.block_tokens)[session],
        prefix_blocks=(prefix // spec.block_tokens)[session],
        time=time[alive],
    )


def _none(n: int) -> Ints:
    return np.full(n, -1, np.int64)


def draw_turn_counts(spec: WorkloadSpec, u: Floats) -> Ints:
    """Draw turns per session: geometric with a stop probability that differs between users (beta-distributed).

    With tail exponent a and mean m, the k-th turn is followed by another with probability ``(b + k - 1) / (a + b + k
    - 1)`` where ``b = (m - 1)(a - 1)``: who has gone on so far is likely to go on.
    """
    a = spec.turns_tail
    b = (spec.turns - 1.0) * (a - 1.0)
    k = np.arange(spec.max_turns - 1, dtype=np.float64)
    beyond = np.cumprod((b + k) / (a + b + k))  # P(more than k + 1 turns)
    return 1 + np.searchsorted(-beyond, u - 1.0, side="right").astype(np.int64)


def _grow(
    spec: WorkloadSpec, rng: np.random.Generator, start: Ints, n_turns: Ints, first_prompt: Ints, prefix: Ints
) -> tuple[Ints, Ints, Ints, Floats, npt.NDArray[np.bool_]]:
    """Let prompts grow turn by turn, all sessions at once; the number of rounds is that of the longest session's turns.

    Returns
    -------
    inputs, outputs, shared : ndarray of int64, shape (n_turns.sum(),)
        Prompt and answer tokens, and blocks taken over from the turn before.
    gaps : ndarray of float64
        Seconds since the turn before.
    alive : ndarray of bool
        False from the turn on that the context window does not hold.
    """
    size = spec.block_tokens
    n = int(n_turns.sum())
    inputs, outputs, shared = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    gaps, alive = np.zeros(n), np.zeros(n, np.bool_)
    inputs[start], alive[start] = first_prompt, True
    (u_output,) = alongside(rng, first_prompt, 1, stratified=spec.stratified)
    outputs[start] = np.maximum(spec.output_tokens.tokens(u_output), 1)
    sessions = np.flatnonzero(n_turns > 1)
    turn = 1
    while sessions.size:
        row = start[sessions] + turn
        before, head = inputs[row - 1], prefix[sessions]
        u_kind, u_new, u_keep, u_ratio, u_output, u_gap = alongside(rng, before, 6, stratified=spec.stratified)
        outputs[row] = np.maximum(spec.output_tokens.tokens(u_output), 1)
        gaps[row] = spec.gap_seconds.sample(u_gap)
        new = spec.next_tokens.sample(u_new) * float(turn) ** -spec.next_decay
        new = np.rint(np.maximum(new, max(spec.next_tokens.low, 1.0))).astype(np.int64)
        full = before // size
        retry = u_kind < spec.retry_probability
        edit = ~retry & (u_kind < spec.retry_probability + spec.edit_probability) & (before > spec.edit_above)
        kept = head // size + np.floor(betaincinv(*spec.edit_keep, u_keep) * (full - head // size)).astype(np.int64)
        rewritten = np.rint(spec.edit_ratio.sample(u_ratio) * before).astype(np.int64)
        rewritten = np.maximum(rewritten, np.maximum(head, kept * size) + 1)
        prompt = np.where(edit, rewritten, before + outputs[row - 1] + new)
        # The same prompt again shares its last, partly filled block as well.
        shared[row] = np.where(edit, kept, np.where(retry, -(-before // size), full))
        inputs[row] = np.where(retry, before, prompt)
        fits = inputs[row] + outputs[row] <= spec.context_tokens
        alive[row] = fits
        turn += 1
        sessions = sessions[fits & (n_turns[sessions] > turn)]
    return inputs, outputs, shared, gaps, alive
