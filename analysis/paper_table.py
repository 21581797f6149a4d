"""A table like the paper's Tables 2 and 3: a row for each setting of a study, a column for each attack.

python analysis/paper_table.py STORE STUDY
"""

from mi_ray.figures.paper_table import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
