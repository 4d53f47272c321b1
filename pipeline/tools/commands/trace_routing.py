"""`penstock trace-routing MODEL -o FILE`."""

import argparse
import sys
from typing import Any

from pipeline.errors import ConfigError
from pipeline.system.event_loop import run_async
from pipeline.system.written_files import check_writable
from pipeline.tools.commands.one_device import check_one_device
from pipeline.tools.commands.progress import LOADING, Progress
from pipeline.tools.commands.prompt import messages, read_prompt
from pipeline.tools.commands.sampling import sampling_arguments
from pipeline.tools.commands.text_files import chat_arguments


def trace_routing(options: argparse.Namespace) -> None:
    """Run, print the text, and write the file. Raises PenstockError naming what can never work, before any work."""
    arguments = sampling_arguments(options)
    check_one_device(options.settings)
    check_writable(options.out)
    prompt = read_prompt(options)
    arguments |= chat_arguments(options)
    Progress().say(LOADING)
    run_async(_record(options, prompt if options.chat is None else messages(options, str(prompt)), arguments))


async def _record(options: argparse.Namespace, prompt: Any, arguments: dict[str, Any]) -> None:
    from pipeline.api import Model
    from pipeline.checkpoints.checkpoint import open_checkpoint
    from pipeline.checkpoints.checkpoint_digest import checkpoint_digest
    from pipeline.tools.commands.answer import Answer
    from pipeline.tools.commands.run_prompt import stream_text
    from pipeline.tools.routing.recorded_routing import write_routing
    from pipeline.tools.routing.recorder import Recorder

    with open_checkpoint(options.model) as checkpoint:
        digest = checkpoint_digest(checkpoint)
    async with Model.open(options.model, **options.settings) as model:
        half, line = model.runtime.section.expert_half, model.runtime.expert_line
        if half is None or line is None:
            raise ConfigError(f"{options.model}: has no experts that a router chooses; name a model that has some")
        catalog = line.room.catalog
        layers = sorted({layer for layer, _ in catalog.order})
        count = line.room.count
        expert_bytes = catalog.needed_bytes // count
        recorder = Recorder(options.model.name, digest, layers, count // len(layers), expert_bytes)
        half.recorder = recorder
        stream = model.stream if options.chat is None else model.stream_chat
        await stream_text(model, stream(prompt, **arguments), Answer())
    routing = recorder.recorded()
    write_routing(options.out, routing)
    tokens = f"{routing.decoded_tokens:,} decoded tokens and {int(routing.from_prompt.sum()):,} of the prompt"
    print(f"{options.out}: {tokens}, {len(layers)} layers", file=sys.stderr)
