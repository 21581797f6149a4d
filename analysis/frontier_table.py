"""A table like the paper's Table 2: a row for each classifier and defense, a column for each attack.

python analysis/frontier_table.py STORE STUDY
"""

from mi_ray.figures.frontier_table import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
