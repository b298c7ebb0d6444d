"""What can go wrong in a session, by type and by a code that clients can act on."""

from __future__ import annotations

CODES = {
    "unknown_input": "the model has no input of this name",
    "invalid_args": "the arguments do not fit the input's schema",
    "paused": "the session is paused and this input waits for resume",
    "queue_full": "inputs come faster than the model takes them",
    "too_large": "an upload or message is over its limit",
    "unknown_upload": "no upload of this id is held; upload first",
    "bad_upload": "the upload is damaged or of a kind that the input does not take",
    "timed_out": "the model took too long",
    "model_error": "the model failed on this input",
    "ended": "the session is over",
}
"""Codes of refused inputs; the message beside each says what to do."""


class LucidError(Exception):
    """Base of the runtime's own errors."""


class ManifestGenerationError(LucidError, ValueError):
    """A model declares something that no manifest can say."""


class OutputValidationError(LucidError, ValueError):
    """A model published a sample that its output does not declare."""


class InputError(LucidError, ValueError):
    """An input was refused: `code` is one of `CODES`, the message says what to do."""

    def __init__(self, code: str, message: str):
        if code not in CODES:
            raise KeyError(f"{code!r} is no code of an input error; known: {', '.join(CODES)}")
        super().__init__(message)
        self.code = code
