"""Pools of objects, for tasks and for threads, and of memory: a host arena, buffers, the CUDA pool and its model."""

from __future__ import annotations

from dynalab.pools.arena import HostArena
from dynalab.pools.buffers import Buffer, BufferPool
from dynalab.pools.item import PoolItem, SharedItem
from dynalab.pools.limits import available_memory
from dynalab.pools.memory import CudaMemoryPool, DeviceBuffer, pointer_tables_bytes
from dynalab.pools.pool import Pool
from dynalab.pools.pool_metrics import PoolMetrics
from dynalab.pools.pool_model import PoolModel
from dynalab.pools.pool_trace import PoolEvent, measure_pool, predict_pool
from dynalab.pools.sync_pool import SyncPool

__all__ = [
    "Buffer",
    "BufferPool",
    "CudaMemoryPool",
    "DeviceBuffer",
    "HostArena",
    "Pool",
    "PoolEvent",
    "PoolItem",
    "PoolMetrics",
    "PoolModel",
    "SharedItem",
    "SyncPool",
    "available_memory",
    "measure_pool",
    "pointer_tables_bytes",
    "predict_pool",
]
