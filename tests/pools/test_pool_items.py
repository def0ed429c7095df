"""What both kinds of pool do with items: sharing, hooks, health, leaks, metrics, and misuse."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import warnings

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dynalab.errors import ConfigError, PoolClosed, PoolError, PoolExhausted, PoolTimeout
from dynalab.pools import Pool, SyncPool

pytestmark = pytest.mark.parametrize("kind", [Pool, SyncPool])


def take(pool):
    """Take an item as a thread does; of both kinds."""
    return pool.acquire_blocking(timeout=10)


def leak(pool):
    """Take an item and forget it; returns the line where it was taken, and what was said."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        item = take(pool)
        line = sys._getframe().f_lineno - 1
        del item
    # The lines of take(), which called the pool.
    return line, told


def test_a_shared_item_returns_when_the_last_lets_go(kind):
    seen = []
    pool = kind(["v"], on_return=seen.append)
    item = take(pool)
    first = item.share()
    with pytest.raises(PoolError, match="given back or shared already"):
        item.value  # noqa: B018
    second = first.clone()
    with second.clone() as third:
        assert (third.value, third.count, first.count) == ("v", 3, 3)
    first.release()
    assert (second.count, seen, pool.available) == (1, [], 0)
    with pytest.raises(PoolError):
        first.release()
    for dead in (lambda: first.value, first.clone, first.__enter__):
        with pytest.raises(PoolError, match=r"test_pool_items\.py"):
            dead()
    with pytest.raises(AttributeError):
        second.value = "other"
    second.release()
    assert (seen, pool.available, pool.metrics.acquires) == (["v"], 1, 1)


def test_sharing_inside_a_with_statement_outlives_it(kind):
    pool = kind([1])
    with take(pool) as item:
        shared = item.share()
    assert pool.available == 0
    shared.release()
    assert pool.available == 1


def test_releasing_inside_a_with_statement_is_no_error(kind):
    pool = kind([1])
    with take(pool) as item:
        item.release()
    assert pool.available == 1


def test_a_released_item_is_of_no_use(kind):
    pool = kind([1], name="p")
    item = take(pool)
    item.release()
    for use in (item.release, item.share, item.__enter__, lambda: item.value, lambda: setattr(item, "value", 2)):
        with pytest.raises(PoolError, match=r"'p': the item taken at .*test_pool_items\.py:.*acquire another"):
            use()
    assert (pool.available, pool.metrics.in_use) == (1, 0)


@pytest.mark.parametrize("hook", [None, lambda value: None])
def test_of_many_threads_that_release_one_item_one_succeeds(kind, hook):
    pool = kind([1], on_return=hook)
    for _ in range(30):
        item = take(pool)
        start = threading.Barrier(4)
        errors = []

        def release(item=item, start=start, errors=errors):
            start.wait()
            try:
                item.release()
            except PoolError as error:
                errors.append(error)

        threads = [threading.Thread(target=release) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(errors), pool.available) == (3, 1)


def test_a_hook_that_fails_on_return_condemns_the_value(kind):
    def fail(value):
        if value == "bad":
            raise ValueError("cannot reset")

    pool = kind(["bad", "good"], on_return=fail)
    item = take(pool)
    with pytest.raises(ValueError, match="cannot reset"):
        item.release()
    assert pool.available == 2
    with take(pool) as item:
        assert item.value == "good"
    with take(pool) as item:
        assert item.value == "good"
    assert (pool.capacity, pool.metrics.unhealthy) == (1, 1)


def test_a_condemned_value_is_replaced(kind):
    def fail(value):
        raise KeyError(value)

    pool = kind(["a"], on_return=fail, replace=lambda value: value + "'")
    for expected in ("a", "a'", "a''"):
        item = take(pool)
        assert item.value == expected
        with pytest.raises(KeyError):
            item.release()
    assert (pool.capacity, pool.metrics.unhealthy) == (1, 2)


