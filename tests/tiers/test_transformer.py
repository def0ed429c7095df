"""A transformer whose pages are evicted, offloaded and brought back computes the same bits as one that never lost any.

KVBM's own test of determinism compares 621 answers with and without its cache. Here every configuration compares more
than that many vectors of logits, bit by bit, with those of a run that computes everything again, and one of its
configurations is a device so large that nothing is ever evicted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tiny_transformer import Floats, TinyTransformer

from dynalab.errors import NotEnoughBlocks
from dynalab.kv import KVLayout, TokenBlock, cut_pages, sequence_hashes
from dynalab.tiers import Blocks, DeviceTier, DiskTier, HostTier, TierStack

PAGE = 4
ANSWER = 6
LAYOUT = KVLayout(num_layers=2, outer=2, page_tokens=PAGE, inner=16, heads=2, dtype="float16")
COMPARISONS = 621


@dataclass(frozen=True)
class Expected:
    """A prompt, and what a run without any cache makes of it."""

    prompt: tuple[int, ...]
    logits: tuple[Floats, ...]

    @property
    def answer(self) -> tuple[int, ...]:
        return tuple(int(row.argmax()) for row in self.logits)


def recompute(model: TinyTransformer, prompt: tuple[int, ...]) -> Expected:
    """Answer a prompt greedily from an empty cache."""
    tokens = list(prompt)
    pages = [model.new_page() for _ in range(-(-(len(prompt) + ANSWER) // PAGE))]
    for position, token in enumerate(tokens):
        logits = model.step(token, position, pages)
    found = [logits]
    while len(found) < ANSWER:
        tokens.append(int(logits.argmax()))
        logits = model.step(tokens[-1], len(tokens) - 1, pages)
        found.append(logits)
    return Expected(prompt, tuple(found))


def assert_same_bits(one: Floats, other: Floats) -> None:
    assert one.dtype == other.dtype == np.float32
    assert np.array_equal(one.view(np.uint32), other.view(np.uint32))


@cache
def conversations(dtype: str) -> tuple[TinyTransformer, list[Expected]]:
    """Six topics, four questions to each, and a second turn that goes on from the answer to the first."""
    model = TinyTransformer(LAYOUT.with_(dtype=dtype))
    rng = np.random.default_rng(7)

    def words(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, model.vocabulary, count).tolist())

    turns = []
    for topic in [words(4 * PAGE) for _ in range(6)]:
        for length in (3, PAGE, 7, 2 * PAGE):
            first = recompute(model, topic + words(length))
            second = recompute(model, first.prompt + first.answer + words(length))
            turns += [first, second]
    return model, turns


@dataclass
class Lane:
    """A request that is being answered: its tokens so far, its blocks, and the one that its tokens fill."""

    number: int
    tokens: list[int]
    logits: list[Floats]
    blocks: Blocks
    filling: TokenBlock
    pages: list[np.ndarray] = field(default_factory=list)


class Engine:
    """Answers prompts greedily, a few at a time, with all keys and values in a stack's blocks."""

    def __init__(self, model: TinyTransformer, stack: TierStack, lanes: int, ahead: bool = False) -> None:
        self.model, self.stack, self.n_lanes, self.ahead = model, stack, lanes, ahead
        self.hits = {"device": 0, "host": 0, "disk": 0}
        self.preempted = self.prefetched = 0

    def serve(self, prompts: list[tuple[int, ...]]) -> list[list[Floats]]:
        """Return the logits of each answer, in the order of the prompts."""
        waiting = deque((number, list(prompt), []) for number, prompt in enumerate(prompts))
        answers: list[list[Floats]] = [[] for _ in prompts]
        lanes: list[Lane] = []
        while waiting or lanes:
            if waiting and self.ahead:
                # Still on its way when its request begins, for all that anybody knows.
                prompt = waiting[-1 if len(waiting) < 3 else 2][1]
                self.prefetched += self.stack.prefetch(sequence_hashes(prompt, PAGE)).n_blocks
            while waiting and len(lanes) < self.n_lanes:
                try:
                    lanes.append(self.prefill(*waiting[0]))
                except NotEnoughBlocks:
                    assert lanes, "the device has no room for one request"
                    break
                waiting.popleft()
            for lane in list(lanes):
                if len(lane.logits) < ANSWER and self.decode(lane):
                    continue
                lanes.remove(lane)
                self.stack.release(lane.blocks)
                if len(lane.logits) == ANSWER:
                    answers[lane.number] = lane.logits
                else:
                    # No room for its next block: as engines do, it gives all up and starts again with what it has.
                    self.preempted += 1
                    waiting.append((lane.number, lane.tokens, lane.logits))
        return answers

    def prefill(self, number: int, tokens: list[int], logits: list[Floats]) -> Lane:
        """Reuse what the stack has of a prompt's full pages, but for the last token, and compute the rest."""
        hashes = sequence_hashes(tokens, PAGE)
        match = self.stack.match(hashes[: (len(tokens) - 1) // PAGE])
        tiers = match.tiers
        reused = self.stack.onboard(match).result(timeout=30)
        for name, count in tiers.items():
            self.hits[name] += count
        try:
            new = self.stack.allocate(-(-len(tokens) // PAGE) - len(reused))
        except NotEnoughBlocks:
            self.stack.release(reused)
            raise
        blocks = reused + new
        pages = blocks.view()
        for position in range(len(reused) * PAGE, len(tokens)):
            last = self.model.step(tokens[position], position, pages)
        self.stack.register(new[: len(hashes) - len(reused)], hashes[len(reused) :])
        lane = Lane(number, list(tokens), list(logits), blocks, TokenBlock(0, PAGE), blocks.view())
        if logits:
            assert_same_bits(last, logits[-1])
        else:
            lane.logits.append(last)
        if len(tokens) % PAGE:
            lane.filling.init_sequence(parent=int(hashes[-1]))
            lane.filling.add_tokens(tokens[len(hashes) * PAGE :])
        else:
            lane.filling.apply_token_block(cut_pages(tokens, PAGE)[-1])
        return lane

    def decode(self, lane: Lane) -> bool:
        """Append the likeliest token; False where there is no block for it."""
        if lane.filling.is_complete:
            try:
                lane.blocks = lane.blocks + self.stack.allocate(1)
            except NotEnoughBlocks:
                return False
            parent = lane.filling.sequence_hash
            lane.filling = TokenBlock(len(lane.blocks), PAGE)
            lane.filling.init_sequence(parent=parent)
            lane.pages = lane.blocks.view()
        lane.tokens.append(int(lane.logits[-1].argmax()))
        lane.filling.add_token(lane.tokens[-1])
        lane.logits.append(self.model.step(lane.tokens[-1], len(lane.tokens) - 1, lane.pages))
        if not lane.filling.remaining:
            name = lane.filling.commit()
            self.stack.register(lane.blocks[-1:], [name], parent=lane.filling.parent or 0)
            # Another lane may have registered the same block first: then that one is used from here on.
            lane.pages = lane.blocks.view()
        return True


def requests(turns: list[Expected], seed: int) -> list[Expected]:
    """Turns in random order, some topics asked about more often than others; enough for all comparisons."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(turns) + 1) ** 0.5
    count = -(-COMPARISONS // ANSWER)
    return [turns[i] for i in rng.choice(len(turns), count, p=share / share.sum())]


@pytest.fixture
def open_stack(tmp_path: Path) -> Iterator[Callable[..., TierStack]]:
    """Makes stacks whose device and host hold a few requests, and closes them."""
    with ExitStack() as stacks:

        def open_(layout: KVLayout, host: KVLayout | None = None, device_blocks: int = 20, **options) -> TierStack:
            tiers = (
                DeviceTier(layout, capacity=device_blocks, device="host-emulated"),
                HostTier(host or layout, capacity=24),
                DiskTier(layout, capacity=400, path=tmp_path / str(len(list(tmp_path.iterdir())))),
            )
            return stacks.enter_context(TierStack(*tiers, **options))

        yield open_


def compare(found: list[list[Floats]], asked: list[Expected]) -> int:
    """Compare all logits bit by bit, and return how many vectors were compared."""
    count = 0
    for answer, expected in zip(found, asked, strict=True):
        assert len(answer) == ANSWER
        for one, other in zip(answer, expected.logits, strict=True):
            assert_same_bits(one, other)
            count += 1
    return count


@pytest.mark.parametrize("ahead", [False, True], ids=["", "prefetch"])
@pytest.mark.parametrize(
    ("dtype", "order", "host_order", "options"),
    [
        ("float16", "block_first", "block_first", {"mode": "write_through"}),
        ("float16", "layer_first", "block_first", {"mode": "write_through", "policy": "arc", "disk_path": "direct"}),
        ("float32", "layer_first", "layer_first", {"mode": "write_through", "touch": "all"}),
        ("float16", "block_first", "layer_first", {"mode": "write_back"}),
        ("float32", "layer_first", "block_first", {"mode": "write_back", "disk_path": "direct"}),
        ("float32", "block_first", "block_first", {"mode": "selective", "policy": "s3fifo"}),
        ("float16", "layer_first", "layer_first", {"mode": "selective"}),
    ],
)
def test_evicted_offloaded_and_onboarded_pages_change_no_bit(
    open_stack: Callable[..., TierStack], dtype: str, order: str, host_order: str, options: dict[str, str], ahead: bool
) -> None:
    model, turns = conversations(dtype)
    layout = model.layout.with_(order=order)
    stack = open_stack(layout, model.layout.with_(order=host_order), **options)
    asked = requests(turns, seed=3)
    engine = Engine(model, stack, lanes=2, ahead=ahead)
    assert compare(engine.serve([expected.prompt for expected in asked]), asked) >= COMPARISONS
    stack.drain()
    facts = stack.stats()
    moved = facts["moved_blocks"].to_series()
    # Without these the comparison would show nothing.
    assert engine.hits["device"] > 20
    assert engine.hits["host"] > 20
    assert engine.hits["disk"] > 20
    assert moved["device_to_host"] > 20
    assert moved["host_to_disk"] + moved["device_to_disk"] > 20
    assert moved["host_to_device"] > 20
    assert moved["disk_to_host"] + moved["disk_to_device"] > 20
    assert (facts["evictions"] > 0).sel(tier=["device", "host"]).all()
    assert engine.preempted > 0
    assert (engine.prefetched > 0) == ahead
    assert facts["failed_blocks"].sum() == 0
    assert facts["in_use"].sum() == 0


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_device_that_holds_everything_changes_no_bit_either(open_stack: Callable[..., TierStack], dtype: str) -> None:
    model, turns = conversations(dtype)
    stack = open_stack(model.layout, device_blocks=500)
    asked = requests(turns, seed=3)
    engine = Engine(model, stack, lanes=3)
    assert compare(engine.serve([expected.prompt for expected in asked]), asked) >= COMPARISONS
    facts = stack.stats()
    assert facts["evictions"].sel(tier="device") == 0
    assert engine.hits["device"] > 500
    assert engine.hits["host"] == engine.hits["disk"] == 0


@pytest.mark.parametrize("tier", ["device", "host"])
def test_the_comparison_sees_a_single_flipped_bit(open_stack: Callable[..., TierStack], tier: str) -> None:
    """What was compared above depends on every page: with the lowest bit of one key wrong, other logits come out."""
    model, turns = conversations("float16")
    stack = open_stack(model.layout)
    expected = turns[1]
    engine = Engine(model, stack, lanes=1)
    compare(engine.serve([expected.prompt]), [expected])
    stack.drain()
    hashes = sequence_hashes(expected.prompt, PAGE)
    if tier == "host":
        # Others take the device, so that the pages have to come back.
        stack.release(stack.allocate(stack.device.capacity))
    match = stack.match(hashes)
    assert match.tiers[tier] == len(hashes)
    where = stack.device if tier == "device" else stack.host
    bits = where.view(match._slots[2]).view(np.uint16)
    bits[0, 0, 1, 5] ^= 1
    stack.release(match)
    (answer,) = engine.serve([expected.prompt])
    with pytest.raises(AssertionError):
        compare([answer], [expected])
