"""Certified accuracy against the radius of smoothed classifiers, beside what L2 attacks on the same votes leave.

python analysis/certified_accuracy.py STORE STUDY
"""

from mi_ray.figures.certified_accuracy import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
