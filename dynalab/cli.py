"""The ``dynalab`` command: thin, and quick to start, for every subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from dynalab import __version__
from dynalab.errors import DynalabError

#: Exit codes: a user's error, Ctrl-C (128 + SIGINT), and being told to stop (128 + SIGTERM).
USER_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143

#: Options of ``dynalab report`` that are parameters of the notebook: option, parameter, metavar, help.
_REPORT_OPTIONS = (
    ("--trace", "trace", "PATH|PRESET", "a trace file (.gz too), folder or glob, or a preset (default: conversation)"),
    ("--format", "trace_format", "NAME", "format of the trace (default: auto)"),
    ("--model", "model", "NAME|JSON", "a known model, or a Hugging Face style config.json (default: llama-3-70b)"),
    ("--hardware", "hardware", "NAME", "the machine's GPUs, links and disks (default: h100-sxm)"),
    ("--measured", "measured", "FILE", "bandwidths from dynalab bench tiers (default: none, those of the hardware)"),
    ("--measured-link", "measured_link", "gpu|any", "any: believe a host-emulated device's link too (default: gpu)"),
    ("--measured-net", "measured_net", "FILE", "costs of a request from dynalab bench net (default: assumptions)"),
    ("--device", "device", "SIZE", "GPU memory for KV blocks (default: 40GiB)"),
    ("--host", "host", "SIZE", "pinned host memory for KV blocks (default: 512GiB)"),
    ("--disk", "disk", "SIZE", "disk for KV blocks; 0 for none (default: 4TB)"),
    ("--block-tokens", "block_tokens", "N", "re-block the trace to N tokens (default: 0, as in the trace)"),
    ("--target-hit-ratio", "target_hit_ratio", "RATIO", "hit ratio to size for, 0 to 1 (default: 0, the knee)"),
    ("--budget", "budget", "MONEY", "what the tiers may cost (default: 0, no limit)"),
    ("--duration", "duration_s", "TIME", "length of a synthetic trace, as in 30m (default: 0, the preset's own)"),
    ("--rate", "rate", "RATE", "requests/s of a synthetic trace (default: 0, the preset's own)"),
    ("--itl", "itl_ms", "TIME", "between output tokens while a request holds its permit (default: 20ms)"),
    ("--speedup", "speedup", "FACTOR", "make arrivals this many times faster (default: 1)"),
    ("--seed", "seed", "N", "seed of every random choice (default: 0)"),
)

#: Options of ``dynalab bench tiers`` that are fields of its plan: option, field, metavar, help.
_BENCH_OPTIONS = (
    ("--device", "device", "SIZE", "size of the device tier; 0 for none (default: 512MiB)"),
    ("--host", "host", "SIZE", "size of the host tier (default: 256MiB)"),
    ("--disk", "disk", "SIZE", "size of the disk tier; 0 for none (default: 2GiB)"),
    ("--path", "path", "DIR", "directory on the disk to measure (default: on the roomiest local disk)"),
    ("--block-bytes", "block_bytes", "SIZE[,SIZE...]", "sizes of a block (default: 64KiB,256KiB,1MiB,4MiB)"),
    ("--batch", "batches", "N[,N...]", "blocks that are handed over at once (default: 1,4,16,64)"),
    ("--layout", "layouts", "NAME[,NAME...]", "block_first, layer_first (default: both)"),
    ("--concurrency", "concurrency", "N", "batches in flight (default: 4)"),
    ("--engine", "engine", "NAME", "what moves bytes to and from the disk: posix, kvikio, nixl, auto (default: posix)"),
    ("--gpu", "gpu", "N", "number of the GPU, or host-emulated (default: the first one, if there is any)"),
    ("--time", "seconds", "TIME", "how long to measure, checks included (default: 40s)"),
    ("--seed", "seed", "N", "seed of the blocks' bytes and of all orders (default: 0)"),
)

#: The same for ``dynalab bench net`` and ``dynalab bench pools``.
_NET_OPTIONS = (
    ("--payload", "payload_bytes", "SIZE[,SIZE...]", "bytes of a request and its reply (default: 64,4KiB,64KiB,1MiB)"),
    ("--concurrency", "concurrency", "N[,N...]", "callers with one request under way each (default: 1,16,256)"),
    ("--pool-size", "pool_size", "N[,N...]", "most connections of the client (default: 1,8)"),
    ("--channel-buffer", "channel_buffer", "N[,N...]", "most requests in flight on a connection (default: 64)"),
    ("--server-concurrency", "server_concurrency", "N[,N...]", "handlers that run at a time (default: 64)"),
    ("--handler-time", "handler_seconds", "TIME[,TIME...]", "how long a handler waits, as in 5ms (default: 0)"),
    ("--loop", "loops", "NAME[,NAME]", "asyncio, uvloop (default: those installed)"),
    ("--time", "seconds", "TIME", "how long to measure (default: 35s)"),
    ("--seed", "seed", "N", "seed of the payloads' bytes and of the order of cases (default: 0)"),
)
_POOL_OPTIONS = (
    ("--kind", "kinds", "NAME[,NAME...]", "threads (SyncPool), asyncio, uvloop (default: those installed)"),
    ("--items", "items", "N[,N...]", "values in the pool (default: 1,8)"),
    ("--threads", "threads", "N[,N...]", "threads that borrow at a time (default: 1,2,4,8,16)"),
    ("--tasks", "tasks", "N[,N...]", "tasks that borrow at a time (default: 1,4,16,64,256)"),
    ("--time", "seconds", "TIME", "how long to measure (default: 10s)"),
    ("--seed", "seed", "N", "seed of the order of cases (default: 0)"),
)

_TOP_EXAMPLES = """\
examples:
  dynalab report                                  a report on the embedded synthetic trace
  dynalab report --trace trace.jsonl.gz --model llama-3-70b --device 40GiB --host 512GiB --disk 4TB
  dynalab trace trace.jsonl.gz                    what is in a trace
  dynalab doctor                                  what this machine offers
  dynalab bench tiers                             how fast this machine moves blocks between memory and disk
  dynalab bench net                               what requests over TCP connections cost on this machine
