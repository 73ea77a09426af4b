"""The errors Accord raises: one base and one child per boundary at which something can go wrong.

Messages follow one pattern: what came (value, file, row) — what was expected — what to do.
`AccordError` reaches the command line as one line on stderr; anything else is our own mistake and keeps its traceback.
"""


class AccordError(Exception):
    """Base of every error a user can cause or cure."""


class ConfigError(AccordError, ValueError):
    """A setting is unknown, unused, out of range or contradicts another."""


class DataError(AccordError, ValueError):
    """A file, row or column cannot be turned into groups."""


class PolicyError(AccordError, RuntimeError):
    """A model or tokenizer cannot be loaded, scored or sampled from."""


class TrainingError(AccordError, RuntimeError):
    """A run had to stop: a non-finite loss, a broken step-0 invariant, no memory left."""


class StoreError(AccordError, RuntimeError):
    """A run folder or checkpoint cannot be written or read."""


class FeedbackError(AccordError, RuntimeError):
    """A judge, verifier, sandbox or endpoint cannot be asked; nothing that was judged before is lost."""
