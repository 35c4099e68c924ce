"""The one exception that people see: what is wrong, where, and what would work."""


class UserError(ValueError):
    """A mistake in the input that its author can mend.

    The message is one line that names the file or the key and says what would work. The command line prints it
    without a traceback and leaves with exit code 2.
    """
