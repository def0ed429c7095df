"""The life of a block while tokens are written into it: reset, partial, complete, registered, and reset again.

An engine that decodes fills a block token by token; only when it is full and committed do its tokens get a hash, and
only a registered block can be found by others. A prompt's full blocks skip the middle: `cut_pages` hashes them all at
once, and each block takes a page as a whole.

>>> registry = {}
>>> block = TokenBlock(block_id=7, page_tokens=4)
>>> block.init_sequence()
>>> block.add_tokens([1, 2, 3, 4, 5])
[5]
>>> block.commit()
14643705804678351452
>>> block.register(registry)
>>> following = TokenBlock(block_id=8, page_tokens=4)
>>> following.apply_token_block(cut_pages([5, 6, 7, 8], 4, parent=block.sequence_hash)[0])
>>> following.sequence_hash, registry
(4945711292740353085, {14643705804678351452: <TokenBlock 7: registered, 4 of 4 tokens>})
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dynalab.errors import BlockStateError, ConfigError
from dynalab.kv.identity import DEFAULT_SALT, block_hashes, chain_hashes, check_hash, check_page_tokens, token_words


class BlockState(Enum):
    """Where a block is in its life."""

    RESET = "reset"
    PARTIAL = "partial"
    COMPLETE = "complete"
    REGISTERED = "registered"


class TokenPage(NamedTuple):
    """The tokens of one full block, and what they are called.

    Attributes
    ----------
    tokens : tuple of int
    parent : int or None
        Sequence hash of the block before; None at the beginning of a sequence.
    block_hash, sequence_hash : int
    """

    tokens: tuple[int, ...]
    parent: int | None
    block_hash: int
    sequence_hash: int


def cut_pages(
    tokens: npt.ArrayLike, page_tokens: int, *, salt: int = DEFAULT_SALT, parent: int | None = None
) -> list[TokenPage]:
    """Cut a prompt into full pages; tokens behind the last one are left out.

    Parameters
    ----------
    tokens : array_like of int, shape (n,)
    page_tokens : int
    salt : int
        See `dynalab.kv.identity`.
    parent : int, optional
        Sequence hash of the block before the first token.

    Returns
    -------
    list of TokenPage, length n // page_tokens
    """
    words = token_words(tokens)
    blocks = block_hashes(words, page_tokens, salt=salt)
    sequence = chain_hashes(parent, blocks, salt=salt)
    pages = []
    for n, (block_hash, sequence_hash) in enumerate(zip(blocks.tolist(), sequence.tolist(), strict=True)):
        page = tuple(words[n * page_tokens : (n + 1) * page_tokens].tolist())
        pages.append(TokenPage(page, parent, block_hash, sequence_hash))
        parent = sequence_hash
    return pages


class TokenBlock:
    """One block and its tokens; every operation names the states that it is allowed in.

    Not thread-safe: a block that is not registered has one owner.

    Parameters
    ----------
    block_id : int
        Names the block in errors.
    page_tokens : int
        Tokens that it holds when full.
    """

    __slots__ = (
        "_block_hash",
        "_parent",
        "_registry",
        "_salt",
        "_sequence_hash",
        "_state",
        "_tokens",
        "block_id",
        "page_tokens",
    )

    def __init__(self, block_id: int, page_tokens: int) -> None:
        self.block_id = block_id
        self.page_tokens = check_page_tokens(page_tokens)
        self._clear()

    def _clear(self) -> None:
        self._state = BlockState.RESET
        self._tokens: list[int] = []
        self._salt = DEFAULT_SALT
        self._parent: int | None = None
        self._block_hash = self._sequence_hash = 0
        self._registry: MutableMapping[int, TokenBlock] | None = None

    def __repr__(self) -> str:
        return f"<TokenBlock {self.block_id}: {self._state.value}, {len(self)} of {self.page_tokens} tokens>"

    def __len__(self) -> int:
        return self.page_tokens if self._state is BlockState.REGISTERED else len(self._tokens)

    @property
    def state(self) -> BlockState:
        """Where the block is in its life."""
        return self._state

    @property
    def remaining(self) -> int:
        """Tokens that can still be added: none unless partial."""
        return self.page_tokens - len(self._tokens) if self._state is BlockState.PARTIAL else 0

    @property
    def is_complete(self) -> bool:
        """Whether the block is full and has its hashes: complete or registered."""
        return self._state in (BlockState.COMPLETE, BlockState.REGISTERED)

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The tokens of a partial or complete block; a registered one is known by its hash alone."""
        return tuple(self._tokens) if self._state in (BlockState.PARTIAL, BlockState.COMPLETE) else None

    @property
    def parent(self) -> int | None:
        """Sequence hash of the block before, None at the beginning of a sequence; needs a block in use."""
        if self._state is BlockState.RESET:
            raise self._refuse("parent", "a block that is not reset", "init_sequence() it first")
        return self._parent

    @property
    def block_hash(self) -> int:
        """Hash of the block's own tokens; needs a complete or registered block."""
        self._need_hashes("block_hash")
        return self._block_hash

    @property
    def sequence_hash(self) -> int:
        """Hash of all tokens up to the block's end; needs a complete or registered block."""
        self._need_hashes("sequence_hash")
        return self._sequence_hash

    def init_sequence(self, salt: int = DEFAULT_SALT, parent: int | None = None) -> None:
        """Begin to take tokens: reset -> partial.

        Parameters
        ----------
        salt : int
            See `dynalab.kv.identity`.
        parent : int, optional
            Sequence hash of the block before; without it the block begins a sequence.
        """
        self._need("init_sequence", BlockState.RESET, "reset() it first")
        salt, parent = check_hash("salt", salt), None if parent is None else check_hash("parent", parent)
        self._salt, self._parent, self._state = salt, parent, BlockState.PARTIAL

    def add_token(self, token: int) -> None:
        """Add a token to a partial block that has room."""
        self._need("add_token", BlockState.PARTIAL, "init_sequence() it first")
        if not self.remaining:
            raise self._refuse("add_token", f"room, and all {self.page_tokens} tokens are there", "commit() it")
        self._tokens.append(int(token_words([token])[0]))

    def add_tokens(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> list[int]:
        """Add what fits to a partial block, and return the rest; a bad token adds none."""
        self._need("add_tokens", BlockState.PARTIAL, "init_sequence() it first")
        words: list[int] = token_words(tokens).tolist()
        fits = self.remaining
        self._tokens += words[:fits]
        return words[fits:]

    def pop_token(self) -> int:
        """Take back the last token of a partial block, such as a draft that was rejected."""
        return self.pop_tokens(1)[0]

    def pop_tokens(self, count: int) -> list[int]:
        """Take back the last `count` tokens of a partial block, in their order; all or none."""
        self._need("pop_tokens", BlockState.PARTIAL, "only tokens of a block that was not committed can be taken back")
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise ConfigError(f"count: {count!r} is not possible; write a whole number from 0 up")
        if count > len(self._tokens):
            raise self._refuse("pop_tokens", f"{count} tokens, and {len(self._tokens)} are there", "take fewer")
        kept = len(self._tokens) - int(count)
        popped = self._tokens[kept:]
        del self._tokens[kept:]
        return popped

    def commit(self) -> int:
        """Hash the tokens of a full partial block: partial -> complete.

        Returns
        -------
        int
            The sequence hash.
        """
        self._need("commit", BlockState.PARTIAL, "init_sequence() it first")
        if self.remaining:
            raise self._refuse(
                "commit", f"{self.page_tokens} tokens, and {len(self._tokens)} are there", "add the rest"
            )
        own = block_hashes(self._tokens, self.page_tokens, salt=self._salt)
        self._block_hash = int(own[0])
        self._sequence_hash = int(chain_hashes(self._parent, own, salt=self._salt)[0])
        self._state = BlockState.COMPLETE
        return self._sequence_hash

    def apply_token_block(self, page: TokenPage) -> None:
        """Take a whole page with its hashes: reset -> complete."""
        self._need("apply_token_block", BlockState.RESET, "reset() it first")
        if len(page.tokens) != self.page_tokens:
            raise ConfigError(
                f"page: {len(page.tokens)} tokens do not fill block {self.block_id} of {self.page_tokens}; "
                "cut pages of its size"
            )
        self._tokens, self._parent = list(page.tokens), page.parent
        self._block_hash, self._sequence_hash = page.block_hash, page.sequence_hash
        self._state = BlockState.COMPLETE

    def register(self, registry: MutableMapping[int, TokenBlock]) -> None:
        """Make a complete block known by its sequence hash: complete -> registered.

        Parameters
        ----------
        registry : mutable mapping of int to TokenBlock
            Blocks by sequence hash; this one is added, and leaves it at `reset`.

        Raises
        ------
        BlockStateError
            If the block is not complete, or another one has its hash: two copies of one content are for the caller
            to settle.
        """
        self._need("register", BlockState.COMPLETE, "commit() it first, and register it once")
        holder = registry.setdefault(self._sequence_hash, self)
        if holder is not self:
            why = f"a hash of its own, and {self._sequence_hash} is that of block {holder.block_id}"
            raise self._refuse("register", why, "share that block, and reset() this one")
        self._registry, self._state = registry, BlockState.REGISTERED
        self._tokens = []

    def reset(self) -> None:
        """Forget everything, in any state; a registered block leaves its registry."""
        if self._registry is not None and self._registry.get(self._sequence_hash) is self:
            del self._registry[self._sequence_hash]
        self._clear()

    def _need(self, operation: str, state: BlockState, cure: str) -> None:
        if self._state is not state:
            raise self._refuse(operation, f"a {state.value} block", cure)

    def _need_hashes(self, name: str) -> None:
        if not self.is_complete:
            raise self._refuse(name, "a complete or registered block", "fill and commit() it first")

    def _refuse(self, operation: str, needed: str, cure: str) -> BlockStateError:
        return BlockStateError(f"block {self.block_id} is {self._state.value}: {operation} needs {needed}; {cure}")
