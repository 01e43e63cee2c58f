"""``python -m fastpack``, for whom the command is not on the path."""

from fastpack.cli import main

main()
