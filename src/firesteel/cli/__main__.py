"""`python -m firesteel.cli`."""

from firesteel.cli import main

main()
