"""Programs nobody trusts, run where they can do no harm: what to run, within which limits, and how it ended."""

from accord.feedback.sandbox.bubblewrap import BubblewrapSandbox
from accord.feedback.sandbox.local import UnsafeLocalSandbox
from accord.feedback.sandbox.opening import find_sandbox, run_many
from accord.feedback.sandbox.program import Ended, Limits, Program, ProgramOutcome, RunningProgram, Sandbox

__all__ = [
    "BubblewrapSandbox",
    "Ended",
    "Limits",
    "Program",
    "ProgramOutcome",
    "RunningProgram",
    "Sandbox",
    "UnsafeLocalSandbox",
    "find_sandbox",
    "run_many",
]
