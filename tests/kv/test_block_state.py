"""The life of a block, held to a plain model that may do only what the table of states allows."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dynalab.errors import BlockStateError, ConfigError
from dynalab.kv import BlockState, TokenBlock, TokenPage, cut_pages, sequence_hashes

PAGE = 3
BLOCKS = 3
tokens = st.lists(st.integers(0, 1), max_size=5)
block_ids = st.integers(0, BLOCKS - 1)


@dataclass
class Plain:
    """What a block should be."""

    state: str = "reset"
    tokens: list[int] = field(default_factory=list)
    salt: int = 1337
    parent: int | None = None

    @property
    def hash(self) -> int:
        return int(sequence_hashes(self.tokens, PAGE, salt=self.salt, parent=self.parent)[0])


class BlockLife(RuleBasedStateMachine):
    """Any operation at any time: allowed ones do what the model does, others say why and change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [TokenBlock(n, PAGE) for n in range(BLOCKS)]
        self.plain = [Plain() for _ in range(BLOCKS)]
        self.registry: dict[int, TokenBlock] = {}

    def refused(self, n: int, operation, *arguments: object) -> None:
        with pytest.raises(BlockStateError, match=rf"^block {n} is {self.plain[n].state}: [^\n]+; [^\n]+$"):
            operation(*arguments)

    @rule(n=block_ids, salt=st.sampled_from([1337, 0, 2**64 - 1]), parent=st.sampled_from([None, 0, 17]))
    def init_sequence(self, n: int, salt: int, parent: int | None) -> None:
        if self.plain[n].state != "reset":
            self.refused(n, self.blocks[n].init_sequence, salt, parent)
            return
        self.blocks[n].init_sequence(salt, parent)
        self.plain[n] = Plain("partial", [], salt, parent)

    @rule(n=block_ids, token=st.integers(0, 1))
    def add_token(self, n: int, token: int) -> None:
        plain = self.plain[n]
        if plain.state != "partial" or len(plain.tokens) == PAGE:
            self.refused(n, self.blocks[n].add_token, token)
            return
        self.blocks[n].add_token(token)
        plain.tokens.append(token)

    @rule(n=block_ids, added=tokens)
    def add_tokens(self, n: int, added: list[int]) -> None:
        plain = self.plain[n]
        if plain.state != "partial":
            self.refused(n, self.blocks[n].add_tokens, added)
            return
        together = plain.tokens + added
        plain.tokens = together[:PAGE]
        assert self.blocks[n].add_tokens(added) == together[PAGE:]

    @rule(n=block_ids, count=st.integers(0, PAGE + 1))
    def pop_tokens(self, n: int, count: int) -> None:
        plain = self.plain[n]
        if plain.state != "partial" or count > len(plain.tokens):
            self.refused(n, self.blocks[n].pop_tokens, count)
            return
        kept = len(plain.tokens) - count
        assert self.blocks[n].pop_tokens(count) == plain.tokens[kept:]
        plain.tokens = plain.tokens[:kept]

    @rule(n=block_ids)
    def pop_token(self, n: int) -> None:
        plain = self.plain[n]
        if plain.state != "partial" or not plain.tokens:
            self.refused(n, self.blocks[n].pop_token)
            return
        assert self.blocks[n].pop_token() == plain.tokens.pop()

    @rule(n=block_ids)
    def commit(self, n: int) -> None:
        plain = self.plain[n]
        if plain.state != "partial" or len(plain.tokens) < PAGE:
            self.refused(n, self.blocks[n].commit)
            return
        assert self.blocks[n].commit() == plain.hash
        plain.state = "complete"

    @rule(n=block_ids, given=st.lists(st.integers(0, 1), min_size=PAGE, max_size=PAGE))
    def apply_token_block(self, n: int, given: list[int]) -> None:
        (page,) = cut_pages(given, PAGE, salt=9, parent=5)
        if self.plain[n].state != "reset":
            self.refused(n, self.blocks[n].apply_token_block, page)
            return
        self.blocks[n].apply_token_block(page)
        self.plain[n] = Plain("complete", given, 9, 5)

    @rule(n=block_ids)
    def register(self, n: int) -> None:
        plain = self.plain[n]
        others = {other.hash for other in self.plain if other.state == "registered"}
        if plain.state != "complete" or plain.hash in others:
            self.refused(n, self.blocks[n].register, self.registry)
            return
        self.blocks[n].register(self.registry)
        plain.state = "registered"

    @rule(n=block_ids)
    def reset(self, n: int) -> None:
        self.blocks[n].reset()
        self.plain[n] = Plain()

    @invariant()
    def blocks_are_as_the_model_says(self) -> None:
        for block, plain in zip(self.blocks, self.plain, strict=True):
            assert block.state.value == plain.state
            assert len(block) == len(plain.tokens)
            assert block.remaining == (PAGE - len(plain.tokens) if plain.state == "partial" else 0)
            assert block.is_complete == (plain.state in ("complete", "registered"))
            assert block.tokens == (tuple(plain.tokens) if plain.state in ("partial", "complete") else None)
            if block.is_complete:
                assert block.sequence_hash == plain.hash
                assert block.block_hash == int(sequence_hashes(plain.tokens, PAGE, salt=plain.salt)[0])
            if plain.state != "reset":
                assert block.parent == plain.parent
        registered = [block for block in self.blocks if block.state is BlockState.REGISTERED]
        assert self.registry == {block.sequence_hash: block for block in registered}


