"""Transcribe many files in this process or on Ray, with results that survive a kill.

jobs = find_jobs(["recordings/"])
output = open_output(Path("out.jsonl"), None, settings)
transcribe_jobs(output.pending(jobs), local_engine(transcriber, settings, log), output, summary, ...)
"""

from __future__ import annotations

from runtime.batch.inputs import Job, find_jobs
from runtime.batch.journal import BatchSettings
from runtime.batch.output import Output, open_output
from runtime.batch.run import Engine, Result, Summary, check_options, local_engine, requested_options, transcribe_jobs

__all__ = [
    "BatchSettings",
    "Engine",
    "Job",
    "Output",
    "Result",
    "Summary",
    "check_options",
    "find_jobs",
    "local_engine",
    "open_output",
    "requested_options",
    "transcribe_jobs",
]
