"""How commands end: with one sentence for an error that a user can cause, and like Ctrl-C after a signal."""

import errno
import os
import signal
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from jaxtransfer.cli.console import logging_to_console, print_error
from jaxtransfer.errors import JaxTransferError, in_words

_NO_BACKEND = "Unable to initialize backend"  # how JAX's error for a wrong JAX_PLATFORMS begins


class _Ended(KeyboardInterrupt):
    """Ends the program like Ctrl-C, after another signal."""


class Commands(TyperGroup):
    """All commands; an error that a user can cause ends in one sentence instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            with logging_to_console(), warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: print_error(f"Warning: {message}")
                return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            print_error("Interrupted. Start the same command again to resume where it stopped.")
            number = interrupt.args[0] if isinstance(interrupt, _Ended) else signal.SIGINT
            raise typer.Exit(128 + number) from None
        except (JaxTransferError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            print_error(f"Error: {in_words(error)}")
        except RuntimeError as error:
            if not str(error).startswith(_NO_BACKEND):
                raise
            reason = " ".join(str(error).partition(" (set JAX_PLATFORMS")[0].split())
            platforms = os.environ.get("JAX_PLATFORMS", "")
            print_error(f"Error: JAX does not start with JAX_PLATFORMS={platforms!r}; unset it or correct it. {reason}")
        raise typer.Exit(2)


def end_on_signals() -> None:
    """Lets SIGTERM and SIGHUP end the program like Ctrl-C."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would disturb the end
    raise _Ended(number)
