"""What a pool promises, in the plainest form: lists, and one event after the other as an event loop takes them."""

from __future__ import annotations

from collections import deque


class LendingModel:
    """Requests by number, values, and who has what; `turn` lets everything happen that has been set off."""

    def __init__(self, values):
        self.free = deque(values)
        self.home = []
        self.queue: list[int] = []
        self.ready: deque[int] = deque()
        self.given: dict[int, object] = {}
        self.held: dict[int, object] = {}
        self.outcome: dict[int, str] = {}
        self.cancelled: set[int] = set()
        self.sick: set[object] = set()
        self.capacity = len(self.free)
        self.closed = False
        self.counts = dict.fromkeys(("acquires", "waits", "timeouts", "cancelled", "unhealthy"), 0)

    def ask(self, number):
        self.ready.append(number)

    def release(self, number):
        self.put(self.held.pop(number))

    def put(self, value):
        if self.queue:
            first = self.queue.pop(0)
            self.given[first] = value
            self.ready.append(first)
        elif self.closed:
            self.home.append(value)
        else:
            self.free.append(value)

    def cancel(self, number):
        self.cancelled.add(number)
        if number in self.queue:
            self.queue.remove(number)
            self.counts["cancelled"] += 1
            self.outcome[number] = "CancelledError"

    def expire(self, number):
        self.queue.remove(number)
        self.counts["timeouts"] += 1
        self.given[number] = PoolTimeoutMark
        self.ready.append(number)

    def close(self):
        self.closed = True
        self.fail_all("PoolClosed")
        self.home += self.free
        self.free.clear()

    def fail_all(self, how):
        for number in self.queue:
            self.given[number] = how
            self.ready.append(number)
        self.queue.clear()

    def turn(self):
        while self.ready:
            number = self.ready.popleft()
            value = self.given.pop(number, None)
            if number in self.cancelled:
                self.outcome[number] = "CancelledError"
                if value is not None and not isinstance(value, str):
                    self.counts["cancelled"] += 1
                    self.put(value)
            elif isinstance(value, str):
                self.outcome[number] = value
            else:
                self.lend(number, value)

    def lend(self, number, value):
        again = value is not None
        while True:
            if value is None:
                if self.closed or not self.capacity:
                    self.outcome[number] = "PoolClosed" if self.closed else "PoolExhausted"
                    return
                if not self.free:
                    self.queue.insert(0 if again else len(self.queue), number)
                    self.counts["waits"] += not again
                    return
                value = self.free.popleft()
            if value not in self.sick:
                self.held[number] = value
                self.counts["acquires"] += 1
                return
            self.counts["unhealthy"] += 1
            self.capacity -= 1
            if not self.capacity:
                self.fail_all("PoolExhausted")
            value = None


PoolTimeoutMark = "PoolTimeout"
