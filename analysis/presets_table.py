"""What each choice of options does to the numbers: a study's cells under every variant, against the study itself.

python analysis/presets_table.py STORE STUDY
"""

from mi_ray.figures.presets_table import make
from mi_ray.figures.script import script

if __name__ == "__main__":
    script(make)
