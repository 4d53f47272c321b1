"""`penstock bench`: the options of all that it measures."""

from pathlib import Path
from typing import Any

from pipeline.tools.commands.command import Command
from pipeline.tools.commands.options import MODEL_HELP, add_settings, add_trace
from pipeline.tools.commands.progress import LOADING


def add_bench(commands: Any) -> None:
    """Add the parsers to `commands`, which is what `add_subparsers` gave."""
    what = "measure this machine, and what others do on it"
    parser = commands.add_parser("bench", help=what, description=f"{what.capitalize()}.")
    bench = parser.add_subparsers(metavar="WHAT", required=True)
    _add_pass(bench)
    _add_policies(bench)
    _add_throughput(bench)
    _add_speed(bench)
    _add_open(bench)
    core = bench.add_parser(
        "core",
        help="what channels and the line itself cost, on a simulated device",
        description="Measure what a message costs in a channel, and a group in the whole line, on asyncio's event loop "
        "and on uvloop, and how far a simulated pass is from the ideal.",
    )
    core.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of; default 5")
    core.add_argument("--json", action="store_true", help="print one JSON object")
    core.set_defaults(command=Command("bench_core", "core"))


def _add_pass(bench: Any) -> None:
    parser = bench.add_parser(
        "pass",
        usage="%(prog)s MODEL ... [options]",
        help="a pass against its floors, and against one without overlap",
        description="Measure passes beside their floors, which are their reads alone and their computing alone, and "
        "beside a loop that reads and computes in turn.",
    )
    parser.add_argument("model", type=Path, nargs="+", metavar="MODEL", help=f"one or more, each {MODEL_HELP}")
    parser.add_argument(
        "--batch-tokens",
        default="1",
        metavar="B",
        help="tokens per pass, or multiples of those that compute as long as bytes move: 1,1x,4x; default 1",
    )
    parser.add_argument("--passes", type=int, default=5, metavar="N", help="rounds to take the median of; default 5")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    add_settings(parser)
    add_trace(parser)
    parser.set_defaults(command=Command("bench_pass", "bench", said=LOADING))


def _add_policies(bench: Any) -> None:
    parser = bench.add_parser(
        "policies",
        usage="%(prog)s MODEL [options]",
        help="every prefetch policy, measured and simulated",
        description="Run the same tokens through every prefetch policy, compare what comes out, and print what was "
        "measured beside a simulation that is fed with it.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--policies", nargs="+", metavar="P", help="names, or yours as MODULE:NAME; default: all seven")
    parser.add_argument("--passes", type=int, default=8, metavar="N", help="measured passes of each; default 8")
    parser.add_argument(
        "--batch-tokens", type=int, metavar="B", help="tokens per pass; default: so that computing and reading balance"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    own = ("policy", "residency", "context_tokens", "max_tokens_per_pass")
    add_settings(parser, own, {"gpu_groups": 10})
    add_trace(parser, "; a file for each policy, whose name goes before the suffix")
    parser.set_defaults(command=Command("bench_policies", "bench_policies", said=LOADING))


def _add_throughput(bench: Any) -> None:
    parser = bench.add_parser(
        "throughput",
        usage="%(prog)s MODEL --requests N --prompt-tokens P --new-tokens T [options]",
        help="many requests at once: tokens per second, latencies, and the floors",
        description="Answer random prompts, all at once or as they arrive: tokens per second, times to the first and "
        "the next tokens, and the passes beside their reads alone and their computing alone.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--requests", required=True, metavar="N", help="how many, or a list: 1,4,16,64")
    parser.add_argument("--prompt-tokens", required=True, metavar="P", help="of each, or a range: 8-64")
    parser.add_argument("--new-tokens", required=True, type=int, metavar="T", help="of each")
    parser.add_argument("--arrival", metavar="poisson:RATE", help="requests per second; default: all at once")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals; default 0")
    parser.add_argument("--against", metavar="accelerate", help="measure its disk offload too, with a static batch")
    _add_limit(parser)
    parser.add_argument("--rounds", type=int, metavar="R", help="how often the arms take turns; default 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the tokens")
    add_settings(parser)
    parser.set_defaults(command=Command("bench_throughput", "throughput", said=LOADING))


def _add_speed(bench: Any) -> None:
    parser = bench.add_parser(
        "speed",
        usage="%(prog)s MODEL [options]",
        help="one token a pass: with and without each feature, and by other programs",
        description="Measure seconds per token with each feature of the engine off in turn, and of other programs, "
        "under one memory limit. All take turns, so that whatever else the machine does meets them alike.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--passes", type=int, default=5, metavar="N", help="measured passes of each arm a round; default 5"
    )
    parser.add_argument("--rounds", type=int, default=2, metavar="R", help="how often the arms take turns; default 2")
    parser.add_argument("--requests", default="1", metavar="N", help="in a static batch; a list: 1,64; default 1")
    parser.add_argument("--prompt-tokens", type=int, default=1, metavar="P", help="of each; default 1")
    parser.add_argument("--sampled", metavar="N", help="so many requests with a temperature, top_p and a penalty: 1,64")
    parser.add_argument(
        "--first-token", metavar="P", help="measure also the time to the first token of a prompt of so many: 512,8192"
    )
    against = (
        "accelerate, llama.cpp, transformers (resident); on a GPU also diffusers, ring (two slots, pinned host memory)"
    )
    parser.add_argument("--against", nargs="+", default=[], metavar="P", help=f"{against}, graphs (resident)")
    parser.add_argument("--beside", type=Path, metavar="TREE", help="measure also the penstock of another source tree")
    parser.add_argument(
        "--gguf",
        type=Path,
        metavar="FILE",
        help="for llama.cpp: the same weights as its own converter has written them",
    )
    parser.add_argument("--arms", nargs="+", metavar="A", help="some of our own arms only, by name; default: all")
    _add_limit(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every pass")
    add_settings(parser)
    parser.set_defaults(command=Command("bench_speed", "bench_speed"))


def _add_open(bench: Any) -> None:
    parser = bench.add_parser(
        "open",
        usage="%(prog)s MODEL ... [options]",
        help="opening, the first group, a pass, and what the runtime costs, by model",
        description="Open each model several times: seconds until it is open, until its first group is there, and per "
        "pass, and what the runtime and an idle model cost.",
    )
    parser.add_argument(
        "model", type=Path, nargs="+", metavar="MODEL", help=f"one or more, of several sizes, each {MODEL_HELP}"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="how often each is opened; default 3")
    parser.add_argument("--passes", type=int, default=5, metavar="N", help="measured passes each time; default 5")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    add_settings(parser)
    parser.set_defaults(command=Command("bench_open", "bench_open"))


def _add_limit(parser: Any) -> None:
    parser.add_argument("--memory-limit", metavar="SIZE", help="run each arm in a process limited to 1.8GB, ...")
    parser.add_argument("--limit-by", metavar="WAY", help="systemd or cgroup, whichever is there; or watchdog")