"""
_REPORT_EXAMPLES = """\
writes OUT/NAME-HASH/ with report.html, the executed notebook, results.nc and recommendation.yaml; equal parameters give
equal files.

examples:
  dynalab report
  dynalab report --trace mooncake_conversation.jsonl.gz --model llama-3-70b --device 40GiB --host 512GiB --disk 4TB
  dynalab report --trace mooncake_conversation.jsonl.gz --measured bench/tiers-2026-11-22-162154.nc
  dynalab report --trace mooncake_conversation.jsonl.gz --measured-net bench/net-2026-11-22-162154.nc --itl 15ms
  dynalab report --trace agent --rate 4 --duration 1h --policy lru,s3fifo,lineage --target-hit-ratio 0.45
"""
_BENCH_EXAMPLES = """\
moves blocks between device, host and disk tiers of its own, compares every bit, then measures each direction, block
size, batch and layout beside what the machine does with one large piece. Leaves nothing behind but the file of results.

examples:
  dynalab bench tiers
  dynalab bench tiers --quick --path /mnt/nvme
  dynalab bench tiers --device 8GiB --host 8GiB --disk 64GiB --time 5m --out node7.nc
  dynalab report --measured node7.nc
"""
_NET_EXAMPLES = """\
calls an endpoint in another process through a pool of connections, compares what comes back, and measures every
combination of payload, callers, pool size and the rest, beside a bare echo that does nothing but send bytes back.

examples:
  dynalab bench net
  dynalab bench net --quick
  dynalab bench net --payload 4KiB --concurrency 64 --pool-size 1,2,4,8 --channel-buffer 8,64 --loop asyncio
  dynalab bench net --payload 64 --concurrency 8,64 --server-concurrency 8,32 --handler-time 5ms --out node7-net.nc
"""
_POOLS_EXAMPLES = """\
lets threads and tasks take items from pools and give them back: what that costs alone and in a crowd, and how soon
whoever waits has an item that was given back.

examples:
  dynalab bench pools
  dynalab bench pools --quick
  dynalab bench pools --kind threads --items 1,4,16 --threads 1,8,64 --time 30s