def test_the_error_of_a_with_statement_is_not_lost_when_the_hook_fails(kind):
    def fail(value):
        raise ValueError("hook")

    pool = kind([1], on_return=fail)
    with pytest.raises(ValueError, match="hook") as caught, take(pool):
        raise RuntimeError("body")
    assert isinstance(caught.value.__context__, RuntimeError)


def test_unhealthy_values_are_never_handed_out(kind):
    sick = {2, 3}
    pool = kind([1, 2, 3, 4], check=lambda value: value not in sick)
    items = [take(pool), take(pool)]
    assert [item.value for item in items] == [1, 4]
    assert (pool.capacity, pool.available) == (2, 0)
    for item in items:
        item.release()
    sick |= {1, 4}
    with pytest.raises(PoolExhausted, match="no healthy value is left"):
        take(pool)
    with pytest.raises(PoolExhausted):
        pool.try_acquire()
    metrics = pool.metrics
    assert (metrics.unhealthy, metrics.capacity, metrics.in_use, metrics.acquires) == (4, 0, 0, 2)


def test_a_check_that_raises_counts_as_unhealthy(kind, caplog):
    def check(value):
        if value == "dead":
            raise ConnectionError("no answer")
        return True

    pool = kind(["dead", "alive"], check=check, name="n")
    with take(pool) as item:
        assert item.value == "alive"
    assert "pool 'n': check of 'dead' raised ConnectionError('no answer')" in caplog.text
    assert pool.capacity == 1


def test_an_interrupt_in_a_check_loses_nothing(kind):
    def check(value):
        if interrupt:
            raise KeyboardInterrupt
        return True

    pool = kind([1], check=check)
    interrupt = True
    with pytest.raises(KeyboardInterrupt):
        take(pool)
    interrupt = False
    assert (pool.available, pool.capacity, pool.metrics.in_use) == (1, 1, 0)
    take(pool).release()


def test_a_replacement_that_fails_does_not_empty_the_pool(kind):
    def replace(value):
        if down:
            raise ConnectionError("refused")
        return "new"

    pool = kind(["old"], check=lambda value: value == "new", replace=replace)
    down = True
    for _ in range(3):
        with pytest.raises(PoolError, match=r"replace of the unhealthy 'old' raised .*refused") as caught:
            take(pool)
        assert isinstance(caught.value.__cause__, ConnectionError)
        assert (pool.available, pool.capacity) == (1, 1)
    down = False
    with take(pool) as item:
        assert item.value == "new"
    assert (pool.metrics.unhealthy, pool.capacity) == (4, 1)


def test_a_leak_is_told_with_its_place_and_comes_back(kind):
    returned = []
    pool = kind(["v"], name="leaky", on_return=returned.append)
    line, told = leak(pool)
    (warning,) = told
    assert warning.category is ResourceWarning
    assert (warning.filename, warning.lineno) == (__file__, take.__code__.co_firstlineno + 2)
    text = str(warning.message)
    assert f"'leaky': the item taken at {__file__}:{warning.lineno} in take was never released" in text
    assert f"line {line}" not in text
    assert (returned, pool.available, pool.metrics.leaked, pool.metrics.in_use) == (["v"], 1, 1, 0)


def test_a_leak_in_a_cycle_of_garbage_comes_back(kind):
    pool = kind(["v"])
    cycle = [take(pool)]
    cycle.append(cycle)
    del cycle
    with pytest.warns(ResourceWarning, match="never released"):
        gc.collect()
    assert pool.available == 1


def test_the_whole_stack_is_told_if_asked(kind):
    pool = kind(["v"], trace=True)
    line, (warning,) = leak(pool)
    assert f'{__file__}", line {line}, in leak' in str(warning.message)


