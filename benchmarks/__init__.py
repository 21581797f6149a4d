"""Speed as ratios: both sides in one run on one machine, the results' equality checked in the same run."""
