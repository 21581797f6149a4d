"""The paper's Table 2 (CIFAR-10): our values with intervals and verdicts, and the paper's beside them.

python analysis/table2.py STORE STUDY
"""

from mi_ray.figures.script import script
from mi_ray.figures.table2 import make

if __name__ == "__main__":
    script(make)