def test_tracemalloc_knows_the_stack_without_being_asked(kind):
    script = "\n".join(
        [
            f"import tracemalloc; from dynalab.pools import {kind.__name__} as kind; tracemalloc.start(10)",
            "def inner(pool):",
            "    return pool.acquire_blocking()",
            "def outer(pool):",
            "    return inner(pool)",
            "outer(kind([1]))",
        ]
    )
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", script]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "the item taken at <string>:3 in inner was never released" in told
    assert "Object allocated at" in told
    assert all(f'File "<string>", lineno {line}' in told for line in (3, 5, 6))


def test_a_leaked_holder_of_a_shared_item_lets_go(kind):
    pool = kind(["v"])
    first = take(pool).share()
    second = first.clone()
    with pytest.warns(ResourceWarning, match="never released"):
        del second
    assert (first.count, pool.available) == (1, 0)
    with pytest.warns(ResourceWarning, match="never released"):
        del first
    assert (pool.available, pool.metrics.leaked) == (1, 2)


@pytest.mark.parametrize(
    "operation",
    [
        lambda pool, item: pool.metrics,
        lambda pool, item: pool.try_acquire().release(),
        lambda pool, item: pool.acquire_blocking(timeout=1).release(),
        lambda pool, item: item.release(),
        lambda pool, item: item.share().release(),
        lambda pool, item: pool.close(),
    ],
    ids=["metrics", "try_acquire", "acquire", "release", "release of a share", "close"],
)
@pytest.mark.parametrize("hook", [None, lambda value: None])
def test_a_leak_while_its_own_thread_holds_the_lock_comes_home_with_the_next_operation(kind, operation, hook):
    pool = kind([1, 2], on_return=hook)
    leaked, item = take(pool), take(pool)
    with pytest.warns(ResourceWarning), pool._lock:
        del leaked
    assert (pool.available, len(pool._orphans)) == (0, 1)
    operation(pool, item)
    assert (len(pool._orphans), pool._leaked) == (0, 1)
    if not item.released:
        item.release()
    assert pool.metrics.in_use == 0


def test_a_value_that_came_free_on_the_way_to_the_queue_is_taken(kind):
    pool = kind([1])
    with take(pool) as item:
        place = item._place
    with pool._acquire_in_thread(0.0, place) as item:
        assert item.value == 1
    assert (pool.metrics.waits, pool.metrics.high_water, pool.available) == (0, 1, 1)


def test_an_interrupt_in_the_check_of_what_was_handed_over_doubles_nothing(kind):
    def check(value):
        if threading.current_thread() is not threading.main_thread():
            raise KeyboardInterrupt
        return True

    def wait():
        with pytest.raises(KeyboardInterrupt):
            take(pool)

    pool = kind([1], check=check)
    item = take(pool)
    worker = threading.Thread(target=wait)
    worker.start()
    while not pool.metrics.waiting:
        time.sleep(0.001)
    item.release()
    worker.join(10)
    assert (pool.available, pool.metrics.in_use, pool.capacity) == (1, 0, 1)


def test_a_leaked_item_goes_to_who_waits(kind):
    pool = kind([1])
    item = take(pool)
    got = []
    worker = threading.Thread(target=lambda: got.append(take(pool)))
    worker.start()
    while not pool.metrics.waiting:
        time.sleep(0.001)
    with pytest.warns(ResourceWarning):
        del item
    worker.join(10)
    assert got[0].value == 1
    got[0].release()


def test_a_hook_that_fails_for_a_leak_is_logged(kind, caplog):
    def fail(value):
        raise ValueError("stuck")

    pool = kind([1], on_return=fail)
    leak(pool)
    assert "on_return of an abandoned value raised ValueError('stuck')" in caplog.text
    assert pool.available == 1


def test_no_warning_without_a_leak(kind):
    pool = kind([1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with take(pool):
            pass
        item = take(pool)
        shared = item.share()
        shared.clone().release()
        shared.release()
        del item, shared
    assert pool.metrics.leaked == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"values": []}, "pool 'pool' of no values serves nobody"),
        ({"values": "abc"}, "'abc' is one value; give a list"),
        ({"values": [1], "check": 3}, "check: 3 cannot be called"),
    ],
)
def test_bad_pools_are_refused(kind, arguments, says):
    with pytest.raises(ConfigError, match=says):
        kind(**arguments)


