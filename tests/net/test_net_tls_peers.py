"""TLS on real sockets, with both loops: who may come in, and what becomes of all others."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from raw_peers import Peer, bystander, open_sockets, request, response, run, settle

from dynalab.errors import CannotConnect, ConnectionLost, NetError
from dynalab.net import SharedTcpEndpoint, TcpConnectionPool, TlsClient, TlsServer

try:
    from uvloop import new_event_loop as new_uvloop
except ImportError:
    new_uvloop = None

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.parametrize(
        "loop",
        [
            pytest.param(asyncio.new_event_loop, id="asyncio"),
            pytest.param(new_uvloop, id="uvloop", marks=pytest.mark.skipif(new_uvloop is None, reason="needs uvloop")),
        ],
    ),
]


@dataclass
class Side:
    ca: Path
    cert: Path
    key: Path

    @property
    def server(self):
        return TlsServer(cert=self.cert, key=self.key)

    @property
    def strict_server(self):
        return TlsServer(cert=self.cert, key=self.key, client_ca_cert=self.ca)

    @property
    def client(self):
        return TlsClient(ca_cert=self.ca)

    @property
    def known_client(self):
        return TlsClient(ca_cert=self.ca, client_cert=self.cert, client_key=self.key)


def make(folder, *names, authority=None, **options):
    folder.mkdir()
    authority = authority or trustme.CA()
    leaf = authority.issue_cert(*names, **options)
    side = Side(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(side.ca)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(side.cert, append=True)
    leaf.private_key_pem.write_to_path(side.key)
    return side


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    place, authority = tmp_path_factory.mktemp("peers"), trustme.CA()
    day = timedelta(days=1)
    return {
        "ours": make(place / "ours", "127.0.0.1", "localhost", authority=authority),
        "theirs": make(place / "theirs", "127.0.0.1"),
        "other name": make(place / "other", "worker.example", authority=authority),
        "expired": make(place / "expired", "127.0.0.1", authority=authority, not_after=datetime.now(UTC) - day),
    }


def echo(request):
    return request.payload


def endpoint(tls, **settings):
    server = SharedTcpEndpoint(tls=tls, **settings)
    server.register("echo", echo)
    return server


@pytest.mark.parametrize("mutual", [False, True])
def test_whoever_is_known_is_served(loop, sides, mutual):
    ours = sides["ours"]
    sizes = [0, 1, 70_000, 3, 1_500_000, 65_536, 9] * 3

    async def main():
        before = open_sockets()
        async with (
            endpoint(ours.strict_server if mutual else ours.server) as server,
            TcpConnectionPool(size=3, tls=ours.known_client if mutual else ours.client) as client,
        ):
            payloads = [bytes([n]) * size for n, size in enumerate(sizes)]
            answers = await asyncio.gather(*(client.request(server.address, "echo", each) for each in payloads))
            assert answers == payloads
            assert server.metrics.handshake_failures == 0
            assert server.metrics.requests == len(sizes)
        await settle(lambda: open_sockets() <= before)

    run(main(), loop=loop)


def test_requests_that_come_with_the_end_of_the_handshake(loop, sides):
    """A client may send them with its last message of the handshake, before the server knows that it has ended."""
    ours = sides["ours"]

    async def main():
        async with endpoint(ours.server) as server:
            for close in (False, True):
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = ours.client.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
                peer = await Peer.of(server.address)
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        peer.send(outgoing.read())
                        incoming.write(await peer.reader.read(65_536))
                sent = [b"%d" % n * n for n in range(400)]
                tls.write(b"".join(request(payload=each) for each in sent))
                if close:
                    with pytest.raises(ssl.SSLWantReadError):
                        tls.unwrap()
                peer.send(outgoing.read())
                expected = b"".join(response(b"\0" + each) for each in sent)
                found = b""
                while len(found) < len(expected):
                    try:
                        found += tls.read(1 << 20)
                    except ssl.SSLWantReadError:
                        came = await peer.reader.read(65_536)
                        if not came:
                            break
                        incoming.write(came)
                    except ssl.SSLZeroReturnError:
                        break
                if not close:
                    assert found == expected
                await peer.close()
            await settle(lambda: server.connections == 0)
            assert server.budget.used == 0
            assert server.metrics.handshake_failures == 0

    run(main(), loop=loop)


WRONG = {
    "unknown authority": ("theirs", "ours", "client", CannotConnect, "TLS: .*ca_cert"),
    "another name": ("other name", "ours", "client", CannotConnect, "TLS: .*connect by a name"),
    "expired server": ("expired", "ours", "client", CannotConnect, "TLS: .*expired"),
    "no certificate of the client": ("ours", "ours", "client", ConnectionLost, "give client_cert and client_key"),
    "client of another authority": ("ours", "theirs", "known_client", ConnectionLost, "authority that it trusts"),
    "expired client": ("ours", "expired", "known_client", ConnectionLost, "TLS|certificates"),
}


@pytest.mark.parametrize("case", WRONG)
def test_whoever_is_not_is_told_why_and_counted(loop, sides, case):
    servers, clients, kind, error, told = WRONG[case]
    ours = sides["ours"]

    async def main():
        async with endpoint(sides[servers].strict_server) as server:
            tls = getattr(sides[clients], kind)
            if clients != "ours":
                tls = TlsClient(ca_cert=ours.ca, client_cert=sides[clients].cert, client_key=sides[clients].key)
            for _ in range(2):
                async with TcpConnectionPool(tls=tls, retries=0) as client:
                    with pytest.raises(error) as caught:
                        await client.request(server.address, "echo", b"?", retry="never", timeout=5)
                    assert caught.match(told)
            await settle(lambda: server.metrics.handshake_failures == 2)
            assert server.metrics.requests == server.connections == 0

    run(main(), loop=loop)


def test_plain_and_encrypted_do_not_mix_and_say_so(loop, sides):
    ours = sides["ours"]

    async def main():
        async with (
            endpoint(ours.server) as encrypted,
            endpoint(None) as plain,
            TcpConnectionPool(retries=0) as plain_client,
            TcpConnectionPool(retries=0, tls=ours.client) as client,
        ):
            with pytest.raises(ConnectionLost):
                await plain_client.request(encrypted.address, "echo", b"?")
            with pytest.raises(CannotConnect, match="TLS"):
                await client.request(plain.address, "echo", b"?")
            await settle(lambda: encrypted.metrics.handshake_failures == 1)
            assert plain.metrics.bad_frames == 1
            assert await client.request(encrypted.address, "echo", b"!") == b"!"
            assert await plain_client.request(plain.address, "echo", b"!") == b"!"

    run(main(), loop=loop)


def test_handshakes_that_go_wrong_harm_nobody_else(loop, sides):
    ours = sides["ours"]

    async def main():
        before = open_sockets()
        async with (
            endpoint(ours.server, read_timeout=0.3) as server,
            bystander(server.address, tls=ours.client) as waits,
        ):
            peers = [await Peer.of(server.address) for _ in range(60)]
            for n, peer in enumerate(peers):
                if n % 5 == 0:
                    peer.send(b"GET / HTTP/1.1\r\n\r\n")
                elif n % 5 == 1:
                    peer.reset()
                elif n % 5 == 2:
                    peer.writer.write_eof()
                elif n % 5 == 3:
                    peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01")
                # The others say nothing at all.
            await settle(lambda: server.metrics.handshake_failures == 60)
            for peer in peers:
                await peer.closed()
                await peer.close()
            assert server.connections == 1
            assert len(waits) > 3
        await settle(lambda: open_sockets() <= before)

    run(main(), loop=loop)


def test_handshakes_under_way_end_with_the_endpoint(loop, sides):
    async def main():
        server = endpoint(sides["ours"].server)
        await server.start()
        peers = [await Peer.of(server.address) for _ in range(5)]
        await asyncio.sleep(0.01)
        await server.aclose()
        for peer in peers:
            assert await peer.closed() == b""
            await peer.close()

    run(main(), loop=loop)


def test_a_server_that_ends_while_tls_connections_are_busy(loop, sides):
    ours = sides["ours"]

    async def main():
        before = open_sockets()
        async with TcpConnectionPool(size=4, channel_buffer=5, tls=ours.client, retries=0) as client:
            server = endpoint(ours.server)
            await server.start()
            tasks = [
                asyncio.create_task(client.request(server.address, "echo", bytes(n * 3000), retry="never"))
                for n in range(60)
            ]
            await settle(lambda: any(task.done() for task in tasks))
            await server.aclose()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for n, outcome in enumerate(outcomes):
                assert isinstance(outcome, NetError) or outcome == bytes(n * 3000)
            assert client.metrics.requests == 60
        await settle(lambda: open_sockets() <= before)

    run(main(), loop=loop)
