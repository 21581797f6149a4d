"""TODO."""

import re
from collections.abc import Iterator

from mi_ray.launch.rules import STARTS, Finding, authentication, error, ports_of, warning


def check_slurm(text: str) -> Iterator[Finding]:
    """What is wrong with a batch script that starts Ray."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [(n, line) for n, line in enumerate(joined.splitlines(), 1) if not line.lstrip().startswith("#")]
    asked = re.findall(r"^#SBATCH\s+(--[\w-]+)", text, re.MULTILINE)
    for needed, why in (
        ("--time", "a job without a limit holds its nodes"),
        ("--nodes", "Ray needs to know its nodes"),
    ):
        if needed not in asked:
            yield error("#SBATCH", f"{needed} must be given: {why}; got {', '.join(asked) or 'nothing'}")
    starts = [(number, line) for number, line in lines if STARTS.search(line)]
    if not any("--head" in line for _, line in starts):
        yield error("script", "a line with `ray start --head` must start the head; got none")
    for number, line in starts:
        before = "\n".join(earlier for at, earlier in lines if at < number)
        yield from authentication(f"line {number}", line, before=before)
    for number, line in lines:
        yield from ports_of(f"line {number}", line)
        if re.search(r"\bray\s+stop\b", line):
            yield warning(
                f"line {number}",
                "`ray stop` ends every Ray of this user on the node, other jobs' too; end the job's steps",
            )
        if re.search(r"^\s*chmod\b.*\b(?:777|666|o\+[rwx]|a\+[rwx])", line):
            yield error(f"line {number}", "what the job writes must be for its user alone (umask 077)")
    if not any(re.match(r"\s*trap\s+(?!-\s).*\bEXIT\b", line) for _, line in lines):
        yield error(
            "script", "`trap … EXIT` must end Ray's steps, else they hold the nodes until the time limit; got none"
        )
