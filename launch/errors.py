"""What the launcher says in one line, without a traceback."""

from launch import exit_codes


class LaunchError(Exception):
    """A run that cannot start, or not go on.

    Args:
        message: one line: the rule, what was received, what to do.
        code: the launcher's exit code.
    """

    def __init__(self, message: str, code: int = exit_codes.BAD_INPUT):
        super().__init__(message)
        self.code = code
