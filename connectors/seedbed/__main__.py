"""`python -m seedbed`: the command line."""

from seedbed.cli import main

main()
