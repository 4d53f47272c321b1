"""`penstock serve --replicas`: Serve is started with the application, watched, and ended in order by a signal."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeStatus

from pipeline.errors import ClosedError, ConfigError, ResourceError
from pipeline.replicas.application import REPLICAS, application
from pipeline.replicas.replica_options import ReplicaOptions
from pipeline.server.process import IDLE_SECONDS, SIGNALS, listening, tell_where

logger = logging.getLogger("penstock")
NAME = "penstock"
WATCH_SECONDS = 0.5
ENDED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DELETING, ApplicationStatus.NOT_STARTED)


def serve_replicas(options: ReplicaOptions) -> int:
    """Serve until a signal. Returns 0, or 128 plus the number of a second one, which ends requests that still run.

    Raises PenstockError where there is no port or no cluster, where Serve runs there already, and where no replica
    opens.
    """
    with contextlib.closing(listening(options.server)) as free:
        host, port = free.getsockname()[:2]
    http = HTTPOptions(host=options.server.host, port=port, keep_alive_timeout_s=IDLE_SECONDS)
    logger.info("joining a cluster of Ray, and starting Serve there: some seconds")
    with _cluster():
        target = serve.RunTarget(application(options), name=NAME, route_prefix="/")
        with _Signals() as told, _serve(http, told):
            tell_where(host, port, options.server)
            try:
                serve.run_many([target], wait_for_applications_running=False)
                _watch(told)
                logger.info("ending; running requests have %g s to finish", options.server.drain_seconds)
            finally:
                serve.delete(NAME, _blocking=False)
                while NAME in serve.status().applications and not told.again.wait(WATCH_SECONDS):
                    pass
        return 128 + told.number if told.again.is_set() else 0


class _Signals:
    """Takes the signals of the process within: events for the first and for the next one.

    It is entered behind `ray.init`, whose handlers would end the process after three seconds.
    """

    def __init__(self) -> None:
        self.first, self.again = threading.Event(), threading.Event()
        self.number = 0
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._tell) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        (self.again if self.first.is_set() else self.first).set()


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or that runs on this machine, or one of this process that ends with it."""
    try:
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray raises Exception itself where a node takes longer to start than it waits
        raise ResourceError(f"no cluster of Ray can be had: {error}; RAY_ADDRESS says where one is") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _serve(http: HTTPOptions, told: _Signals) -> Iterator[None]:
    """Serve with a port, until the end or a second signal. Raises ConfigError where it runs already."""
    if (there := serve.status()).proxies:
        raise ConfigError(
            f"Serve runs on this cluster already, with {', '.join(there.applications) or 'no application'}; add this "
            "one to its config file (import_path: pipeline.replicas.application:app), or end it: serve shutdown"
        )
    serve.start(http_options=http)
    try:
        yield
    finally:
        if not told.again.is_set():
            serve.shutdown()


def _watch(told: _Signals) -> None:
    """Tell how many replicas are ready, until a signal. Raises ClosedError when no more come."""
    before = ""
    while not told.first.wait(WATCH_SECONDS):
        now = _state(serve.status())
        if now != before:
            logger.info("%s", now)
            before = now


def _state(status: ServeStatus) -> str:
    if (app := status.applications.get(NAME)) is None or app.status in ENDED:
        raise ClosedError(f"Serve has ended the replicas: {_why(app)}")
    states = app.deployments[REPLICAS].replica_states if REPLICAS in app.deployments else {}
    counted = [f"{count} {state.lower()}" for state, count in states.items()]
    return f"replicas: {', '.join(counted) or 'none'}; the application is {app.status.value.lower()}"


def _why(app: ApplicationStatusOverview | None) -> str:
    """What Serve says; of what an opening has raised the last line."""
    if app is None:
        return "the application was deleted"
    said = app.deployments[REPLICAS].message if REPLICAS in app.deployments else ""
    return (said or app.message).strip().rpartition("\n")[2]
