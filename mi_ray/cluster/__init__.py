"""The only folder that imports Ray: training, attack blocks, defense trials, and a study from end to end."""

from typing import Any, Literal


def run_study(
    study: Any,
    store: Any,
    address: str | None,
    console: Any,
    until: Literal["train", "attack", "sweep"] = "sweep",
) -> Any:
    """Do all that is missing of a study (see `cluster.study.Runner`), on a cluster or on a local Ray (address None).

    Ray reads its environment when it is first imported, so that is set up here, before anything imports it.
    """
    from mi_ray.cluster.connect import check_address, prepare_environment

    check_address(address)
    prepare_environment(local=address is None)
    from mi_ray.cluster.study import Runner

    return Runner(study, store, address, console).run(until)
