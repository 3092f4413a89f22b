"""The command line."""

from jaxtransfer.cli.app import main as main
