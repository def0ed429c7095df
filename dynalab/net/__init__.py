"""Requests over TCP: framing, a client that pools connections, and an endpoint that bounds its work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynalab.net.address import Address, parse_address
    from dynalab.net.client import TcpConnectionPool
    from dynalab.net.config import TcpClientConfig, TcpServerConfig
    from dynalab.net.decoder import RequestDecoder, RequestFrame, ResponseDecoder
    from dynalab.net.endpoint import SharedTcpEndpoint
    from dynalab.net.frames import encode_request_head, encode_response_head
    from dynalab.net.loops import LoopThread, loop_factory
    from dynalab.net.sizing import TcpAdvice, recommend_tcp
    from dynalab.net.tls import TlsClient, TlsServer, explain_tls

__all__ = [
    "Address",
    "LoopThread",
    "RequestDecoder",
    "RequestFrame",
    "ResponseDecoder",
    "SharedTcpEndpoint",
    "TcpAdvice",
    "TcpClientConfig",
    "TcpConnectionPool",
    "TcpServerConfig",
    "TlsClient",
    "TlsServer",
    "encode_request_head",
    "encode_response_head",
    "explain_tls",
    "loop_factory",
    "parse_address",
    "recommend_tcp",
]

_HOME = {
    "Address": "address",
    "LoopThread": "loops",
    "RequestDecoder": "decoder",
    "RequestFrame": "decoder",
    "ResponseDecoder": "decoder",
    "SharedTcpEndpoint": "endpoint",
    "TcpAdvice": "sizing",
    "TcpClientConfig": "config",
    "TcpConnectionPool": "client",
    "TcpServerConfig": "config",
    "TlsClient": "tls",
    "TlsServer": "tls",
    "encode_request_head": "frames",
    "encode_response_head": "frames",
    "explain_tls": "tls",
    "loop_factory": "loops",
    "parse_address": "address",
    "recommend_tcp": "sizing",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
