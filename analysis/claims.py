"""Claims, each decided from stored rows: it holds, it does not hold, or it is undecided.

python analysis/claims.py STORE CLAIMS.yaml FOLDER
"""

import argparse

from mi_ray.figures.claims import decide

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="results folder or URI")
    parser.add_argument("claims", help="the file of claims")
    parser.add_argument("folder", help="where claims.md and claims.csv go")
    given = parser.parse_args()
    try:
        paths = decide(given.store, given.claims, given.folder)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    for path in paths:
        print(path)
