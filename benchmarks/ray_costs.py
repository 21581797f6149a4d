"""What Ray itself costs the process that drives a study: python -m benchmarks.ray_costs prints it as JSON."""

import json
import resource
from typing import Any

from mi_ray.cluster.connect import prepare_environment


def costs(trials: int = 60, each: int = 5) -> dict[str, float]:
    """Seconds that a step of a trial takes of Tune's process, and that a task takes of the process that submits it."""
    import ray
    from ray import tune

    from mi_ray.cluster.connect import connect

    class Nothing(tune.Trainable):
        """Steps in which nothing is done."""

        def setup(self, config: dict[str, Any]) -> None:
            self.done = 0

        def step(self) -> dict[str, Any]:
            self.done += 1
            return {"done": self.done >= each}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.done = 0
            return True

    connect(None)
    try:
        settings = tune.TuneConfig(reuse_actors=True, num_samples=trials)
        began = used()
        tune.Tuner(Nothing, tune_config=settings, run_config=tune.RunConfig(verbose=0)).fit()
        tuned = (used() - began) / (trials * each)
        nothing = ray.remote(lambda: None)
        ray.get([nothing.remote() for _ in range(100)])
        began = used()
        left = [nothing.options(name=f"task {number}").remote() for number in range(2000)]
        while left:
            ended, left = ray.wait(left, num_returns=min(64, len(left)))
            ray.get(ended)
        return {"step_seconds": round(tuned, 5), "task_seconds": round((used() - began) / 2000, 6)}
    finally:
        ray.shutdown()


def used() -> float:
    """Seconds of processor time of this process until now."""
    about = resource.getrusage(resource.RUSAGE_SELF)
    return about.ru_utime + about.ru_stime


if __name__ == "__main__":
    prepare_environment(local=True)
    print(json.dumps(costs()))
