"""The exception for mistakes of the user, and the sentences that report errors."""

import difflib
import errno
import os
import re
from collections.abc import Iterable


class JaxTransferError(ValueError):
    """Reports bad input in one sentence that names the file or argument and says what to do.

    The command line prints the sentence on stderr and ends with exit status 2.
    """


class NetworkError(JaxTransferError):
    """Reports that a network cannot be compared with others.

    Attributes:
        network: Its name.
    """

    def __init__(self, network: str, sentence: str) -> None:
        """Takes the name of the network, and the sentence, which names it too."""
        super().__init__(sentence)
        self.network = network


def unknown_name(
    kind: str, name: object, known: Iterable[str], *, where: str = "", at_most: int | None = None
) -> JaxTransferError:
    """Returns the error for a name that does not exist, which lists the names that do, the closest first.

    Args:
        kind: What the name should stand for, in the singular: "method", "network".
        name: The unknown name.
        known: The names that exist.
        where: Place that was searched, with its preposition: "in the zoo /data/zoo".
        at_most: Most names to list; None: all.

    Examples:
        >>> print(unknown_name("method", "salency", ["input_x_gradient", "saliency"]))
        There is no method 'salency'; there are: saliency, input_x_gradient.
        >>> print(unknown_name("network", "c", ["a", "b"], where="in the zoo nets", at_most=1))
        There is no network 'c' in the zoo nets; there are: a, and more.
    """
    known = list(known)
    closest = difflib.get_close_matches(str(name), known, n=1)
    names = [*closest, *(other for other in known if other not in closest)]
    listed = ", ".join(names[:at_most] + ["and more"] * (at_most is not None and len(names) > at_most))
    return JaxTransferError(f"There is no {kind} {name!r}{where and ' '}{where}; there are: {listed or 'none yet'}.")


def operating_system_error(error: BaseException | None, place: object) -> OSError | None:
    """Finds the error of the operating system behind an error of Orbax or TensorStore.

    Args:
        error: The error, with those that caused it.
        place: The file or directory that was in use, for the message.

    Returns:
        The error, such as "Permission denied"; None where there is none.
    """
    while error is not None:
        named = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(named[1]) if named else error.errno if isinstance(error, OSError) else None
        if number is not None:
            return OSError(number, os.strerror(number), str(place))
        error = error.__cause__ or error.__context__
    return None


def in_words(error: JaxTransferError | OSError) -> str:
    """Returns the sentence that reports an error to the user."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ENOSPC:
        file = f" ({error.filename})" if error.filename else ""
        return f"The disk is full{file}; free some space and run the same command again: finished work is kept."
    return f"{error.filename}: {error.strerror}." if error.filename and error.strerror else f"{error}."


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, as a sentence."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
