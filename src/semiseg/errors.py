"""The exceptions that people see: what is wrong, where, and what would work."""


class UserError(ValueError):
    """A mistake in the input that its author can mend.

    The message is one line that names the file or the key and says what would work. The command line prints it
    without a traceback and leaves with exit code 2.
    """


class UnreadableError(UserError):
    """A file that is missing or cannot be decoded, as opposed to one whose content does not fit."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved all it did; the message says how to go on.

    Attributes:
        signum: the signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
