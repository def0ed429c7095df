"""The workloads that come with dynalab, with the origin of every fitted number.

`conversation` is fitted to the Mooncake conversation trace (kvcache-ai/Mooncake, FAST'25 release, Apache-2.0; one
hour of a chat service, 12,031 requests); the others are stylised: round numbers of the size that the field reports.

How `conversation` was fitted. Sessions of the real trace were reconstructed from its block ids: a request continues
the latest request that used its deepest already known block (beyond block 0, which all share). That gives 7,373
sessions and 4,658 later turns, of which 75% extend the earlier prompt by its answer and a message, 15% keep only its
beginning (a search result was exchanged, a message was edited), and the rest repeat it in full. From these:

- first messages (prompt minus 880 tokens that even the shortest prompts have), new tokens of later turns, and answers:
  Gaussian mixtures on the logarithm, fitted by expectation maximisation;
- turns per session: observed shares that go on after turn 1, 2, 3, 4, 5 are .31, .42, .51, .59, .59, which is a
  beta-geometric law;
- gaps between turns: log-normal (quartiles 69, 129, 279 s) with a long tail; successive gaps of one session correlate
  by .31 on the logarithm, hence a pace of each session;
- edits: a quarter of the turns after prompts above some thousand tokens, nearly none below; share kept: beta
  distribution by moments (mean .34, variance .081).

A trace shows continuations only where the earlier prompt fills a second block, and sessions are cut by its window.
The fitted values were therefore starting points: an evolution strategy (separable CMA-ES, some three hundred
generations) adjusted twenty-one of them until synthetic traces, put through the same reconstruction, agreed with the
real one in some seventy figures: LRU curve, seven other policies, percentiles of lengths and gaps, hits by turn, turns
per session, uses per block. The values below are rounded. Over 40 seeds (mean +- standard deviation, real value in
brackets) they give:

- infinite-cache hit ratio .366 +- .007 (.366), of full blocks .382 +- .007 (.382), mean over requests .384 (.384);
- LRU at 1,000 / 5,859 / 10,000 / 30,000 / 50,000 blocks .046, .138, .209, .333, .356 (.045, .136, .211, .326, .355);
- mean prompt 11,981 +- 155 (12,035) tokens, p50 6,861 (6,909), p90 27,762 (27,367), p99 85,705 (85,401);
- mean answer 341 (343) tokens; 44,630 blocks are used again (44,144);
- each of sixteen policies, Belady included, at those capacities within .016 of the real trace (mean of ten seeds).

Not reproduced: the 3 s grid of the real timestamps, the slow rise of its rate over the hour, and the number of sessions
with more than one visible turn (1,774 +- 21, in the real trace 2,259; but 65 with more than nine, there 49).
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
    first_tokens=LogNormals(
        parts=((0.143, 20.0, 0.33), (0.205, 310.0, 1.16), (0.642, 8890.0, 0.97), (0.01, 85_000.0, 0.35)), low=11
    ),
    next_tokens=LogNormals(parts=((0.57, 14.5, 0.77), (0.24, 317.0, 1.0), (0.19, 7230.0, 0.75)), low=3),
    next_decay=0.42,
    output_tokens=LogNormals(
        parts=((0.125, 12.0, 1.14), (0.155, 90.0, 0.83), (0.705, 405.0, 0.33), (0.015, 1080.0, 0.35)), low=1, high=2000
    ),
    turns=1.76,
    turns_tail=2.0,
    max_turns=100,
    gap_seconds=LogNormals(parts=((0.935, 244.0, 0.85), (0.065, 1400.0, 0.7)), low=1.0, high=36_000.0),
    pace_sigma=0.45,
    pace_turns=0.31,
    edit_probability=0.22,
    edit_above=3600,
    edit_keep=(0.75, 1.5),
    edit_ratio=LogNormals(parts=((1.0, 0.71, 0.38),), low=0.2, high=5.0),
    retry_probability=0.022,
    context_tokens=128_200,  # longest prompt 126,195 and longest answer 2,000
)

_SHARED_PROMPT: Final = WorkloadSpec(
    name="shared_prompt",
    rate=8.0,
    # Fifty applications (classifiers, assistants, extractors), each with instructions and examples of some pages.
    system_prompts=50,
    system_tokens=LogNormals(parts=((1.0, 3000.0, 0.7),), low=300, high=20_000),
    system_zipf=1.0,
    first_tokens=LogNormals(parts=((1.0, 250.0, 0.9),), low=5, high=8000),
    next_tokens=LogNormals(parts=((1.0, 100.0, 0.9),), low=3, high=4000),
    output_tokens=LogNormals(parts=((1.0, 180.0, 0.8),), low=1, high=2000),
    turns=1.15,
)

_AGENT: Final = WorkloadSpec(
    name="agent",
    rate=4.0,
    arrivals="bursty",
    # Four agents with long preambles of tool definitions; a task is a loop of some fifteen calls.
    system_prompts=4,
    system_tokens=LogNormals(parts=((1.0, 9000.0, 0.3),), low=2000, high=30_000),
    first_tokens=LogNormals(parts=((1.0, 400.0, 1.0),), low=10, high=20_000),
    # Most tool results are short (a status, a few lines), some are files or pages.
    next_tokens=LogNormals(parts=((0.7, 350.0, 0.9), (0.3, 3000.0, 0.9)), low=10, high=30_000),
    output_tokens=LogNormals(parts=((0.8, 120.0, 0.6), (0.2, 600.0, 0.5)), low=5, high=4000),
    turns=15.0,
    turns_tail=5.0,
    max_turns=150,
    # A tool answers in seconds; now and then a person is asked.
    gap_seconds=LogNormals(parts=((0.9, 6.0, 0.6), (0.1, 60.0, 1.0)), low=0.5, high=7200.0),
    pace_sigma=0.3,
    retry_probability=0.02,
)

_DOCUMENT: Final = WorkloadSpec(
    name="document",
    rate=2.0,
    system_prompts=1,
    system_tokens=LogNormals.model_validate(700),
    # Reports, contracts, manuals: tens of pages, popular ones opened by many.
    documents=1000,
    document_tokens=LogNormals(parts=((1.0, 18_000.0, 0.8),), low=2000, high=120_000),
    document_zipf=0.7,
    first_tokens=LogNormals(parts=((1.0, 60.0, 0.6),), low=5, high=2000),
    next_tokens=LogNormals(parts=((1.0, 50.0, 0.6),), low=5, high=2000),
    output_tokens=LogNormals(parts=((1.0, 300.0, 0.6),), low=5, high=4000),
    turns=2.5,
    gap_seconds=LogNormals(parts=((1.0, 90.0, 0.9),), low=2.0, high=7200.0),
)

_MIXED: Final = WorkloadSpec(
    name="mixed",
    rate=6.0,
    arrivals="sinusoidal",
    mixture={"conversation": 0.5, "shared_prompt": 0.25, "agent": 0.15, "document": 0.1},
)

#: Presets by name.
PRESETS: Final[dict[str, WorkloadSpec]] = {
    spec.name: spec for spec in (_CONVERSATION, _SHARED_PROMPT, _AGENT, _DOCUMENT, _MIXED)
}
