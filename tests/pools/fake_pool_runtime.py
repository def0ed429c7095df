"""CUDA's runtime as CuPy shows it, played by the pool model: what a call does to the books, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

from dynalab.pools import PoolModel


class FakeError(RuntimeError):
    """As CuPy's CUDARuntimeError: a RuntimeError with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class FakeRuntime:
    """The functions that dynalab.pools calls, and a list of the calls."""

    cudaMemPoolAttrReleaseThreshold = 4
    cudaMemPoolAttrReservedMemCurrent = 5
    cudaMemPoolAttrReservedMemHigh = 6
    cudaMemPoolAttrUsedMemCurrent = 7
    cudaMemPoolAttrUsedMemHigh = 8

    def __init__(self, capacity: int = 1 << 30, devices: int = 2) -> None:
        self.calls: list[tuple] = []
        self.model = PoolModel(capacity=capacity)
        self.capacity, self.devices, self.device = capacity, devices, 0
        self.pools: set[int] = set()
        self.live: dict[int, object] = {}
        self.streams: set[int] = set()
        self.refuse: str = ""
        self._next = 1000

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _called(self, name: str, *arguments: object) -> None:
        self.calls.append((name, self.device, *arguments))
        if name == self.refuse:
            raise FakeError(1)

    def getDeviceCount(self) -> int:
        return self.devices

    def getDevice(self) -> int:
        return self.device

    def setDevice(self, device: int) -> None:
        self.device = device

    def MemPoolProps(self, *properties: int) -> SimpleNamespace:
        return SimpleNamespace(properties=properties)

    def memPoolCreate(self, properties: SimpleNamespace) -> int:
        self._called("memPoolCreate", *properties.properties)
        self.pools.add(handle := self._new())
        return handle

    def memPoolDestroy(self, pool: int) -> None:
        self._called("memPoolDestroy", pool)
        self.pools.remove(pool)

    def memPoolSetAttribute(self, pool: int, attribute: int, value: int) -> None:
        self._called("memPoolSetAttribute", attribute, value)
        assert pool in self.pools
        if attribute == 4:
            self.model.release_threshold = value
        else:
            assert (attribute, value) in ((6, 0), (8, 0)), "high-water marks can be reset to zero only"
            self.model.reset_high_water()

    def memPoolGetAttribute(self, pool: int, attribute: int) -> int:
        assert pool in self.pools
        return self.model.stats()[("reserved", "reserved_high", "used", "used_high")[attribute - 5]]

    def memPoolTrimTo(self, pool: int, keep: int) -> None:
        assert pool in self.pools
        self.model.trim(keep)

    def mallocFromPoolAsync(self, size: int, pool: int, stream: int) -> int:
        self._called("mallocFromPoolAsync", size, stream)
        assert pool in self.pools
        try:
            allocation = self.model.allocate(size, stream)
        except Exception:
            raise FakeError(2) from None
        self.live[address := self._new()] = allocation
        return address

    def freeAsync(self, address: int, stream: int) -> None:
        self._called("freeAsync", stream)
        self.model.free(self.live.pop(address), stream)

    def memGetInfo(self) -> tuple[int, int]:
        return self.capacity - self.model.stats()["reserved"], self.capacity

    def streamCreateWithFlags(self, flags: int) -> int:
        assert flags == 1, "a blocking stream would wait for the default stream"
        self.streams.add(stream := self._new())
        return stream

    def streamDestroy(self, stream: int) -> None:
        self.streams.remove(stream)

    def streamSynchronize(self, stream: int) -> None:
        self.model.synchronize(stream)

    def deviceSynchronize(self) -> None:
        self.model.synchronize()

    def launchHostFunc(self, stream: int, callback: object, argument: int) -> None:
        self.model.work(stream, 1e9)

    def eventCreateWithFlags(self, flags: int) -> list[int]:
        return []

    def eventRecord(self, event: list[int], stream: int) -> None:
        event.append(stream)

    def streamWaitEvent(self, stream: int, event: list[int]) -> None:
        self.model.wait(stream, event[0])

    def eventDestroy(self, event: list[int]) -> None:
        event.clear()
