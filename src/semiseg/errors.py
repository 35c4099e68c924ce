"""The exceptions that users see. Their messages say what is wrong, where, and what would work."""

from collections.abc import Sequence


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


def listed(parts: Sequence[str], most: int, separator: str = ", ") -> str:
    """Joins the first parts of a message, and says how many more there are.

    Args:
        parts: all parts.
        most: number of those that are written.
        separator: between two parts.

    Example:
        >>> listed(["a", "b", "c"], 2), listed(["a.png: no image", "b.png: no image"], 1, "; ")
        ('a, b and 1 more', 'a.png: no image; and 1 more')
    """
    left = len(parts) - most
    return separator.join(parts[:most]) + (f"{separator.rstrip(', ')} and {left} more" if left > 0 else "")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
