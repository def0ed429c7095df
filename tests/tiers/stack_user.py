"""A user of a stack who does anything in any order, and says of every call beforehand how it must end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stack_account import HASHES, PARENT, PATHS, Account, Coming, Found, Held, together
from stack_bytes import DEVICE, DISK, HOST, content, flip, poke, read_disk, resident, words
from stack_rig import all_arrive

from dynalab.errors import BlockStateError, NotEnoughBlocks, TierError, TransferError
from dynalab.kv.tiering.rules import N_TIERS
from dynalab.tiers.tier import READ_OK


class User(Account):
    """Every act takes three numbers, and does nothing where there is nothing to act on."""

    def prompt(self, node: int, levels: tuple[int, ...] = (HOST, DISK)) -> list[int]:
        """Return the hashes of a path in the forest; mostly one that ends with a block on one of these tiers."""
        chosen = range(len(PATHS))
        if node % 4:
            found = self.stack.find(words(HASHES)).tolist()
            chosen = [i for i, k in enumerate(found) if k in levels] or chosen
        return list(PATHS[chosen[node // 4 % len(chosen)]])

    # ------------------------------------------------------------------ requests

    def match(self, node: int, length: int, pin: int) -> None:
        hashes = self.prompt(node)[: 1 + length]
        expected = self.stack.find(words(hashes)).tolist()
        prefix = [*expected, 3].index(3)
        match = (self.stack.pin if pin % 2 else self.stack.match)(words(hashes))
        assert len(match) == prefix
        assert match.level.tolist() == expected[:prefix]
        for key, k in zip(hashes[:prefix], expected, strict=False):
            self.reached["two matches of a block below"] += k != DEVICE and any(key in at.hashes for at in self.matches)
        self.matches.append(Found(match, hashes[:prefix], expected[:prefix], match._slots.tolist()))

    def onboard(self, which: int, *_: int) -> None:
        if not self.matches:
            return
        found = self.matches.pop(which % len(self.matches))
        self.used_up = [*self.used_up, found.match][-5:]
        there = 0
        for key, k, slot in zip(found.hashes, found.level, found.slots, strict=True):
            if self.on(k, [key]) != [slot]:
                break
            there += 1
        self.reached["lost since it was matched"] += there < len(found.hashes)
        on_device = self.on(DEVICE, found.hashes[:there])
        # What the match itself uses on the device counts as in use.
        busy = self.in_use(DEVICE) | {slot for k, slot in zip(found.level, found.slots, strict=True) if k == DEVICE}
        if sum(slot not in busy for slot in on_device) > self.slots[DEVICE] - len(busy):
            with pytest.raises(NotEnoughBlocks):
                self.stack.onboard(found.match)
            self.reached["onboarding without room"] += 1
            return
        for key, k, at in zip(found.hashes, found.level, on_device, strict=False):
            self.reached[f"onboarded from {k}"] += at < 0
            self.reached["brought up by another"] += k != DEVICE and at >= 0
            self.reached["has reached the host since"] += k == DISK and at < 0 and self.on(HOST, [key]) != [-1]
        future = self.stack.onboard(found.match)
        slots = self.on(DEVICE, found.hashes[:there])
        assert -1 not in slots
        assert found.match.level.tolist() == found.level, "a match tells where its blocks were found"
        assert all(slot == at for slot, at in zip(slots, on_device, strict=True) if at >= 0), "a block has moved"
        self.onboardings.append(Coming(future, found.hashes[:there], slots))

    def wait_for_onboarding(self, which: int, *_: int) -> None:
        if not self.onboardings:
            return
        coming = self.onboardings[which % len(self.onboardings)]
        self.rig.run_until(coming.future.done)
        self.onboardings.remove(coming)
        blocks = coming.future.result(timeout=0)
        n = len(blocks)
        self.reached["lost on the way"] += n < len(coming.hashes)
        assert n == len(coming.hashes) or (n < len(coming.hashes) and self.faults), "blocks were lost without a fault"
        assert blocks.slots.tolist() == coming.slots[:n]
        assert blocks.hashes.tolist() == coming.hashes[:n]
        for lease, slot, key in zip(blocks, coming.slots, coming.hashes, strict=False):
            self.blocks.append(Held(lease, slot, content([key])[0], key))

    def allocate(self, n: int, patience: int, *_: int) -> None:
        self.take(n % 4 if n < 48 else n % (self.slots[DEVICE] + 2), patient=patience % 4 > 0)

    def take(self, n: int, *, patient: bool = True) -> None:
        room = self.slots[DEVICE] - len(self.in_use(DEVICE))
        if n > room:
            before = self.directory.events.tolist()
            with pytest.raises(NotEnoughBlocks, match=rf"{n} .*{room} "):
                self.stack.allocate(n)
            assert self.directory.events.tolist() == before, "a refused allocation evicted something"
            return
        try:
            blocks = self.stack.allocate(n, timeout=None if patient else 0.0)
        except TimeoutError:
            assert not patient
            assert self.flow._pending
            self.reached["allocation in a hurry"] += 1
            return
        slots = blocks.slots.tolist()
        assert len(blocks) == len(set(slots)) == n
        for lease, slot in zip(blocks, slots, strict=True):
            self._n_written += 1
            data = content([2**63 + self._n_written])[0]
            poke(self.stack.device, [slot], data[None])
            self.blocks.append(Held(lease, slot, data))

    def register(self, node: int, first: int, how: int) -> None:
        path = PATHS[node % len(PATHS)]
        first %= len(path)
        chosen = self.written()[: len(path) - first]
        if chosen:
            self.register_as(chosen, list(path[first : first + len(chosen)]), how)

    def register_as(self, chosen: list[Held], hashes: list[int], how: int) -> None:
        poke(self.stack.device, [held.slot for held in chosen], content(hashes))
        lease = together(chosen)
        there = np.array([slot for slot in self.on(DEVICE, hashes) if slot >= 0], np.int32)
        self.reached["registered twice"] += len(there)
        self.reached["registered while it comes up"] += len(self.flow.writers(DEVICE, there)) > 0
        parent = PARENT[hashes[0]] if how % 2 else 0
        try:
            self.stack.register(lease, words(hashes), parent=parent, priority=(0, 0, 1, 50)[how // 2 % 4])
        except TransferError as error:
            self.claim(self.faults > 0 and str(error).startswith("register: "), error)
            self.reached["registered what did not come up"] += 1
            for held in chosen:
                self.blocks.remove(held)
            self.stack.release(lease)
            return
        except TierError as error:
            # A thousand numbers to spare are enough for all hashes that there are.
            self.claim(str(error).startswith("id_capacity: ") and self.rig.spare_ids < 1000, error)
            self.reached["out of numbers"] += 1
            for held, key in zip(chosen, hashes, strict=True):
                held.data = content([key])[0]
            return
        assert lease.hashes.tolist() == hashes
        for held, key, slot in zip(chosen, hashes, lease.slots.tolist(), strict=True):
            held.hash, held.slot, held.data = key, slot, content([key])[0]

    def compute_what_comes(self, which: int, *_: int) -> None:
        """Register a block that is on its way to the device for somebody else."""
        coming = [at for at in self.onboardings if at.hashes and not at.future.done()]
        if coming:
            before = len(self.blocks)
            self.take(1, patient=False)
            hashes = coming[which % len(coming)].hashes
            if self.blocks[before:]:
                self.register_as(self.blocks[before:], [hashes[which % len(hashes)]], which)

    def give_back(self, which: int, count: int, how: int) -> None:
        if not self.blocks:
            return
        start = which % len(self.blocks)
        self.give_back_these(self.blocks[start : start + 1 + count % 5], how)

    def give_back_these(self, chosen: list[Held], how: int = 0) -> None:
        lease = together(chosen)
        lease.release() if how % 2 else self.stack.release(lease)
        for held in chosen:
            self.blocks.remove(held)
        self.ended = [*self.ended, lease][-5:]

    def give_up_match(self, which: int, *_: int) -> None:
        if self.matches:
            found = self.matches.pop(which % len(self.matches))
            self.stack.release(found.match)
            self.used_up = [*self.used_up, found.match][-5:]

    def whole_request(self, node: int, length: int, keep: int) -> None:
        """What an engine does with a prompt, all at once."""
        before, open_before = list(self.blocks), len(self.onboardings)
        hashes = self.prompt(node)[: 1 + length]
        self.match(node, length, 0)
        self.onboard(len(self.matches) - 1)
        if len(self.onboardings) == open_before:
            return
        self.wait_for_onboarding(len(self.onboardings) - 1)
        onboarded = len(self.blocks) - len(before)
        if len(hashes) - onboarded <= self.slots[DEVICE]:
            self.take(len(hashes) - onboarded)
        new = self.blocks[len(before) + onboarded :]
        if new:
            self.register_as(new, hashes[onboarded:], keep)
        mine = [held for held in self.blocks if held not in before]
        if keep % 4 and mine:
            self.give_back_these(mine)

    def push_down(self, n: int, *_: int) -> None:
        """Make room and do not use it."""
        before = len(self.blocks)
        self.take(1 + n % self.slots[DEVICE])
        if self.blocks[before:]:
            self.give_back_these(self.blocks[before:])

    # ------------------------------------------------------------------ around requests

    def touch(self, node: int, *_: int) -> None:
        hashes = words(PATHS[node % len(PATHS)])
        levels = self.stack.find(hashes).tolist()
        assert self.stack.touch(hashes) == [*levels, 3].index(3)
        assert self.stack.find(hashes).tolist() == levels

    def prefetch(self, node: int, how: int, *_: int) -> None:
        hashes = words(self.prompt(node, (DISK,)))
        before = self.stack.find(hashes)
        prefix = [*before.tolist(), 3].index(3)
        fetched = self.stack.prefetch(hashes)
        assert fetched.n_blocks <= (int((before[:prefix] == DISK).sum()) if self.slots[HOST] else 0)
        now = self.stack.find(hashes)[:prefix]
        assert (now <= before[:prefix]).all(), "a prefetch has pushed down what it was to bring up"
        assert (now != before[:prefix]).sum() == fetched.n_blocks
        self.reached["prefetched"] += fetched.n_blocks
        self.prefetches.append(fetched)
        self.rig.settle()
        if how % 3 == 0:
            self.wait_for_prefetch(len(self.prefetches) - 1, how // 3)

    def wait_for_prefetch(self, which: int, policy: int, *_: int) -> None:
        if not self.prefetches:
            return
        fetched = self.prefetches.pop(which % len(self.prefetches))
        known = set(self.rig.alive)
        cancelled = self._given_up()
        n = fetched.wait(("best_effort", "timeout", "wait_complete")[policy % 3], base=0.0, per_ki_token=0.0)
        self.reached["given up"] += self._given_up() - cancelled
        assert fetched.done()
        levels = self.stack.find(fetched._hashes)
        assert (levels[:n] < DISK).all()
        assert n == len(levels) or levels[n] >= DISK
        if not self.faults:
            assert known == set(self.rig.alive), "a block that was given up halfway is lost"

    def _given_up(self) -> int:
        return sum(path.blocks_cancelled for path in self.rig.engine.stats().values())

    def later(self, seconds: int, *_: int) -> None:
        self.rig.now += seconds / 4

    def let_a_batch_through(self, which: int, *_: int) -> None:
        self.rig.step(which)

    def let_everything_arrive(self, *_: int) -> None:
        assert self.stack.drain()
        assert not self.flow._pending
        if self.slots[DISK]:
            hashes, slots = resident(self.stack, DISK)
            status, found = read_disk(self.stack, slots, hashes)
            for key, slot, answer, data in zip(hashes, slots.tolist(), status, found, strict=True):
                assert answer == READ_OK or slot in self.corrupted
                assert answer != READ_OK or (data == content([key])[0]).all()

    def reset(self, a: int, b: int, *_: int) -> None:
        if any(self.in_use(k) for k in self.tiers):
            with pytest.raises(TierError, match=r"^reset: blocks are in use \(.* of .*\); release them first$"):
                self.stack.reset()
        elif a < 8:
            self.stack.reset()
            assert not self.rig.alive
            assert (self.stack.find(words(HASHES)) == 3).all()
            self.reached["reset"] += 1

    # ------------------------------------------------------------------ faults

    def change_the_weather(self, rate: int, *_: int) -> None:
        self.fault_rate = (0.0, 0.0, 0.2, 0.7)[rate % 4]
        self.rig.verdict = self.verdict if self.fault_rate else all_arrive

    def verdict(self, transfer: Any, lo: int, hi: int) -> Any:
        chance = self.rig.rng.random()
        if chance > self.fault_rate:
            return None
        self.faults += 1
        if chance < self.fault_rate / 3:
            raise OSError(5, "as planned")
        return self.rig.rng.random(hi - lo) < 0.5

    def spoil_the_disk(self, which: int, *_: int) -> None:
        if not self.slots[DISK] or not self.directory.size(DISK):
            return
        _, slots = resident(self.stack, DISK)
        slot = int(slots[which % len(slots)])
        if not self.flow.writers(DISK, np.array([slot], np.int32)) and slot not in self.corrupted:
            flip(self.rig.path, slot, self.stack.disk.slot_bytes)
            self.faults += 1
            self.corrupted.add(slot)

    def use_what_is_gone(self, what: int, *_: int) -> None:
        """A released block, a match used up, a block registered before, one block twice: refused, and nothing done."""
        if self.ended and what % 4 < 2:
            gone = self.ended[-1]
            mixed = self.blocks[0].lease + gone if self.blocks and what % 2 else gone
            with pytest.raises(BlockStateError, match="released"):
                self.stack.release(mixed)
            with pytest.raises(BlockStateError, match=r"is (released|registered), not allocated"):
                self.stack.register(mixed, np.arange(1, len(mixed) + 1))
            with pytest.raises(BlockStateError, match="released"):
                mixed.view()
        elif self.used_up and what % 4 == 2:
            for use in (self.stack.onboard, self.stack.release):
                with pytest.raises(BlockStateError, match="onboarded or released before"):
                    use(self.used_up[-1])
        elif self.blocks:
            held = self.blocks[what % len(self.blocks)]
            names = words(HASHES[:2])
            with pytest.raises(BlockStateError, match="twice"):
                self.stack.release(held.lease + held.lease)
            with pytest.raises(BlockStateError, match="1 blocks and 2 hashes"):
                self.stack.register(held.lease, names)
            with pytest.raises(BlockStateError, match="registered, not allocated" if held.hash else "twice"):
                self.stack.register(held.lease + held.lease, names)
            others = self.written()[:2]
            if len(others) == 2:
                with pytest.raises(BlockStateError, match="a hash is given twice"):
                    self.stack.register(together(others), names[[0, 0]])

    def finish(self) -> None:
        """Give everything back: then everything must be free to go."""
        self.let_everything_arrive()
        while self.onboardings:
            self.wait_for_onboarding(0)
        while self.matches:
            self.give_up_match(0)
        if self.blocks:
            self.give_back_these(list(self.blocks))
        self.let_everything_arrive()
        self.check()
        assert [self.directory.in_use(k) for k in range(N_TIERS)] == [0, 0, 0]
        assert len(self.stack._leases) == 0
        every = self.stack.allocate(self.slots[DEVICE])
        with pytest.raises(NotEnoughBlocks):
            self.stack.allocate(1)
        self.stack.release(every)
        self.let_everything_arrive()
        self.check()
