"""Kills and other faults at seeded random moments, by the thousand, in many small studies: the rows must stay the same.

    python tests/cluster/chaos.py --kills 1000 --seed 0 --folder chaos

Small studies (helpers.commands.TINY, with a training; one with two of them; a larger one without) are computed one after
another by the real command, on one cluster of several nodes on this machine, into a disk of its own or a bucket of an S3
server on loopback.
At random moments one of the faults of helpers/chaos.py happens. A command that was ended is started again until it ends by itself
with exit code 0. Then its rows must be those of an undisturbed run, bit for bit; nothing may have been computed twice or be
left over, and every exit code must be one that the faults explain. It stops at the first that is not so, with exit code 1.

The folder holds how far it is: the same command goes on, and a table of faults is written there after every study.
"""

import argparse
import os
import signal
import time
from pathlib import Path

CLOCK = """
import os, time

_now, _now_ns = time.time, time.time_ns


def _ahead():
    try:
        with open(os.environ["MI_RAY_CHAOS_CLOCK"]) as file:
            return int(file.read() or 0)
    except (OSError, KeyError, ValueError):
        return 0


time.time = lambda: _now() + _ahead()
time.time_ns = lambda: _now_ns() + _ahead() * 10**9
"""
ROOT = Path(__file__).parents[2]
MARK = "<!-- table of make chaos -->"


def main() -> None:
    """Studies until there were as many faults as wanted, or the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=100, help="faults in all, with those of earlier runs of the folder"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=3.0, help="no faults after so long, of this run alone")
    parser.add_argument("--folder", type=Path, default=Path("chaos"), help="where it goes on; made if it is not there")
    parser.add_argument("--pause", type=float, nargs=2, default=(1.0, 5.0), help="seconds between faults, from and to")
    parser.add_argument(
        "--publish", action="store_true", help="write the folder's table into docs/faults.md, and do no more"
    )
    given = parser.parse_args()
    place = given.folder.resolve()
    if given.publish:
        publish(place)
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has started it in the background
        signal.signal(number, signal.default_int_handler)
    place.mkdir(parents=True, exist_ok=True)
    # Every Python process that is started from here on, Ray's workers too, reads its clock through the file.
    (place / "clock").mkdir(exist_ok=True)
    (place / "clock/sitecustomize.py").write_text(CLOCK)
    os.environ["MI_RAY_CHAOS_CLOCK"] = str(place / "clock/ahead")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(place / "clock"), os.environ.get("PYTHONPATH", "")])
    from helpers.chaos import Chaos

    with Chaos(place, given.seed, tuple(given.pause)) as chaos:
        chaos.run(given.kills, time.monotonic() + 3600 * given.hours)


def publish(place: Path) -> None:
    """Put the table into the page that shows it."""
    page = ROOT / "docs/faults.md"
    before, _, after = page.read_text().partition(MARK)
    _, _, after = after.partition(MARK)
    page.write_text(f"{before}{MARK}\n{(place / 'table.md').read_text()}{MARK}{after}")


if __name__ == "__main__":
    main()
