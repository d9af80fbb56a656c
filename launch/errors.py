"""What the launcher says in one line, without a traceback."""


class LaunchError(Exception):
    """A run that cannot start, or not go on.

    Args:
        message: one line: the rule, what was received, what to do.
        code: the launcher's exit code; 2 for bad input.
    """

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code
