"""Pools of memory: a host arena, buffers of equal size carved out of one, the CUDA pool, and a model of the latter."""

from __future__ import annotations

from dynalab.pools.arena import HostArena
from dynalab.pools.buffers import Buffer, BufferPool
from dynalab.pools.limits import available_memory

__all__ = ["Buffer", "BufferPool", "HostArena", "available_memory"]
