"""What Serve is told of the deployments, and what the command makes of what Serve tells, without a cluster."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve")
from ray.serve.schema import ApplicationStatus

from pipeline.cli import main
from pipeline.errors import ClosedError, ConfigError, ResourceError
from pipeline.replicas import replica_process
from pipeline.replicas.application import app
from pipeline.replicas.replica_process import NAME, _serve, _Signals, _state, _watch
from pipeline.replicas.share import Machine


def test_replicas_are_handed_what_they_can_share_and_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.replicas.application._machines", lambda: [Machine(cpus=2, gpus=0)])
    settings = {"device": "cpu", "host_memory": "1GB", "max_requests": 3, "max_waiting": 0}
    args = {"model": "bundled", "settings": settings, "drain_seconds": 7.0, "api_keys": ["mine"]}
    gate = app({**args, "replicas": "auto"})._bound_deployment
    replica = gate.init_args[0]._bound_deployment
    assert gate.init_args[1] is True
    assert (gate.name, replica.name) == ("Gate", "Replica")
    assert (replica.max_ongoing_requests, replica.max_queued_requests) == (6, 1)
    assert replica._deployment_config.autoscaling_config.target_ongoing_requests == 3
    assert {one._deployment_config.graceful_shutdown_timeout_s for one in (gate, replica)} == {7.0}
    assert app({**args, "replicas": 2})._bound_deployment.init_args[0]._bound_deployment.num_replicas == 2


def test_signals_are_told_apart_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(replica_process.serve, "status", lambda: pytest.fail("it was told to end"))
    with _Signals() as told:
        signal.raise_signal(signal.SIGTERM)
        assert (told.first.is_set(), told.again.is_set()) == (True, False)
        _watch(told)
        signal.raise_signal(signal.SIGINT)
        assert (told.again.is_set(), told.number) == (True, signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_has_ended_is_told_with_its_cause() -> None:
    said = (
        "The deployment failed to start 3 times in a row. Error:\nTraceback:\npipeline.errors.ConfigError: too little"
    )
    for status, message in (
        (SimpleNamespace(applications={}), "the application was deleted"),
        (told_by(ApplicationStatus.DEPLOY_FAILED, said), "ended the replicas: pipeline.errors.ConfigError: too little"),
        (told_by(ApplicationStatus.DEPLOY_FAILED, ""), "ended the replicas: as Serve says"),
    ):
        with pytest.raises(ClosedError, match=message):
            _state(status)
    assert _state(told_by(ApplicationStatus.RUNNING, "")) == "replicas: 2 running; the application is running"


def told_by(status: ApplicationStatus, message: str) -> Any:
    replicas = SimpleNamespace(replica_states={"RUNNING": 2}, message=message)
    return SimpleNamespace(
        applications={NAME: SimpleNamespace(status=status, message="as Serve says", deployments={"Replica": replicas})}
    )


def late(**options: Any) -> None:
    raise Exception("the node timed out during startup")  # as Ray does, by this class


def test_what_can_never_work_is_refused_before_serve_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = SimpleNamespace(proxies={"node": "HEALTHY"}, applications={"other": None})
    monkeypatch.setattr(replica_process.serve, "status", lambda: running)
    monkeypatch.setattr(replica_process.serve, "start", lambda **options: pytest.fail("it runs already"))
    with pytest.raises(ConfigError, match="Serve runs on this cluster already, with other"), _serve(None, _Signals()):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(ResourceError, match=r"no cluster of Ray can be had: .*RAY_ADDRESS"), replica_process._cluster():
        pass
    monkeypatch.setattr(replica_process.ray, "init", late)
    with pytest.raises(ResourceError, match=r"no cluster of Ray can be had: the node"), replica_process._cluster():
        pass
    for arguments, message in (
        (["--replicas", "none"], "replicas: need a number from 1 to 4096, or 'auto', have 'none'"),
        (["--replica-cpus", "2"], "--replica-cpus: says what replicas take, and --replicas is not said"),
    ):
        assert main(["serve", "bundled", *arguments]) == 1
        assert message in capsys.readouterr().err