TestBlockLife = BlockLife.TestCase
TestBlockLife.settings = settings(max_examples=60, stateful_step_count=60)


def full_block(block_id: int = 3) -> TokenBlock:
    block = TokenBlock(block_id, 4)
    block.init_sequence()
    assert block.add_tokens([1, 2, 3, 4, 5, 6]) == [5, 6]
    return block


def test_errors_name_the_block_its_state_and_the_cure() -> None:
    def refused(words: str, operation, *arguments: object) -> None:
        with pytest.raises(BlockStateError, match=words):
            operation(*arguments)

    block = TokenBlock(3, 4)
    refused(r"^block 3 is reset: add_token needs a partial block; init_sequence\(\) it first$", block.add_token, 1)
    refused("commit needs a partial block", block.commit)
    refused("register needs a complete block", block.register, {})
    for name in ("sequence_hash", "block_hash"):
        refused(f"{name} needs a complete or registered block", getattr, block, name)
    refused("parent needs a block that is not reset", getattr, block, "parent")
    block.init_sequence()
    refused(r"init_sequence needs a reset block; reset\(\) it first", block.init_sequence)
    block.add_tokens([1, 2])
    refused("commit needs 4 tokens, and 2 are there; add the rest", block.commit)
    refused("pop_tokens needs 3 tokens, and 2 are there; take fewer", block.pop_tokens, 3)
    block.add_tokens([3, 4])
    refused(r"add_token needs room, and all 4 tokens are there; commit\(\) it", block.add_token, 5)
    block.commit()
    refused("block 3 is complete: pop_tokens needs a partial block; only tokens of a block that", block.pop_token)
    registry: dict[int, TokenBlock] = {}
    block.register(registry)
    refused("block 3 is registered: register needs a complete block", block.register, registry)
    twin = full_block(4)
    twin.commit()
    refused("and 14643705804678351452 is that of block 3; share that block, and reset", twin.register, registry)
    assert twin.state is BlockState.COMPLETE
    block.reset()
    twin.register(registry)
    assert registry == {14643705804678351452: twin}


def test_bad_arguments_change_nothing() -> None:
    block = full_block()
    block.pop_tokens(2)
    for wrong in (-1, 2**32, 1.5, None):
        with pytest.raises(ConfigError, match="tokens"):
            block.add_token(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"tokens\[1\]"):
            block.add_tokens([7, wrong])  # type: ignore[list-item]
    for wrong in (-1, 1.0, True):
        with pytest.raises(ConfigError, match="count: "):
            block.pop_tokens(wrong)  # type: ignore[arg-type]
    assert block.tokens == (1, 2)
    fresh = TokenBlock(9, 4)
    with pytest.raises(ConfigError, match="salt: -1"):
        fresh.init_sequence(-1)
    with pytest.raises(ConfigError, match=r"parent: 1\.5"):
        fresh.init_sequence(1, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="3 tokens do not fill block 9 of 4; cut pages of its size"):
        fresh.apply_token_block(cut_pages([1, 2, 3], 3)[0])
    assert fresh.state is BlockState.RESET
    with pytest.raises(ConfigError, match="page_tokens: 0"):
        TokenBlock(1, 0)


def test_a_registry_that_forgot_a_block_keeps_its_successor() -> None:
    registry: dict[int, TokenBlock] = {}
    first, second = full_block(1), full_block(2)
    first.commit(), second.commit()
    first.register(registry)
    registry.clear()
    second.register(registry)
    first.reset()
    assert registry == {second.sequence_hash: second}


def test_pages_of_a_prompt_carry_their_chain() -> None:
    prompt = list(range(11))
    hashes = sequence_hashes(prompt, 4, salt=5, parent=77).tolist()
    pages = cut_pages(prompt, 4, salt=5, parent=77)
    assert [page.tokens for page in pages] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [page.sequence_hash for page in pages] == hashes
    assert [page.parent for page in pages] == [77, hashes[0]]
    assert cut_pages([1, 2], 4) == []
    assert isinstance(pages[0], TokenPage)


def test_decoding_leads_to_the_hashes_of_the_whole_prompt() -> None:
    prompt, parent, hashes = list(range(50, 62)), None, []
    block = TokenBlock(0, 4)
    for token in prompt:
        if block.state is BlockState.RESET:
            block.init_sequence(parent=parent)
        block.add_token(token)
        if not block.remaining:
            parent = block.commit()
            hashes.append(parent)
            block.reset()
    assert hashes == sequence_hashes(prompt, 4).tolist()


def test_a_block_shows_what_it_is() -> None:
    assert repr(full_block()) == "<TokenBlock 3: partial, 4 of 4 tokens>"
