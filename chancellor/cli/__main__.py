"""Run the command line with `python -m chancellor.cli`."""

from chancellor.cli.app import main

main()
