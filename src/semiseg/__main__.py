"""`python -m semiseg`: what launchers of several processes call."""

from semiseg.cli import main

main()
