"""`penstock serve MODEL`."""

import argparse
import importlib.util
import logging
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.system.event_loop import run_async
from pipeline.system.hub_cache import model_names
from pipeline.tools.commands.text_files import text_of_file

if TYPE_CHECKING:
    from pipeline.server.options import ServerOptions

MODULES = ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client")


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal. Raises PenstockError naming what can never work, before anything takes time."""
    if missing := [name for name in MODULES if importlib.util.find_spec(name) is None]:
        packages = " ".join(missing).replace("_", "-")
        raise ConfigError(f"serve: need {', '.join(missing)}, which are not installed: pip install {packages}")
    from pipeline.server.options import ServerOptions, keys_of_environment
    from pipeline.server.process import serve_model

    Config.from_arguments(options.settings)
    server_options = ServerOptions(
        model=options.model,
        settings=options.settings,
        names=tuple(options.served_name or model_names(options.model)),
        host=options.host,
        port=options.port,
        api_keys=tuple(options.api_key or keys_of_environment()),
        cors=tuple(options.cors),
        allowed_hosts=tuple(options.allowed_host),
        drain_seconds=options.drain_seconds,
        template=None if options.template is None else text_of_file("--template", options.template),
    )
    if options.replicas is not None:
        return _serve_replicas(server_options, options)
    if options.replica_cpus is not None:
        raise ConfigError("--replica-cpus: says what replicas take, and --replicas is not said")
    _log_requests()
    return run_async(serve_model(server_options))


def _serve_replicas(server_options: "ServerOptions", options: argparse.Namespace) -> int:
    from pipeline.replicas.replica_options import ReplicaOptions

    replica_options = ReplicaOptions(server=server_options, replicas=options.replicas, cpus=options.replica_cpus)
    try:
        from pipeline.replicas.replica_process import serve_replicas
    except ImportError as error:
        raise ConfigError(f"--replicas: need Ray Serve ({error}): pip install 'ray[serve]'") from error
    _log_requests()
    return serve_replicas(replica_options)


def _log_requests() -> None:
    """Requests are told at level INFO, as is how the model is read; of uvicorn only what goes wrong."""
    ours, theirs = logging.getLogger("penstock"), logging.getLogger("uvicorn")
    ours.setLevel(logging.INFO)
    theirs.handlers, theirs.propagate = ours.handlers, False
