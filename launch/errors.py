"""Errors that the launcher prints in one line, without a traceback."""

from launch import exit_codes


class LaunchError(Exception):
    """The run cannot start or cannot continue.

    Args:
        message: one line that says what is wrong, what was received and what to do.
        code: the launcher's exit code.
    """

    def __init__(self, message: str, code: int = exit_codes.BAD_INPUT):
        super().__init__(message)
        self.code = code
