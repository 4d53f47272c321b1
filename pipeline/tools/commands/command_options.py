"""The options of all commands but `serve`, `bench` and `simulate`, which have files of their own."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.checkpoints.presets import PRESETS
from pipeline.tools.commands.bench_options import add_bench
from pipeline.tools.commands.command import Command
from pipeline.tools.commands.options import MODEL_HELP, add_settings, add_trace
from pipeline.tools.commands.progress import LOADING
from pipeline.tools.commands.prompt import add_prompt
from pipeline.tools.commands.sampling import add_sampling
from pipeline.tools.commands.serve_options import add_serve
from pipeline.tools.commands.simulate import add_simulate

TUNED = ("gpu_groups", "host_groups", "queues", "reader_lanes", "chunk_bytes", "max_tokens_per_pass", "residency")
"""The settings that `tune` tries, or needs for that."""


def add_commands(commands: Any) -> None:
    """Add the parsers of all to `commands`, which is what `add_subparsers` gave, in the order of the help."""
    for add in (_add_run, _add_chat, add_serve, _add_plan, _add_trace_routing, _add_doctor, _add_verify, _add_demo):
        add(commands)
    for add in (_add_convert, _add_make_checkpoint, add_bench, add_simulate, _add_tune, _add_report):
        add(commands)


def _add_run(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        usage="%(prog)s MODEL (--prompt TEXT | --raw TEXT | --chat TEXT | --prompt-file FILE | --prompt-ids IDS) "
        "[options]",
        help="continue a prompt and stream the text",
        description="Continue a prompt. The text goes to stdout as it comes; all else goes to stderr: the plan, "
        "progress, and at the end tokens per second, the time to the first token, and why the text ended. Ctrl-C ends "
        "it early, with all of that, and status 130.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    add_prompt(parser)
    add_sampling(parser)
    add_settings(parser, defaults={"max_requests": 1})  # room for more would be kept from the weights
    output = parser.add_argument_group("what comes out")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    add_trace(output)
    parser.set_defaults(command=Command("run", "run"))


def _add_chat(commands: Any) -> None:
    parser = commands.add_parser(
        "chat",
        usage="%(prog)s MODEL [options]",
        help="talk with a model",
        description="Talk with a model, turn by turn. A second turn computes its own tokens alone. Ctrl-C stops an "
        "answer, Ctrl-D or a second Ctrl-C ends the chat, and /help lists what else there is. Where stdin is no "
        "terminal each of its lines is a turn, and the first that fails ends the chat with status 1. Answers go to "
        "stdout, all else to stderr.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    group = parser.add_argument_group("the conversation")
    group.add_argument("--system", metavar="TEXT", help="what the model is told before")
    group.add_argument("--template", type=Path, metavar="FILE", help="a chat template, instead of the model's")
    session = "go on where the chat that wrote this file has ended, and write it when this one ends"
    group.add_argument("--session", type=Path, metavar="FILE", help=session)
    recompute = "with --session: take its messages alone, from whatever model, and compute them anew"
    group.add_argument("--recompute", action="store_true", help=recompute)
    group.add_argument("--history", type=Path, metavar="FILE", help="keep the lines that you type, for the arrow keys")
    room = {"max_new_tokens": "as many as the context has room for"}
    add_sampling(parser, without=("logprobs", "prompt_logprobs"), defaults=room)
    add_settings(parser, defaults={"max_requests": 1})  # room for more would be kept from the weights
    parser.set_defaults(command=Command("chat", "chat"))


def _add_plan(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        usage="%(prog)s MODEL [options]",
        help="what stays where, what a pass will take, what binds, and what would help",
        description="Measure this machine for a few seconds, or take numbers for another one, and forecast. Without "
        "weights, from a config.json or a preset, sizes are computed, and only numbers give a forecast.",
    )
    without = "without weights a config.json, or a preset: llama-3-70b, ..."
    parser.add_argument("model", type=Path, metavar="MODEL", help=f"{MODEL_HELP}; {without}")
    parser.add_argument("--batch-tokens", type=int, default=1, metavar="B", help="tokens per pass; default 1")
    parser.add_argument("--format", metavar="NAME", help="without weights: as if converted to int4, fp8 or mxfp4")
    routing = "of penstock trace-routing, of this model or another: which experts are found in memory; else a guess"
    parser.add_argument("--routing", type=Path, metavar="FILE", help=routing)
    parser.add_argument(
        "--check", type=int, metavar="N", help="then run N such passes, to see how far the forecast is off"
    )
    add_settings(parser)
    elsewhere = parser.add_argument_group(
        "a machine that is not here", "With these, and the sizes of its memory; one with a GPU has an H2D rate."
    )
    elsewhere.add_argument("--disk-gbps", type=float, metavar="X", help="1e9 bytes per second from the disk")
    elsewhere.add_argument("--h2d-gbps", type=float, metavar="X", help="1e9 bytes per second to the GPU")
    elsewhere.add_argument("--tflops", type=float, metavar="X", help="1e12 operations per second, as they are reached")
    elsewhere.add_argument("--memory-gbps", type=float, metavar="X", help="1e9 bytes per second that computing reads")
    nodes = parser.add_argument_group(
        "several machines", "All numbers are those of each; see --devices for several GPUs."
    )
    nodes.add_argument("--nodes", type=int, metavar="N", help="cut the model over N, and compare other numbers of them")
    nodes.add_argument(
        "--hop-seconds", type=float, metavar="S", help="from one to the next; default as measured on Ray"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=Command("plan", "plan_forecast"))


def _add_trace_routing(commands: Any) -> None:
    parser = commands.add_parser(
        "trace-routing",
        usage="%(prog)s MODEL (--prompt TEXT | --chat TEXT | --prompt-file FILE | --prompt-ids IDS) -o FILE [options]",
        help="record which experts a model chooses, for simulate --routing and plan --routing",
        description="Continue a prompt as penstock run does, and write down which experts each token uses in each "
        "layer. The longer the answer, the more the record says: 500 tokens are a good beginning.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add_prompt(parser)
    add_sampling(parser, without=("logprobs", "prompt_logprobs"))
    add_settings(parser, defaults={"max_requests": 1})
    parser.set_defaults(command=Command("trace_routing", "trace_routing"))


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        usage="%(prog)s [--deep MODEL] [options]",
        help="check this machine and, with --deep, that outputs do not depend on where weights lie",
        description="Check this machine. The exit status is 1 when something is bad; notes cost only speed or memory.",
    )
    deep = f"also let a model answer streamed, resident and one group at a time, which must be equal: {MODEL_HELP}"
    parser.add_argument("--deep", type=Path, metavar="MODEL", help=deep)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser, own=("residency",))
    parser.set_defaults(command=Command("doctor", "doctor"))


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="compare the files of a checkpoint with what is known of them, to find damage on the disk",
        description="Read the files of a checkpoint folder from the disk and compare them with what is known of them: "
        "the names that the Hugging Face cache gives, the notes of downloads, digests in safetensors headers, and a "
        "file of sums. The exit status is 0 when all weights are good, 1 when a file is damaged, and 2 when there is "
        "nothing to compare some weights with.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--write", action="store_true", help="write the file of sums, to compare with later")
    sums = "the file of sums, as sha256sum writes it; default MODEL/penstock.sha256"
    parser.add_argument("--sums", type=Path, metavar="FILE", help=sums)
    parser.set_defaults(command=Command("verify", "verify_and_report", said="looking at {model}"))


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        usage="%(prog)s [options]",
        help="the bundled model under a budget smaller than itself",
        description="Run the bundled model while all its weights move, and draw what the five actors did. Then run the "
        "same prompt without reading ahead, with the weights in memory, and in int4. It takes ten seconds or two.",
    )
    add_settings(parser, defaults={"gpu_groups": 4, "residency": False, "max_requests": 1, "max_tokens_per_pass": 512})
    parser.set_defaults(command=Command("demo", "demo", said=LOADING))


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        usage="%(prog)s IN OUT --to FORMAT [options]",
        help="write a checkpoint anew in fewer bits, for this and other programs",
        description="Write a checkpoint anew as compressed-tensors, which transformers and vLLM read too, in little "
        "memory. Each number is rounded to the nearest. The embedding, a head that is tied to it, norms and biases "
        "stay as they are. The settings below are for --text.",
    )
    parser.add_argument("model", type=Path, metavar="IN", help=MODEL_HELP)
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="int4, fp8 or mxfp4")
    parser.add_argument("--group", type=int, metavar="N", help="columns that share a scale in int4; default 128")
    head = "leave the head as it is, for vLLM: it reads no fp8 head, and no quantised one before 2026-03"
    parser.add_argument("--keep-head", action="store_true", help=head)
    text = "also say how many bits per byte of this text both models take; seconds to minutes"
    parser.add_argument("--text", type=Path, metavar="FILE", help=text)
    add_settings(parser)
    parser.set_defaults(command=Command("convert", "convert", said=LOADING))


def _add_make_checkpoint(commands: Any) -> None:
    parser = commands.add_parser(
        "make-checkpoint",
        help="write a random-weight checkpoint of a real shape",
        description="Write a checkpoint of a real shape, to measure with. Its weights are random, and so is its text. "
        "The sizes are those of the preset, unless options say otherwise; with few layers it is small.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    parser.add_argument("--like", required=True, metavar="PRESET", help=", ".join(PRESETS))
    sizes = ("layers", "hidden-size", "ffn-size", "heads", "kv-heads", "head-dim", "vocabulary-size")
    for name in (*sizes, "experts", "chosen-experts", "expert-size"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help="in the place of the preset's")
    for name in ("tied-embeddings", "attention-bias", "mlp-bias"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--dtype", default="bfloat16", help="float32, float16, bfloat16; default bfloat16")
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="store matrices as int4, fp8 or mxfp4 of compressed-tensors, but for the embedding, the head and routers; "
        "bf16: as they are, where the preset has a format of its own",
    )
    parser.add_argument(
        "--routing-skew",
        type=float,
        default=0.0,
        metavar="S",
        help="how unevenly experts are chosen: the rows of routers are multiplied by exp(S x normal); of 128 experts "
        "the most wanted quarter gets 27 %% of the rows with 0, the default, 45 %% with 0.25, 69 %% with 0.5",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights; default 0")
    parser.set_defaults(command=Command("make", "make"))


def _add_tune(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        usage="%(prog)s MODEL [options]",
        help="try queue sizes, reader lanes, chunk sizes and budgets",
        description="Try settings in simulation, with timings of this machine, and run the best few and the smallest, "
        "in which all weight groups move. It prints a heat map, whether that shows more than noise, and the settings "
        "to paste.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--batch-tokens", type=int, default=1, metavar="B", help="tokens per pass; default 1")
    parser.add_argument(
        "--most-groups", type=int, default=12, metavar="N", help="largest gpu_groups to try; default 12"
    )
    parser.add_argument("--passes", type=int, default=4, metavar="N", help="measured passes of a real run; default 4")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser, own=TUNED)
    parser.set_defaults(command=Command("tune", "tune", said=LOADING))


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="turn a trace into one HTML page: what overlapped, and what bound it",
        description="Turn a trace into one HTML page, which needs no network: what overlapped, what each gap of the "
        "device waited for, and what bound the run.",
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a file written with --trace")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the page to write")
    parser.set_defaults(command=Command("report", "report", loads_torch=False))
