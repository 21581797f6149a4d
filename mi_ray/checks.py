"""Whether a cell's number can be trusted: checks with a criterion each, stored as passed, failed or not run.

After Carlini et al. (2019), *On Evaluating Adversarial Robustness*. Today one is computed with every cell; the others
are named in every row as not run, so that nobody takes their absence for their success.
"""

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

State = Literal["passed", "failed", "not run"]
ROUNDING = 1e-6  # of float32, at x + epsilon
NOT_RUN = (
    "epsilon_zero", "more_steps", "more_restarts", "more_eot", "monotone_in_epsilon", "large_epsilon",
    "black_box_not_stronger", "oblivious_not_stronger", "random_noise_not_stronger", "gradients_not_zero",
    "logits_not_probabilities", "randomness_declared",
)  # fmt: skip


def cell_checks(rows: pa.Table) -> dict[str, State]:
    """The checks of one cell. rows: its records.

    in_ball: the largest |delta| of its images is at most epsilon (+1e-6 of rounding).
    """
    largest, epsilon = pc.max(rows["linf"]).as_py(), rows["epsilon"][0].as_py()
    in_ball: State = "passed" if largest <= epsilon + ROUNDING else "failed"
    return {"in_ball": in_ball, **dict.fromkeys(NOT_RUN, "not run")}
