"""Pools of memory: a host arena, buffers of equal size carved out of one, the CUDA pool, and a model of the latter."""

from __future__ import annotations

from dynalab.pools.arena import HostArena
from dynalab.pools.buffers import Buffer, BufferPool
from dynalab.pools.limits import available_memory
from dynalab.pools.memory import CudaMemoryPool, DeviceBuffer, pointer_tables_bytes
from dynalab.pools.pool_model import PoolModel
from dynalab.pools.pool_trace import PoolEvent, measure_pool, predict_pool

__all__ = [
    "Buffer",
    "BufferPool",
    "CudaMemoryPool",
    "DeviceBuffer",
    "HostArena",
    "PoolEvent",
    "PoolModel",
    "available_memory",
    "measure_pool",
    "pointer_tables_bytes",
    "predict_pool",
]
