"""Fig. 3(a): telling adversarial inputs from clean ones by how far mixup inference lowers F's own prediction.

python analysis/fig3a.py STORE STUDY
"""

from mi_ray.figures.common import script
from mi_ray.figures.fig3a import make

if __name__ == "__main__":
    script(make)
