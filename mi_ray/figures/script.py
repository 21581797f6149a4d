"""The command line of the scripts in analysis/."""

import argparse
from collections.abc import Callable

from mi_ray.store.blocks import Store


def script(make: Callable[[Store, str], list[str]]) -> None:
    """Draw one figure: `python analysis/NAME.py STORE STUDY`; prints the paths that were written.

    What cannot be drawn of this study, or is not there, is a line of its own and exit code 2.
    """
    parser = argparse.ArgumentParser(description=make.__doc__)
    parser.add_argument("store", help="results folder or URI")
    parser.add_argument("study", help="name of the study")
    given = parser.parse_args()
    try:
        paths = make(Store(given.store), given.study)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    for path in paths:
        print(f"{given.store}/{path}")
