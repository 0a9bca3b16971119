"""`python -m mainstem`."""

from mainstem.cli import main

main()
