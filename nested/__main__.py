"""`python -m nested` is `nested`."""

from nested.cli import main

main()
