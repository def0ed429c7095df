"""KV block identity, layouts and the policies that choose which blocks stay."""

from __future__ import annotations
