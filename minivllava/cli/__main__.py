"""`python -m minivllava.cli`."""

from minivllava.cli import main

main()
