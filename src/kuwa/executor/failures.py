"""Why an executor cannot serve at all. `run` makes exit codes of these."""

from __future__ import annotations


class SetupFailed(Exception):
    """`setup()` or a hook could not make the executor ready; the message says why and what to do. Exit code 4."""
