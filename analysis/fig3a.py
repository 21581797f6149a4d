"""Fig. 3(a): telling adversarial inputs from clean ones by how far mixup inference lowers F's own prediction.

python analysis/fig3a.py STORE STUDY
"""

from mi_ray.figures.fig3a import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
