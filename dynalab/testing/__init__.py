"""Conformance suites: what a new part must pass before the rest of dynalab will rely on it.

Each suite is a class of pytest tests; subclass it in a test file, name the candidate, and run pytest::

    from dynalab.testing import PolicyTests

    class TestMyPolicy(PolicyTests):
        policy = "mypolicy"

The suites need pytest and hypothesis, which the extra ``test`` installs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynalab.testing.policies import PolicyTests
    from dynalab.testing.tiers import TierTests

__all__ = ["PolicyTests", "TierTests"]


def __getattr__(name: str) -> Any:
    """Import a suite, and with it hypothesis, when it is first asked for."""
    if name == "PolicyTests":
        from dynalab.testing.policies import PolicyTests

        return PolicyTests
    if name == "TierTests":
        from dynalab.testing.tiers import TierTests

        return TierTests
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
