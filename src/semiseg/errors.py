"""The exceptions that users see. Their messages say what is wrong, where, and what would work."""


class UserError(ValueError):
    """A mistake in the input that the user can correct.

    The message is one line that names the file or the key and says what would work. The command line prints it without
    a traceback and exits with code 2.
    """


class UnreadableError(UserError):
    """A file is missing, cannot be decoded or is too large. If only its content does not fit, it is a UserError."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, SIGTERM, SIGHUP) and has saved its work. The message says how to resume it.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
