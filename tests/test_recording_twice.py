"""Recordings that meet: one inside another, and beside a trace of the user's own."""

from pathlib import Path

import pytest

from actors.core.trace import Trace
from pipeline import ConfigError, Model


async def test_a_recording_within_another_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async with Model.open() as model:
        async with model.recording() as trace:
            await model.generate([1], max_new_tokens=1)
            with pytest.raises(ConfigError, match="another one, or a report, is under way"):
                async with model.report(tmp_path / "inner.html"):
                    pass
            spans = len(trace.spans)
            assert spans
            await model.generate([1], max_new_tokens=1)
            assert len(trace.spans) > spans
        async with model.report(tmp_path / "later.html"):
            await model.generate([1], max_new_tokens=1)


async def test_a_trace_of_the_users_own_goes_on(tmp_path: Path) -> None:
    trace = Trace()
    async with Model.open(trace=trace) as model:
        await model.generate([1], max_new_tokens=1)
        first = trace.spans[0]
        async with model.report(tmp_path / "report.html"):
            await model.generate([1], max_new_tokens=1)
        assert trace.spans[0] == first
        spans = len(trace.spans)
        await model.generate([1], max_new_tokens=1)
        assert len(trace.spans) > spans


async def test_a_full_trace_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with Model.open(trace=Trace(capacity=50, recording=False)) as model, model.recording():
        await model.generate([1], max_new_tokens=2)
    assert "the trace is full" in caplog.text
