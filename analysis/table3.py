"""The paper's Table 3 (CIFAR-100): our values with intervals and verdicts, and the paper's beside them.

python analysis/table3.py STORE STUDY
"""

from mi_ray.figures.script import script
from mi_ray.figures.table3 import make

if __name__ == "__main__":
    script(make)
