"""Qwen-Bailian JSONL (ATC'25 "KVCache Cache in the Wild"): seconds, blocks of 16 tokens, chat ids.

``chat_id``, ``parent_chat_id`` (-1 for the first turn), ``timestamp`` in seconds, ``input_length``, ``output_length``,
``type``, ``turn`` and ``hash_ids``, ``ceil(input_length / 16)`` of them. Ids are salted hashes of a block and its
prefix, so that chats need no separate treatment; chat ids and turns themselves are not kept.
"""

# ruff: noqa: D102 - the methods are documented where they are declared, in base.py

from __future__ import annotations

from typing import Any

from dynalab.workload.formats.mooncake import MooncakeJSONL


class BailianJSONL(MooncakeJSONL):
    """Mooncake's fields with seconds and shorter blocks."""

    name = "bailian"
    title = "Qwen-Bailian JSONL"
    signature = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "hash_ids")
    ticks = 1
    default_block_tokens = 16

    @classmethod
    def claims(cls, record: dict[str, Any]) -> bool:
        return "chat_id" in record and "input_length" in record