"""
_TRACE_EXAMPLES = """\
examples:
  dynalab trace AzureLLMInferenceTrace_conv.csv
  dynalab trace AzureLLMInferenceTrace_conv.csv --with-prefixes --write azure.jsonl
  dynalab trace profile_export.jsonl --write replay.jsonl
  dynalab trace --synthesize conversation --duration 1h --rate 3 --seed 7 --write twin.jsonl
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        0; 2 for an error that the user can cure, told in one line on stderr; 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except DynalabError as error:
        if arguments.debug:
            raise
        print(f"dynalab {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"dynalab {arguments.command}: interrupted, nothing was left behind", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe ("| head") has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="dynalab",
        description="Measure, simulate and size tiered, disaggregated LLM serving.",
        epilog=_TOP_EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"dynalab {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str, run: Any, summary: str, examples: str = "", group: Any = commands
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = group.add_parser(
            name, help=summary, description=summary, epilog=examples, formatter_class=raw
        )
        sub.set_defaults(run=run, command=sub.prog.removeprefix("dynalab "))
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    report = command(
        "report", _report, "size the tiers for a trace and a model: run the tuning notebook", _REPORT_EXAMPLES
    )
    for option, name, metavar, text in _REPORT_OPTIONS:
        report.add_argument(option, dest=name, metavar=metavar, help=text)
    report.add_argument(
        "--policy",
        dest="policies",
        metavar="NAME[,NAME...]",
        action="append",
        help="policies to compare, or all; may be given again (default: default)",
    )
    report.add_argument("--out", metavar="DIR", default="reports", help="folder of all reports (default: reports)")
    report.add_argument("--name", metavar="NAME", help="first part of the report's folder name (default: the trace's)")

    trace = command("trace", _trace, "show, convert or synthesise a trace", _TRACE_EXAMPLES)
    trace.add_argument("path", nargs="?", metavar="PATH", help="a trace file (.gz too), folder or glob")
    trace.add_argument("--format", default="auto", metavar="NAME", help="format of the trace (default: auto)")
    trace.add_argument("--synthesize", metavar="PRESET", help="make a trace instead of reading one")
    trace.add_argument("--duration", metavar="TIME", help="its length, as in 1h (default: the preset's own)")
    trace.add_argument("--rate", type=float, metavar="RATE", help="its requests/s (default: the preset's own)")
    trace.add_argument("--seed", type=int, default=None, metavar="N", help="its seed (default: 0)")
    trace.add_argument(
        "--with-prefixes",
        action="store_true",
        help="invent block ids (chats, system prompts) for a trace that has none",
    )
    trace.add_argument("--write", metavar="OUT", help="write it as Mooncake JSONL, which AIPerf replays")

    command("policies", _policies, "list the eviction policies")
    doctor = command("doctor", _doctor, "tell what this machine offers and what dynalab does with it")
    doctor.add_argument("--json", action="store_true", help="as JSON")

    summary = "measure this machine: its tiers, network, pools, or its GPU's kernels"
    benches = commands.add_parser("bench", help=summary, description=summary).add_subparsers(
        dest="command", metavar="WHAT", required=True
    )
    for name, run, summary, examples, options, quick in (
        ("tiers", _bench_tiers, "measure device, host and disk tiers", _BENCH_EXAMPLES, _BENCH_OPTIONS, "small tiers"),
        ("net", _bench_net, "measure requests over TCP connections", _NET_EXAMPLES, _NET_OPTIONS, "asyncio only"),
        ("pools", _bench_pools, "measure object pools", _POOLS_EXAMPLES, _POOL_OPTIONS, "one size"),
    ):
        bench = command(name, run, summary, examples, benches)
        for option, field, metavar, text in options:
            bench.add_argument(option, dest=field, metavar=metavar, help=text)
        bench.add_argument("--quick", action="store_true", help=f"{quick}, few cases, ten seconds at most")
        bench.add_argument("--out", metavar="FILE", help=f"where the Dataset goes (default: bench/{name}-<date>.nc)")
    gpu = command("gpu", _bench_gpu, "check and time the kernels on a GPU, and say which bars they meet", "", benches)
    gpu.add_argument("--out", metavar="FILE", help="where the JSON goes (default: bench/gpu-<date>.json)")
    return parser


def _report(arguments: argparse.Namespace) -> int:
    from dynalab.lab.report import ReportParameters, build_report

    names = [name for _, name, _, _ in _REPORT_OPTIONS] + ["policies"]
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    with _stopped_cleanly():
        report = build_report(ReportParameters(**given), arguments.out, name=arguments.name, say=_say)
    print(report.html)
    for line in report.summary():
        print(f"  {line}")
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from dynalab.errors import ConfigError
    from dynalab.units import parse_duration
    from dynalab.workload import read_trace, synthesize

    if (arguments.path is None) == (arguments.synthesize is None):
        raise ConfigError("trace: give either a PATH or --synthesize PRESET")
    settings = {"duration": arguments.duration, "rate": arguments.rate, "seed": arguments.seed}
    settings = {name: value for name, value in settings.items() if value is not None}
    if arguments.synthesize is not None:
        if "duration" in settings:
            settings["duration"] = parse_duration(settings["duration"], field="duration")
        trace = synthesize(arguments.synthesize, **settings)
    else:
        seed = settings.pop("seed", 0) if arguments.with_prefixes else 0
        if settings:
            raise ConfigError(f"--{next(iter(settings))}: only together with --synthesize PRESET")
        trace = read_trace(arguments.path, format=arguments.format)
        if arguments.with_prefixes:
            trace = trace.with_prefixes(seed=seed)
    _print_facts(trace.summary())
    if arguments.write is not None:
        trace.write(arguments.write)
        _say(f"wrote {arguments.write}")
    return 0


def _policies(arguments: argparse.Namespace) -> int:
    from dynalab.kv.policies import POLICIES

    rows = [("name", "title", "needs", "source")]
    rows += [(p.name, p.title, ", ".join(p.needs) or "-", p.source) for p in POLICIES.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from dynalab.lab.doctor import examine, render

    facts = examine()
    if arguments.json:
        import json

        print(json.dumps(facts, indent=2, default=str))
    else:
        print(render(facts))
        print("\nnext: dynalab bench tiers   measures device, host and disk of this machine, in a minute")
        print("      dynalab bench net     measures requests over TCP connections, dynalab bench pools object pools")
    return 0


def _bench_tiers(arguments: argparse.Namespace) -> int:
    from dynalab.lab.bench import QUICK, measure_tiers, table

    path = _bench(arguments, _BENCH_OPTIONS, QUICK, measure_tiers, table)
    print(f"for a report with these bandwidths: dynalab report --measured {path}")
    return 0


def _bench_net(arguments: argparse.Namespace) -> int:
    from dynalab.lab.bench_net import QUICK, measure_net, table

    _bench(arguments, _NET_OPTIONS, QUICK, measure_net, table)
    return 0


def _bench_pools(arguments: argparse.Namespace) -> int:
    from dynalab.lab.bench_pools import QUICK, measure_pools, table

    _bench(arguments, _POOL_OPTIONS, QUICK, measure_pools, table)
    return 0


def _bench(arguments: argparse.Namespace, options: Any, quick: Any, measure: Any, table: Any) -> Any:
    """Measure as the options say, print the table, and return where the results are."""
    given = {name: value for _, name, _, _ in options if (value := getattr(arguments, name)) is not None}
    with _stopped_cleanly():
        path, found = measure({**(quick if arguments.quick else {}), **given}, arguments.out, say=_say)
    print(table(found))
    print(f"\nsaved as {path}")
    return path


def _bench_gpu(arguments: argparse.Namespace) -> int:
    from dynalab.lab.bench_gpu import measure_gpu, table

    path, found = measure_gpu(arguments.out, say=_say)
    print(table(found))
    print(f"\nsaved as {path}")
    return 0


@contextmanager
def _stopped_cleanly() -> Iterator[None]:
    """Told to stop, leave as cleanly as after Ctrl-C: what is half made goes on the way out."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        text = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        print(f"{name.replace('_', ' '):<{width}}  {text}")


def _say(line: str) -> None:
    """Tell what is going on, beside the results that go to stdout."""
    print(line, file=sys.stderr, flush=True)
