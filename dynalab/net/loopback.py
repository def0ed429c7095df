"""What the kernel moves between two sockets of this machine: the limit of everything that is sent to 127.0.0.1."""

from __future__ import annotations

import socket
import time
from threading import Thread


def loopback_bandwidth(seconds: float = 0.4, rounds: int = 10, chunk: int = 256 << 10) -> float:
    """Measure how many bytes go one way over a TCP connection to this machine.

    Two threads, one that writes and one that reads, each into or from one buffer: nothing but the kernel's copies.

    Parameters
    ----------
    seconds : float
        For all rounds.
    rounds : int
        The best one counts: a limit is what other work on the machine leaves of it at most.
    chunk : int
        Bytes of a call.

    Returns
    -------
    float
        Bytes per second.

    Examples
    --------
    >>> loopback_bandwidth(0.02, rounds=2) > 1e6
    True
    """
    return max(_one_round(seconds / rounds, chunk) for _ in range(rounds))


def _one_round(seconds: float, chunk: int) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    data = memoryview(bytearray(chunk))
    deadline = time.perf_counter() + seconds

    def send() -> None:
        with sender:
            while time.perf_counter() < deadline:
                sender.sendall(data)

    thread = Thread(target=send, name="dynalab loopback", daemon=True)
    received, buffer = 0, memoryview(bytearray(chunk))
    begin = time.perf_counter()
    thread.start()
    with receiver:
        while nbytes := receiver.recv_into(buffer):
            received += nbytes
    elapsed = time.perf_counter() - begin
    thread.join()
    return received / elapsed
