"""``python -m skmrr.cli``."""

from skmrr.cli.commands import main

main()
