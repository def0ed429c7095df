"""Counts as text for Prometheus, in a registry of their own: two pools, or two clients, do not clash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Histogram(NamedTuple):
    """Counts by upper bound; the last count is of what lies beyond all bounds."""

    name: str
    text: str
    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


def exposition(
    counters: Iterable[tuple[str, str, float]],
    gauges: Iterable[tuple[str, str, float]],
    histograms: Iterable[Histogram] = (),
    labels: Mapping[str, str] | None = None,
) -> str:
    """Return metrics in Prometheus' text format.

    Parameters
    ----------
    counters, gauges : iterable of (str, str, float)
        Name, what it counts, and value; counters get the ending ``_total``.
    histograms : iterable of Histogram
    labels : mapping of str to str, optional
        Put on every sample.

    Examples
    --------
    >>> print(exposition([("asked", "requests", 3)], [], labels={"pool": "a"}).splitlines()[-1])
    asked_total{pool="a"} 3.0
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    names, values = list(labels or {}), list((labels or {}).values())

    class Once:
        def collect(self) -> Iterator[Any]:
            for make, metrics in ((CounterMetricFamily, counters), (GaugeMetricFamily, gauges)):
                for name, text, value in metrics:
                    family = make(name, text, labels=names)
                    family.add_metric(values, value)
                    yield family
            for one in histograms:
                histogram = HistogramMetricFamily(one.name, one.text, labels=names)
                seen, buckets = 0, []
                for bound, count in zip((*map(repr, one.bounds), "+Inf"), one.counts, strict=True):
                    seen += count
                    buckets.append((bound, seen))
                histogram.add_metric(values, buckets, one.total)
                yield histogram

    registry = CollectorRegistry()
    registry.register(Once())
    return generate_latest(registry).decode()
