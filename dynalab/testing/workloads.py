"""Random work for the conformance suites: hypothesis strategies and seeded long runs over blocks with prefixes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("dynalab.testing needs hypothesis: install dynalab with its extra 'test'") from error

#: One step of a run: an access to this block, or its removal from outside.
ACCESS, REMOVE = 0, 1


@dataclass(frozen=True)
class Run:
    """One cache and what happens to it.

    Attributes
    ----------
    capacity, n_blocks : int
        In blocks.
    steps : tuple of (int, int)
        ``(ACCESS or REMOVE, block id)``.
    position, parent, priority : tuple of int, length n_blocks
        Facts about the blocks: depth in the forest of prefixes, preceding block (-1 for a root), priority.
    """

    capacity: int
    n_blocks: int
    steps: tuple[tuple[int, int], ...]
    position: tuple[int, ...]
    parent: tuple[int, ...]
    priority: tuple[int, ...]

    @property
    def facts(self) -> dict[str, tuple[int, ...]]:
        """The facts as keyword arguments of ``PolicyState``."""
        return {"position": self.position, "parent": self.parent, "priority": self.priority}

    @property
    def accesses(self) -> list[int]:
        """The blocks accessed, without the removals."""
        return [block for op, block in self.steps if op == ACCESS]

    def next_uses(self) -> list[int]:
        """Return, per step, the index of the next access to the same block, -1 for never."""
        following: dict[int, int] = {}
        answer = [-1] * len(self.steps)
        for i in range(len(self.steps) - 1, -1, -1):
            op, block = self.steps[i]
            answer[i] = following.get(block, -1)
            if op == ACCESS:
                following[block] = i
        return answer

    def with_capacity(self, capacity: int) -> Run:
        """Return the same run on a cache of another size."""
        return replace(self, capacity=capacity)

    def with_a_stranger(self) -> Run:
        """Return the same run on a cache that knows one more block, which no step names."""
        return replace(
            self,
            n_blocks=self.n_blocks + 1,
            position=(*self.position, 0),
            parent=(*self.parent, -1),
            priority=(*self.priority, 0),
        )

    def without_removals(self) -> Run:
        """Return the same run with nothing but accesses."""
        return replace(self, steps=tuple(step for step in self.steps if step[0] == ACCESS))

    def relabelled(self, new_id: npt.NDArray[np.int64]) -> Run:
        """Return the same run in which block ``x`` is called ``new_id[x]``."""
        old_id = np.argsort(new_id)
        return replace(
            self,
            steps=tuple((op, int(new_id[block])) for op, block in self.steps),
            position=tuple(self.position[x] for x in old_id),
            parent=tuple(-1 if self.parent[x] < 0 else int(new_id[self.parent[x]]) for x in old_id),
            priority=tuple(self.priority[x] for x in old_id),
        )


def forest(rng: np.random.Generator, n_blocks: int) -> dict[str, tuple[int, ...]]:
    """Return random facts about blocks: a forest of prefixes in which a parent has a smaller id, and priorities."""
    parent = [int(rng.integers(-1, i)) if i else -1 for i in range(n_blocks)]
    position = [0] * n_blocks
    for block, before in enumerate(parent):
        position[block] = 0 if before < 0 else position[before] + 1
    priority = rng.choice([-5, 0, 0, 1, 50, 100, 120], n_blocks)
    return {"position": tuple(position), "parent": tuple(parent), "priority": tuple(map(int, priority))}


def prompt(parent: tuple[int, ...], leaf: int) -> list[int]:
    """Return the blocks of the prompt that ends with ``leaf``, from its root."""
    path = [leaf]
    while parent[path[-1]] >= 0:
        path.append(parent[path[-1]])
    return path[::-1]


def _piece(kind: str, a: int, b: int, n_blocks: int, parent: tuple[int, ...]) -> list[tuple[int, int]]:
    block = a % n_blocks
    if kind == "remove":
        return [(REMOVE, block)]
    if kind == "scan":
        return [(ACCESS, (block + i) % n_blocks) for i in range(b)]
    if kind == "burst":
        return [(ACCESS, block)] * (1 + b % 4)
    if kind == "prompt":
        return [(ACCESS, x) for x in prompt(parent, block)]
    # The square of a uniform number favours low ids: a few hot blocks, revisited at all distances.
    draws = np.random.default_rng(a).random(2 * b) ** 2
    return [(ACCESS, int(x)) for x in draws * n_blocks]


def runs(removals: bool = True, max_capacity: int = 40) -> st.SearchStrategy[Run]:
    """Return a strategy for runs made of scans, bursts, prompts, skewed stretches and (optionally) removals."""
    kinds = ["skew", "scan", "prompt", "burst", "skew", "scan"] + ["remove", "remove"] * removals
    pieces = st.lists(
        st.tuples(st.sampled_from(kinds), st.integers(0, 255), st.integers(1, 24)), min_size=1, max_size=24
    )

    def build(capacity: int, n_blocks: int, seed: int, parts: list[tuple[str, int, int]]) -> Run:
        facts = forest(np.random.default_rng(seed), n_blocks)
        steps = tuple(step for kind, a, b in parts for step in _piece(kind, a, b, n_blocks, facts["parent"]))
        return Run(capacity, n_blocks, steps, **facts)

    return st.builds(build, st.integers(1, max_capacity), st.integers(1, 96), st.integers(0, 1000), pieces)


def long_run(
    accesses: npt.NDArray[np.int64], capacity: int, n_blocks: int, rng: np.random.Generator, removals: float = 0.02
) -> Run:
    """Return a run over given accesses in which a share of the steps is followed by the removal of a random block."""
    steps: list[tuple[int, int]] = []
    for block, chance, other in zip(
        accesses.tolist(), rng.random(accesses.size), rng.integers(0, n_blocks, accesses.size).tolist(), strict=True
    ):
        steps.append((ACCESS, block))
        if chance < removals:
            steps.append((REMOVE, other))
    return Run(capacity, n_blocks, tuple(steps), **forest(rng, n_blocks))
