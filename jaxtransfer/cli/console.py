"""Output on the terminal: errors and log messages, tables, progress bars."""

import contextlib
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from jaxtransfer.errors import JaxTransferError

# Controls, invisible marks such as those that reverse the order of letters, bytes that are no text, and ends of lines.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_LEAST_COLUMN = 6  # characters of a column of a table, with its margin


def printable(text: str) -> str:
    """Writes characters that would steer the terminal, as names of files may hold them, as escapes."""
    return "".join(ascii(char)[1:-1] if unicodedata.category(char) in _HIDDEN else char for char in text)


def print_line(sentence: str) -> None:
    """Prints a sentence on stdout, on one line."""
    print(printable(sentence))


def print_error(sentence: str) -> None:
    """Prints a sentence on stderr, on one line."""
    print(printable(sentence), file=sys.stderr)


class _PlainConsole(Console):
    """Prints names as they are: square brackets and colons are not markup."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders the text of a cell or a title, in which line ends are meant."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


class ConsoleHandler(logging.Handler):
    """Prints log messages on stderr, in the first of several processes only."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a message."""
        from jaxtransfer.devices import is_first

        if is_first():
            print_error(record.getMessage())


@contextlib.contextmanager
def logging_to_console() -> Iterator[None]:
    """Prints the library's log messages once, however other packages have set up logging."""
    log, handler = logging.getLogger("jaxtransfer"), ConsoleHandler(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
        log.propagate = True


def print_table(table: Table) -> None:
    """Prints a table; names that do not fit are folded, never cut, since two of them could look the same."""
    console = _PlainConsole()
    for column in table.columns:
        column.overflow = "fold"
    # Narrower columns would vanish; a file or a pipe has no width.
    least = _LEAST_COLUMN * len(table.columns)
    console.print(table, width=max(console.width, least) if console.is_terminal else 10_000, crop=False)


@contextlib.contextmanager
def progress_bar(
    action: str = "", amount: ProgressColumn | None = None, *, shown: bool = True
) -> Iterator[Callable[[int, int, str], None]]:
    """Shows a progress bar on stderr.

    Args:
        action: The words before the name of the current item.
        amount: The column with the amount of work done; None: a count.
        shown: Whether there is a bar at all.

    Yields:
        A function of the work done, all work and the name of the current item; it moves the bar.
    """
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        amount or MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=_PlainConsole(stderr=True),
        transient=True,
        disable=not shown,
    )
    with bar:
        row = bar.add_task(action, total=None)
        yield lambda done, total, name: bar.update(
            row, completed=done, total=total, description=f"{action} {printable(name)}"
        )


@contextlib.contextmanager
def require_extra(extra: str, *packages: str) -> Iterator[None]:
    """Raises an error that names the extra to install where one of its packages cannot be imported.

    Raises:
        JaxTransferError: One of `packages` is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(packages):
            raise
        raise JaxTransferError(
            f'The package {error.name} is missing; install it with: pip install "jaxtransfer[{extra}]"'
        ) from error
