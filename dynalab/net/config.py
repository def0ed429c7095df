"""How clients and endpoints are set up: by keyword, or by the ``DYN_TCP_*`` variables that Dynamo's users set already.

Dynamo keeps the default, silently, where it cannot read a variable; here a bad value is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import BeforeValidator, Field

from dynalab.net._env import Variable, name_of_host, read_variables, seconds, seconds_or_none, size, whole
from dynalab.net.frames import MAX_MESSAGE
from dynalab.spec import Spec, as_seconds, as_size

# Room for the texts of errors; and what the wire's lengths can tell.
_LEAST_MESSAGE: Final = 1024
_MOST_MESSAGE: Final = 2**32 - 1


_Count = Annotated[int, Field(ge=1, strict=True)]
_CountOrNone = Annotated[int, Field(ge=0, strict=True)]
_Seconds = Annotated[float, BeforeValidator(as_seconds), Field(gt=0)]
_SecondsOrNone = Annotated[float, BeforeValidator(as_seconds), Field(ge=0)]
_Message = Annotated[int, BeforeValidator(as_size), Field(ge=_LEAST_MESSAGE, le=_MOST_MESSAGE)]
_Bytes = Annotated[int, BeforeValidator(as_size), Field(ge=_LEAST_MESSAGE)]


class TcpClientConfig(Spec):
    """How a client pools its connections, and how long it waits.

    Durations may be given as text ("500ms"), sizes too ("32MiB"). The fields are described in
    ``TcpClientConfig.model_fields[name].description``.

    Examples
    --------
    >>> config = TcpClientConfig(size=8, request_timeout="500ms")
    >>> config.size, config.request_timeout, config.max_message
    (8, 0.5, 33554432)
    >>> TcpClientConfig.from_env({"DYN_TCP_POOL_SIZE": "50"}).size
    50
    """

    _what: ClassVar[str] = "TCP client"

    size: _Count = Field(default=100, description="connections to one address at most")
    channel_buffer: _Count = Field(default=1024, description="requests in flight on one connection at most")
    request_timeout: _Seconds = Field(default=5.0, description="seconds until a request is given up")
    connect_timeout: _Seconds = Field(default=5.0, description="seconds until an attempt to connect is given up")
    max_message: _Message = Field(default=MAX_MESSAGE, description="bytes of a whole frame at most, either way")
    connect_limit: _Count = Field(default=64, description="attempts to connect at a time, over all addresses")
    idle_ttl: _Seconds = Field(default=300.0, description="seconds after which the connections of an unused address go")
    retries: _CountOrNone = Field(
        default=2, description="attempts beyond the first, where the request cannot have reached its handler"
    )
    backoff: _SecondsOrNone = Field(default=0.05, description="seconds before the first retry, doubled for each other")
    backoff_max: _SecondsOrNone = Field(default=1.0, description="seconds before a retry at most")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **fields: Any) -> Self:
        """Read the variables by which Dynamo's TCP client is set up.

        ============================ ================ =====================================
        variable                     field            value
        ============================ ================ =====================================
        DYN_TCP_POOL_SIZE            size             from 1 up
        DYN_TCP_CHANNEL_BUFFER       channel_buffer   from 1 up
        DYN_TCP_REQUEST_TIMEOUT      request_timeout  seconds above 0
        DYN_TCP_CONNECT_TIMEOUT      connect_timeout  seconds above 0
        DYN_TCP_MAX_MESSAGE_SIZE     max_message      1024 to 4294967295 bytes, or "32MiB"
        DYN_TCP_GLOBAL_CONNECT_LIMIT connect_limit    from 1 up
        DYN_TCP_HOST_IDLE_TTL_SECS   idle_ttl         seconds above 0
        ============================ ================ =====================================

        Parameters
        ----------
        environ : mapping of str to str
        **fields
            Fields of this class; they win over variables.

        Returns
        -------
        TcpClientConfig
            A variable that is unset or blank leaves the default.

        Raises
        ------
        ConfigError
            If a value is none: names the variable, the value and what would be right. A variable of another part of
            Dynamo is left alone; one that looks like a slip is logged.
        """
        return cls(**(read_variables(_CLIENT, environ) | fields))


class TcpServerConfig(Spec):
    """What an endpoint takes on at a time, and how long it waits for its peers.

    Durations may be given as text ("30s"), sizes too ("64MiB"). The fields are described in
    ``TcpServerConfig.model_fields[name].description``.

    Examples
    --------
    >>> TcpServerConfig(max_concurrency=64, queue=256, total_bytes="2GiB").total_bytes
    2147483648
    >>> TcpServerConfig.from_env({"DYN_TCP_WORKER_POOL_SIZE": "1500"}).max_concurrency
    1500
    """

    _what: ClassVar[str] = "TCP endpoint"

    host: Annotated[str, Field(min_length=1)] = Field(
        default="127.0.0.1", description="name or address to listen on; 0.0.0.0 or :: for all of the machine's"
    )
    port: Annotated[int, Field(ge=0, le=65_535, strict=True)] = Field(
        default=0, description="port to listen on; 0: any that is free"
    )
    max_concurrency: _Count = Field(default=10_000, description="handlers that run at a time")
    queue: _CountOrNone = Field(default=40_000, description="requests that wait for a handler at most")
    max_message: _Message = Field(default=MAX_MESSAGE, description="bytes of a whole frame at most, either way")
    connection_bytes: _Bytes = Field(
        default=64 * 2**20, description="payload bytes that one connection may hold in memory"
    )
    total_bytes: _Bytes = Field(
        default=2**30,
        description="payload bytes that all connections may hold in memory; replies of the handlers that run come on "
        "top",
    )
    read_timeout: _Seconds = Field(default=30.0, description="seconds until a frame that has begun must be complete")
    write_timeout: _Seconds = Field(default=30.0, description="seconds that a peer may leave its responses unread")
    drain_timeout: _SecondsOrNone = Field(
        default=900.0, description="seconds to wait for requests under way at the end"
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **fields: Any) -> Self:
        """Read the variables by which Dynamo's shared TCP endpoint is set up.

        ============================================ =============== ====================================
        variable                                     field           value
        ============================================ =============== ====================================
        DYN_TCP_RPC_HOST                             host            a name or an address
        DYN_TCP_RPC_PORT                             port            0 to 65535; 0: any that is free
        DYN_TCP_WORKER_POOL_SIZE                     max_concurrency from 1 up
        DYN_TCP_WORK_QUEUE_SIZE                      queue           from 0 up
        DYN_TCP_MAX_MESSAGE_SIZE                     max_message     1024 to 4294967295 bytes, or "32MiB"
        DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS   drain_timeout   seconds; 0: do not wait
        ============================================ =============== ====================================

        Parameters
        ----------
        environ : mapping of str to str
        **fields
            Fields of this class; they win over variables.

        Returns
        -------
        TcpServerConfig
            A variable that is unset or blank leaves the default.

        Raises
        ------
        ConfigError
            As :meth:`TcpClientConfig.from_env`.
        """
        return cls(**(read_variables(_SERVER, environ) | fields))


_MESSAGE: Final = Variable("DYN_TCP_MAX_MESSAGE_SIZE", "max_message", size(_LEAST_MESSAGE, _MOST_MESSAGE))
_CLIENT: Final = (
    Variable("DYN_TCP_POOL_SIZE", "size", whole(1)),
    Variable("DYN_TCP_CHANNEL_BUFFER", "channel_buffer", whole(1)),
    Variable("DYN_TCP_REQUEST_TIMEOUT", "request_timeout", seconds),
    Variable("DYN_TCP_CONNECT_TIMEOUT", "connect_timeout", seconds),
    _MESSAGE,
    Variable("DYN_TCP_GLOBAL_CONNECT_LIMIT", "connect_limit", whole(1)),
    Variable("DYN_TCP_HOST_IDLE_TTL_SECS", "idle_ttl", seconds),
)
_SERVER: Final = (
    Variable("DYN_TCP_RPC_HOST", "host", name_of_host),
    Variable("DYN_TCP_RPC_PORT", "port", whole(0, 65_535)),
    Variable("DYN_TCP_WORKER_POOL_SIZE", "max_concurrency", whole(1)),
    Variable("DYN_TCP_WORK_QUEUE_SIZE", "queue", whole(0)),
    _MESSAGE,
    Variable("DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", "drain_timeout", seconds_or_none),
)
