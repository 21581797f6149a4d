"""Fig. 3(b): adversarial against clean accuracy, a panel for each classifier, a curve for each defense.

python analysis/fig3b.py STORE STUDY
"""

from mi_ray.figures.fig3b import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
