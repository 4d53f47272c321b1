"""`penstock report TRACE -o out.html`."""

import argparse

from pipeline.errors import ConfigError
from pipeline.system.written_files import check_writable
from pipeline.tools.trace.perfetto import read_trace
from pipeline.tools.trace.report import write_report
from pipeline.tools.trace.summary import summarize


def report(options: argparse.Namespace) -> None:
    """Turn a trace into a page, and say in one line what it shows."""
    check_writable(options.out)
    if options.out.exists() and options.trace.exists() and options.out.samefile(options.trace):
        raise ConfigError(f"--out: {options.out} is the trace; give the page another name")
    recording = read_trace(options.trace)
    write_report(options.out, recording)
    print(f"{options.out}: {summarize(recording).headline}")
