"""The one error that is the user's to mend: shown as a single line, without a traceback."""


class InputError(ValueError):
    """Something given by the user is wrong; the message names the file, row or key and says what to do."""
