"""The one exception that means: the user has to change something."""


class UserError(Exception):
    """A user's mistake or a missing file, reported in one line that names the field, file or shape.

    The commands print the line and end with exit status 2; library callers catch it like any
    other exception.
    """
