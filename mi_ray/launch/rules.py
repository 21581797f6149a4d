"""Rules for every kind of file that starts a cluster: no secret, nothing open to the world, no placeholder left.

Also how such a file is read: what is wrong with it is a `Complaint`, and its parts are looked up without trusting its form.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mi_ray.parameters import unknown

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Complaint:
    """One thing that is wrong with a cluster file (error) or that a person should look at (warning)."""

    level: Literal["error", "warning"]
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.text}"


def error(where: str, text: str) -> Complaint:
    """A complaint that makes the file unfit for use."""
    return Complaint("error", where, text)


def warning(where: str, text: str) -> Complaint:
    """A complaint that leaves the file usable, but that a person should look at."""
    return Complaint("warning", where, text)


def mapping(value: object) -> Mapping[str, object]:
    """The value where it is a mapping, and an empty mapping where it is anything else or was left out."""
    return value if isinstance(value, Mapping) else {}


def entries(value: object) -> Sequence[object]:
    """The value where it is a list, and an empty list where it is anything else or was left out."""
    return value if isinstance(value, list) else []


def scalars(node: object, where: str = "") -> Iterator[tuple[str, object]]:
    """(dotted path, value) of everything in a parsed file that is neither a mapping nor a list."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from scalars(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from scalars(value, f"{where}[{index}]")
    else:
        yield where, node


def found_at(node: object, path: str, where: str = "") -> Iterator[tuple[str, object]]:
    """(dotted path, value) of each place in a parsed file that a path such as `nodes.*.config` leads to.

    A * stands for every key of a mapping and for every entry of a list. A path that leads nowhere yields nothing.
    """
    step, _, rest = path.partition(".")
    inner: dict[str, object] = {}
    if isinstance(node, Mapping):
        keys = list(node) if step == "*" else [step] if step in node else []
        inner = {f"{where}.{key}" if where else str(key): node[key] for key in keys}
    elif isinstance(node, list) and step == "*":
        inner = {f"{where}[{index}]": value for index, value in enumerate(node)}
    for place, value in inner.items():
        if rest:
            yield from found_at(value, rest, place)
        else:
            yield place, value


Form = Literal["mapping", "list"]
PYTHON_TYPE: dict[Form, type] = {"mapping": Mapping, "list": list}


def misshapen(document: object, forms: Mapping[str, Form]) -> list[Complaint]:
    """Errors for what stands at one of the paths and is not the mapping or the list that it must be.

    A key whose value is left empty counts as left out; an empty entry of a mapping or a list does not.
    """
    return [
        error(where, f"must be a {form}; got {value!r}")
        for path, form in forms.items()
        for where, value in found_at(document, path)
        if not isinstance(value, PYTHON_TYPE[form]) and (value is not None or path.endswith("*"))
    ]


def unknown_keys(where: str, found: Iterable[object], known: Sequence[str]) -> Iterator[Complaint]:
    """An error for each key that nobody reads, with the key that was probably meant."""
    for key in found:
        if key not in known:
            yield error(where, str(unknown("key", key, sorted(known))))


SECRETS = {
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "an AWS secret key": re.compile(r"(?i)aws_?secret_?access_?key[\"']?\s*[:=]\s*[\"']?([A-Za-z0-9/+]{16,}=*)"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a GitHub, GitLab, Hugging Face or Slack token": re.compile(
        r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|xox[abprs]-[\w-]{10,})"
    ),
    "a storage account's key": re.compile(r"AccountKey=[A-Za-z0-9/+]{16,}=*"),
    "Ray's token": re.compile(r"RAY_AUTH_TOKEN[\"']?\s*[:=]\s*[\"']?([A-Za-z0-9][\w./+-]{7,})"),
    "a password": re.compile(
        r"(?i)(?:--redis-password[=\s]\s*|(?:password|passwd)[\"']?\s*[:=]\s*)[\"']?([^\s\"'$<{}][^\s\"'{}]{3,})"
    ),
}
TOKEN = re.compile(r"[0-9a-f]{64}")


def secrets_in(text: str) -> Iterator[Complaint]:
    """An error for each line that holds what looks like a secret, in a comment too; it repeats the first four letters only."""
    for number, line in enumerate(text.splitlines(), 1):
        for what, pattern in {**SECRETS, "a token of 64 hexadecimal digits": TOKEN}.items():
            found = pattern.search(line)
            if found:
                shown = (found[found.lastindex or 0])[:4]
                yield error(
                    f"line {number}",
                    f"a cluster file must hold no secret; this looks like {what} ({shown}…). Take "
                    "it from the environment, a role, or a file outside the project of mode 0600",
                )
                break


# The fewest bits that the prefix of an allowed network may have.
PRIVATE_BITS = 8  # The widest private network is 10.0.0.0/8.
PUBLIC_BITS = 24  # A network of 256 public addresses can still belong to one owner; IPv6 needs twice the bits.
NETWORK = re.compile(r"[0-9A-Fa-f:.]*[.:][0-9A-Fa-f:.]*/\d{1,3}")


