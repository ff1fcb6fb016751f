"""`python -m flex_inductor` is the same as `flex-inductor`, for a checkout that is not installed."""

from flex_inductor.cli import main

main(prog_name="flex-inductor")
