"""Which differences between defenses are more than chance: paired tests on the same reported points.

python analysis/paired_tests.py STORE STUDY
"""

from mi_ray.figures.paired_tests import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