def open_to_the_world(document: object, *, below: str = "") -> Iterator[Complaint]:
    """An error for each network of addresses in the document that is wider than one owner's.

    document: a parsed file or a part of one; below: the dotted path of that part.
    """
    for where, value in scalars(document, below):
        for text in NETWORK.findall(value) if isinstance(value, str) else ():
            try:
                network = ipaddress.ip_network(text, strict=False)
            except ValueError:
                continue
            public = PUBLIC_BITS if network.version == 4 else 2 * PUBLIC_BITS
            least = PRIVATE_BITS if network.is_private else public
            if network.prefixlen < least:
                yield error(
                    where,
                    f"nothing may be open to the world; got {text}. Allowed: your own address (such as "
                    f"198.51.100.7/32), a private network, or a public one of at least {least} bits",
                )


UNFILLED = {
    "an identifier made up for the example": re.compile(r"\b(?:ami|sg|subnet|vpc)-0123456789abcdef0\b"),
    "an address kept for documentation": re.compile(r"\b(?:192\.0\.2|198\.51\.100|203\.0\.113)\.\d{1,3}\b"),
    "an account made up for the example": re.compile(r"\b123456789012\b"),
    "a domain kept for documentation": re.compile(r"\bexample\.(?:com|org|net)\b"),
    "a bucket without a name": re.compile(r"\b(?:s3|gs)://BUCKET\b"),
}


def unfilled(text: str) -> Iterator[Complaint]:
    """A warning for each line, comments left out, that still holds a placeholder from the shipped example."""
    for number, line in enumerate(text.splitlines(), 1):
        code = "" if line.lstrip().startswith("#") else line.partition(" #")[0]
        for what, pattern in UNFILLED.items():
            found = pattern.search(code)
            if found:
                yield warning(f"line {number}", f"a place marked <- must get your own value; {found[0]} is {what}")


def option(command: str, name: str) -> str | None:
    """The value that a command gives to an option, as --name=value or --name value, or None; Ray obeys the last of several."""
    found = re.findall(rf"{re.escape(name)}(?:=|\s+)[\"']?([^\s\"';&|]+)", command)
    return found[-1] if found else None


STARTS = re.compile(r"\bray(?:[\"']?)\s+start\b")
SERVES = re.compile(r"(?<!\[)\bray\.util\.client\.server\b")


def ports_of(where: str, command: str, *, fenced: bool = False) -> Iterator[Complaint]:
    """Errors for a command that puts the dashboard or Ray Client where other machines reach it.

    fenced: whether the file itself keeps others away, by a network policy, so that the dashboard may listen on all
    interfaces.
    """
    host = option(command, "--dashboard-host")
    if host is not None and host not in LOOPBACK and not fenced:
        yield error(
            where,
            f"the dashboard runs jobs for whoever reaches it, so --dashboard-host must be {LOOPBACK[0]} "
            f"(`ray dashboard FILE` forwards it over SSH); got {host}",
        )
    if SERVES.search(command) and "pkill" not in command:
        served = option(command, "--host")
        if served not in LOOPBACK:
            yield error(
                where,
                f"Ray Client's server must listen on {LOOPBACK[0]}; got --host "
                f"{served or 'left out, which means all interfaces'}",
            )


def authentication(where: str, command: str, *, before: str = "") -> Iterator[Complaint]:
    """An error for a `ray start` that runs without Ray's token authentication.

    before: the commands that the same shell ran earlier, which may have exported or unset RAY_AUTH_MODE. What stands before
    another command sets it for that one alone.
    """
    exported, own = _after(before, None, None)
    for statement in _statements(command):
        said = _AUTH_MODE.findall(statement)
        mode = said[-1] if said else exported
        if STARTS.search(statement) and mode != "token":
            yield error(
                where,
                "`ray start` must run with RAY_AUTH_MODE=token, else whoever reaches its ports runs code as this "
                f"user; got {mode or 'no RAY_AUTH_MODE'}",
            )
            return
        exported, own = _after(statement, exported, own)


_AUTH_MODE = re.compile(r"RAY_AUTH_MODE[\"']?[:=][ \t]*[\"']?(\w*)")
_ASSIGNED = re.compile(r"\s*(?:\w+=(?:\"[^\"]*\"|'[^']*'|[^\s\"']*)\s*)+")


def _statements(commands: str) -> list[str]:
    return re.split(r"[;&|\n]+", commands)


def _after(commands: str, exported: str | None, own: str | None) -> tuple[str | None, str | None]:
    """(RAY_AUTH_MODE as programs see it, as the shell itself has it) after commands; None where it is not set."""
    for statement in _statements(commands):
        said = _AUTH_MODE.findall(statement)
        if re.search(r"\bunset\b.*RAY_AUTH_MODE", statement):
            exported = own = None
        elif re.search(r"(?:\bexport|-x)\b.*RAY_AUTH_MODE", statement):
            exported = own = said[-1] if said else own
        elif said and _ASSIGNED.fullmatch(statement):
            exported, own = None if exported is None else said[-1], said[-1]
    return exported, own
