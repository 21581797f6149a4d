"""The command line of the scripts in analysis/."""

import argparse
from collections.abc import Callable

from mi_ray.store.blocks import Store


def script(make: Callable[[Store, str], list[str]]) -> None:
    """Draw one figure: `python analysis/NAME.py STORE STUDY`; prints the paths that were written."""
    parser = argparse.ArgumentParser(description=make.__doc__)
    parser.add_argument("store", help="results folder or URI")
    parser.add_argument("study", help="name of the study")
    given = parser.parse_args()
    for path in make(Store(given.store), given.study):
        print(f"{given.store}/{path}")