@pytest.mark.parametrize("hook", ["on_return", "check", "replace"])
def test_async_hooks_are_refused(kind, hook):
    async def slow(value):
        return value

    with pytest.raises(ConfigError, match=f"{hook}: .*async"):
        kind([1], **{hook: slow})


def test_metrics_tell_what_happened(kind):
    pool = kind([1, 2, 3], name="m")
    held = [take(pool), take(pool)]
    held[0].release()
    assert pool.try_acquire().release() is None
    item = take(pool)
    item.release()
    held[1].release()
    metrics = pool.metrics
    assert (metrics.capacity, metrics.in_use, metrics.high_water, metrics.acquires) == (3, 0, 2, 4)
    assert sum(metrics.wait_counts) == 4
    assert (metrics.waits, metrics.wait_seconds, metrics.mean_wait) == (0, 0.0, 0.0)
    with pytest.raises(AttributeError):
        metrics.capacity = 5
    held = [take(pool) for _ in range(3)]
    threading.Timer(0.02, held[0].release).start()
    item = take(pool)
    with pytest.raises(PoolTimeout):
        pool.acquire_blocking(timeout=0.001)
    metrics = pool.metrics
    assert (metrics.waits, metrics.timeouts, metrics.acquires) == (2, 1, 8)
    assert metrics.wait_counts[0] == 7
    assert metrics.wait_seconds > 0.005
    assert metrics.wait_quantile(1.0) >= metrics.wait_seconds
    assert metrics.wait_quantile(0.5) == metrics.wait_bounds[0]
    for each in (item, *held[1:]):
        each.release()


def test_metrics_as_a_dataset(kind):
    pool = kind([1], name="d")
    with take(pool):
        stats = pool.stats()
    assert (int(stats.in_use), int(stats.capacity), int(stats.wait_counts.sum())) == (1, 1, 1)
    assert stats.attrs == {"name": "d", "kind": kind.__name__}
    assert all({"units", "long_name"} <= set(variable.attrs) for variable in stats.variables.values())
    assert list(stats.wait_bound.values[[0, -1]]) == [1e-5, float("inf")]


def test_metrics_for_prometheus_of_two_pools_of_one_name(kind):
    pools = [kind([1] * size, name='of "one" name') for size in (1, 2)]
    take(pools[1]).release()
    for pool in pools:
        found = {
            (sample.name, sample.labels.get("le")): sample
            for family in text_string_to_metric_families(pool.prometheus())
            for sample in family.samples
        }
        assert found["dynalab_pool_capacity", None].value == pool.capacity
        assert found["dynalab_pool_acquires_total", None].value == pool.metrics.acquires
        assert found["dynalab_pool_wait_seconds_count", None].value == pool.metrics.acquires
        assert found["dynalab_pool_wait_seconds_bucket", "+Inf"].value == pool.metrics.acquires
        assert {sample.labels["pool"] for sample in found.values()} == {'of "one" name'}


def test_a_closed_pool_takes_items_back_and_gives_none(kind):
    returned = []
    pool = kind([1, 2], on_return=returned.append)
    item = take(pool)
    pool.close()
    pool.close()
    for ask in (lambda: take(pool), pool.try_acquire):
        with pytest.raises(PoolClosed, match="closed; build a new one"):
            ask()
    item.release()
    assert (returned, pool.available, pool.metrics.in_use, pool.closed) == ([1], 0, 0, True)


def test_a_hook_may_use_the_pool(kind):
    seen = []
    pool = kind([1, 2], on_return=lambda value: seen.append(pool.metrics.in_use))
    take(pool).release()
    assert seen == [1]
