"""How good each defense's whole curve is, with intervals: a row for each classifier, attack and defense.

python analysis/frontier_statistics.py STORE STUDY
"""

from mi_ray.figures.frontier_statistics import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
