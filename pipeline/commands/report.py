"""`penstock report TRACE -o out.html`."""

import argparse

from pipeline.outputs import check_writable
from pipeline.trace.perfetto import read_trace
from pipeline.trace.report import write_report
from pipeline.trace.summary import summarize


def report(options: argparse.Namespace) -> None:
    """Turn a trace into a page, and say in one line what it shows."""
    check_writable(options.out)
    recording = read_trace(options.trace)
    write_report(options.out, recording)
    print(f"{options.out}: {summarize(recording).headline}")
