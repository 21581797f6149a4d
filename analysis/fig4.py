"""Fig. 4: accuracy left by adaptive attacks, against the samples that they average over at each step (N_A).

python analysis/fig4.py STORE STUDY
"""

from mi_ray.figures.fig4 import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
