"""Fig. 5: clean images beside adversarial ones that were crafted against a defense, with what is answered to them.

python analysis/fig5.py STORE STUDY
"""

from mi_ray.figures.fig5 import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
