"""Many files: what to work on, an engine here or on Ray, results that survive a kill.

jobs = find_jobs(["recordings/"])
output = open_output(Path("out.jsonl"), None, made_by)
transcribe_jobs(output.pending(jobs), local_engine(transcriber, made_by, log), output, summary, ...)
"""

from __future__ import annotations

from runtime.batch.inputs import Job, find_jobs
from runtime.batch.journal import MadeBy
from runtime.batch.output import Output, open_output
from runtime.batch.run import Engine, Result, Summary, check_asked, local_engine, options_asked, transcribe_jobs

__all__ = [
    "Engine",
    "Job",
    "MadeBy",
    "Output",
    "Result",
    "Summary",
    "check_asked",
    "find_jobs",
    "local_engine",
    "open_output",
    "options_asked",
    "transcribe_jobs",
]
