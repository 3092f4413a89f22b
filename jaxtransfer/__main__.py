"""`python -m jaxtransfer`."""

from jaxtransfer.cli import main

main()
