"""The workloads that come with dynalab, with the origin of every fitted number.

`conversation` is fitted to the Mooncake conversation trace (kvcache-ai/Mooncake, FAST'25 release, Apache-2.0; one hour of
a chat service, 12,031 requests); the others are stylised: round numbers of the size that the field reports.

How `conversation` was fitted. Sessions of the real trace were reconstructed from its block ids: a request continues the
latest request that used its deepest already known block (beyond block 0, which all share). That gives 7,373 sessions and
4,658 later turns, of which 75% extend the earlier prompt by its answer and a message, 15% keep only its beginning (a search
result was exchanged, a message was edited), and the rest repeat it in full. From these:

- first messages (prompt minus 880 tokens that even the shortest prompts have), new tokens of later turns, and answers:
  Gaussian mixtures on the logarithm, fitted by expectation maximisation;
- turns per session: observed shares that go on after turn 1, 2, 3, 4, 5 are .31, .42, .51, .59, .59, a beta-geometric law;
- gaps between turns: log-normal, fitted by its quartiles (69, 129, 279 s);
- edits: beta distribution by moments (share kept: mean .34, variance .081); log-normal length ratio.

A trace shows continuations only where the earlier prompt fills a second block, and sessions are cut by its window; the
parameters were therefore adjusted until a synthetic trace, put through the same reconstruction, looks like the real one.
"""

from __future__ import annotations

from typing import Final

from dynalab.workload.synth.lengths import LogNormals
from dynalab.workload.synth.spec import WorkloadSpec

_CONVERSATION: Final = WorkloadSpec(
    name="conversation",
    duration=3537.0,  # the real trace's span is 3536.999 s
    rate=3.4,  # 12,031 requests over it
    # Counts per 30 s vary 1.9 times as much as Poisson's once the hour's slow trend is removed: 1.4 ** 2.
    arrivals="gamma",
    arrival_cv=1.4,
    # Block 0 is in all 12,031 requests, block 1 in no two sessions; the shortest prompts have 891 tokens.
    system_prompts=1,
    system_tokens=LogNormals.model_validate(880),
    first_tokens=LogNormals(parts=((0.13, 20.0, 0.33), (0.20, 310.0, 1.16), (0.67, 8770.0, 1.0)), low=11),
    next_tokens=LogNormals(parts=((0.56, 14.5, 0.77), (0.24, 212.0, 1.0), (0.20, 4830.0, 0.75)), low=3),
    output_tokens=LogNormals(parts=((0.125, 12.0, 1.14), (0.155, 90.0, 0.83), (0.72, 409.0, 0.4)), low=1, high=2000),
    turns=1.65,
    turns_tail=3.5,
    max_turns=64,
    gap_seconds=LogNormals(parts=((1.0, 135.0, 1.0),), low=1.0, high=36000.0),
    edit_probability=0.15,
    retry_probability=0.03,
    edit_keep=(0.6, 1.2),
    edit_ratio=LogNormals(parts=((1.0, 0.98, 0.38),), low=0.2, high=5.0),
    context_tokens=128_200,  # longest prompt 126,195 and longest answer 2,000
)

#: Presets by name.
PRESETS: Final[dict[str, WorkloadSpec]] = {
    spec.name: spec
    for spec in (
        _CONVERSATION,
    )
}
