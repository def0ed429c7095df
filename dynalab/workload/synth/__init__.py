"""Synthetic workloads: traces with the statistics of real ones, made from a seed.

``arrivals`` says when requests come, ``lengths`` how long their parts are, ``sessions`` who asks again and what is
shared, ``blocks`` names the blocks, ``presets`` holds the workloads with the origin of their numbers, ``generate``
puts it together, and ``prefixes`` gives traces without block ids some that fit their lengths.
"""

from __future__ import annotations

from dynalab.workload.synth.arrivals import ARRIVALS
from dynalab.workload.synth.generate import synthesize
from dynalab.workload.synth.lengths import LogNormals
from dynalab.workload.synth.prefixes import with_prefixes
from dynalab.workload.synth.presets import PRESETS
from dynalab.workload.synth.spec import WorkloadSpec

__all__ = ["ARRIVALS", "PRESETS", "LogNormals", "WorkloadSpec", "synthesize", "with_prefixes"]
