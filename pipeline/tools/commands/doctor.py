"""`penstock doctor [--deep MODEL]`. It needs no torch itself: a broken one must be told, not met."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.errors import ConfigError, PenstockError
from pipeline.system.table import print_json
from pipeline.tools.commands.progress import Progress
from pipeline.tools.doctor.check import Check, failed
from pipeline.tools.doctor.machine import machine_checks

NAME_WIDTH = len("pinned memory")


def doctor(options: argparse.Namespace) -> None:
    """Check, and print. Raises PenstockError when something is bad, or when the model cannot be opened."""
    if options.deep is not None:
        open_checkpoint(options.deep, direct=False).close()  # a folder that is none is told before anything takes time
    for name in options.settings if options.deep is None else ():
        raise ConfigError(f"{name}: says how a model is run, so it needs --deep MODEL")
    progress = Progress()
    progress.say("checking the machine")
    checks = machine_checks(options.deep)
    progress.clear()
    try:
        if not options.json:
            print(lines(checks), flush=True)
        if options.deep is not None:
            deep = _deep(options, progress)
            checks += deep
            if not options.json:
                print(lines(deep))
    finally:
        bad = [check.name for check in checks if check.verdict == "bad"]
        if options.json:
            print_json({"bad": bad, "checks": [asdict(check) for check in checks]})
    if bad:
        raise PenstockError(f"{len(bad)} of {len(checks)} checks {'is' if len(bad) == 1 else 'are'} bad")


def _deep(options: argparse.Namespace, progress: Progress) -> list[Check]:
    """Raises PenstockError when the model cannot be opened."""
    from pipeline.system.event_loop import run_async

    # What opening warns of, the checks have told, or it is the same for all runs.
    logger = logging.getLogger("penstock")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from pipeline.tools.doctor.definitions import check_decoding
        from pipeline.tools.doctor.outputs import check_outputs

        checks = run_async(check_decoding(options.deep, options.settings, progress.say))
        return checks + run_async(check_outputs(options.deep, options.settings, progress.say))
    except PenstockError:
        raise
    except Exception as error:
        return [failed("outputs", error)]
    finally:
        logger.setLevel(level)
        progress.clear()


def lines(checks: Sequence[Check]) -> str:
    """A line for each check, and one below it for what to do."""
    printed = []
    for check in checks:
        printed.append(f"{check.verdict:4}  {check.name:{NAME_WIDTH}}  {_one_line(check.found)}")
        if check.to_do:
            printed.append(f"{'':{NAME_WIDTH + 8}}-> {_one_line(check.to_do)}")
    return "\n".join(printed)


def _one_line(text: str) -> str:
    """Errors of others may have several."""
    return " ".join(text.split())
