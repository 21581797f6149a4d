"""Accuracy against ε: a column of panels for each classifier, a row for each attack, a curve with its band for each defense.

python analysis/epsilon_curve.py STORE STUDY
"""

from mi_ray.figures.epsilon_curve import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
