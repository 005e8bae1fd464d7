"""`python -m perturbdiff` is the command line."""

from perturbdiff.cli import main

main()
