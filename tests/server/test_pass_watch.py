"""A pass is stuck where nothing moves for long: on a cluster, which tells of whole passes alone, for longer."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.api import Model
from pipeline.server.pass_watch import PassWatch


@pytest.mark.parametrize(("cluster", "seconds"), [(None, 60), ("auto", 600)])
def test_a_pass_is_stuck_where_nothing_has_moved_for_long(cluster: str | None, seconds: int) -> None:
    said: dict[str, Any] = {"passes": 3, "bytes_read": 9, "bytes_uploaded": 0, "busy_seconds": {"a": 1.0}}
    channel, admission = SimpleNamespace(sent=4), SimpleNamespace(in_pass=True)
    runtime = SimpleNamespace(admission=admission, settings=SimpleNamespace(cluster=cluster), awaited=lambda: "a disk")
    statistics = lambda: SimpleNamespace(**said, channels={"a": channel})  # noqa: E731
    watch = PassWatch(cast("Model", SimpleNamespace(runtime=runtime, statistics=statistics)))
    now = 100.0
    for name, value in (("passes", 4), ("bytes_read", 10), ("bytes_uploaded", 1), ("busy_seconds", {"a": 2.0})):
        said[name] = value
        assert watch.look(now) is None
        assert watch.look(now + seconds - 1) is None
        now += seconds
        assert f"computed for {seconds} s: a disk" in (watch.look(now) or "")
    channel.sent = 5
    assert watch.look(now) is None
    admission.in_pass = False
    assert watch.look(now + seconds) is None, "no pass is under way"
    admission.in_pass = True
    assert watch.look(now + seconds) is None, "this pass has just begun"
