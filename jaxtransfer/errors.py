"""The one exception a user can cause, and what the system's own come to in words."""

import errno


class JaxTransferError(ValueError):
    """Bad input, said in one sentence that names the file or argument and what to do about it.

    The command line prints the sentence on stderr and ends with exit status 2.
    """


def in_words(error: JaxTransferError | OSError) -> str:
    """What an error says to the user."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ENOSPC:
        where = f" ({error.filename})" if error.filename else ""
        return f"The disk is full{where}; make room and start the same command again, what is finished is kept."
    return f"{error.filename}: {error.strerror}." if error.filename and error.strerror else f"{error}."
