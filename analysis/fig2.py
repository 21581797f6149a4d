"""Fig. 2: how mixup inference changes predictions on adversarial inputs, against λ, and what ideal linearity asks for.

python analysis/fig2.py STORE STUDY
"""

from mi_ray.figures.fig2 import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
