"""The one exception that a user can cause, and the sentences that errors are reported in."""

import difflib
import errno
from collections.abc import Iterable


class JaxTransferError(ValueError):
    """Bad input, said in one sentence that names the file or argument and what to do about it.

    The command line prints the sentence on stderr and ends with exit status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> JaxTransferError:
    """Returns the error for a name that does not exist, with the names that do, the closest one first.

    Args:
        kind: What is named, in the singular: "method", "network".
        name: The name that was given.
        known: The names there are.

    >>> print(unknown_name("method", "salency", ["input_x_gradient", "saliency"]))
    There is no method 'salency'; there are: saliency, input_x_gradient.
    """
    known = list(known)
    closest = difflib.get_close_matches(name, known, n=1)
    names = ", ".join([*closest, *(other for other in known if other not in closest)])
    return JaxTransferError(f"There is no {kind} {name!r}; there are: {names or 'none yet'}.")


def in_words(error: JaxTransferError | OSError) -> str:
    """Returns the sentence that reports an error to the user."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ENOSPC:
        where = f" ({error.filename})" if error.filename else ""
        return f"The disk is full{where}; make room and start the same command again, what is finished is kept."
    return f"{error.filename}: {error.strerror}." if error.filename and error.strerror else f"{error}."
