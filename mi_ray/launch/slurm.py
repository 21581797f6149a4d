"""What is wrong with a Slurm script that starts Ray: a job has limits, serves its user alone and leaves nothing running."""

import re
import shlex
from collections.abc import Iterator

from mi_ray.launch.rules import STARTS, Complaint, authentication, error, ports_of, warning

SHORT = {"-t": "--time", "-N": "--nodes"}
NEEDED = {"--time": "a job without a limit holds its nodes", "--nodes": "Ray needs to know its nodes"}


def check_slurm(text: str) -> Iterator[Complaint]:
    """What is wrong with a batch script that starts Ray."""
    asked = _asked(text)
    for needed, why in NEEDED.items():
        if needed not in asked:
            yield error("#SBATCH", f"{needed} must be given: {why}; got {', '.join(asked) or 'nothing'}")
    commands = _commands(text)
    starts = {number: command for number, command in commands.items() if STARTS.search(command)}
    if not any("--head" in command for command in starts.values()):
        yield error("script", "a line with `ray start --head` must start the head; got none")
    for number, command in starts.items():
        before = "\n".join(earlier for at, earlier in commands.items() if at < number)
        yield from authentication(f"line {number}", command, before=before)
    for number, command in commands.items():
        yield from _harm(f"line {number}", command)
    if not any(re.match(r"\s*trap\s+(?!-\s).*\bEXIT\b", command) for command in commands.values()):
        yield error(
            "script", "`trap … EXIT` must end Ray's steps, else they hold the nodes until the time limit; got none"
        )


def _asked(text: str) -> list[str]:
    """The options that Slurm reads of a script, by their long names where rules know them: those before its first command."""
    found = list[str]()
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            said = line.removeprefix("#SBATCH")
            try:
                words = shlex.split(said, comments=True)
            except ValueError:  # A quote or a backslash that stands alone, which Slurm takes as it is.
                words = said.split()
            words = [word for word in words if word.startswith("-")]
            found += [word.partition("=")[0] if word.startswith("--") else word[:2] for word in words]
        elif line.strip() and not line.startswith("#"):
            break
    return [SHORT.get(option, option) for option in found]


def _commands(text: str) -> dict[int, str]:
    """Each line of a script that is no comment, by its number; lines that a backslash joins are one, by the first number."""
    found = {}
    for match in re.finditer(r"(?:.*\\\n)*.+", text):
        if not match[0].lstrip().startswith("#"):
            found[text.count("\n", 0, match.start()) + 1] = re.sub(r"\\\n\s*", " ", match[0])
    return found


def _harm(where: str, command: str) -> Iterator[Complaint]:
    """Complaints about a command that opens a port or a file to others, or that ends what other jobs run."""
    yield from ports_of(where, command)
    if re.search(r"\bray\s+stop\b", command):
        yield warning(where, "`ray stop` ends every Ray of this user on the node, other jobs' too; end the job's steps")
    if re.search(r"^\s*chmod\b.*\b(?:777|666|o\+[rwx]|a\+[rwx])", command):
        yield error(where, "what the job writes must be for its user alone (umask 077)")
