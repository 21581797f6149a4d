"""What every cluster file is held to, whatever starts it: no secret, nothing open to the world, no place left unfilled."""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from mi_ray.parameters import unknown

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a cluster file (error) or that a person should look at (warning)."""

    level: Literal["error", "warning"]
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.text}"


def error(where: str, text: str) -> Finding:
    """A finding that makes the file unfit for use."""
    return Finding("error", where, text)


def warning(where: str, text: str) -> Finding:
    """A finding that a person should look at."""
    return Finding("warning", where, text)


def scalars(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a parsed file that is no mapping and no list."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from scalars(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from scalars(value, f"{where}[{index}]")
    else:
        yield where, node


def unknown_keys(where: str, found: Iterable[Any], known: Sequence[str]) -> Iterator[Finding]:
    """An error for each key that nobody reads, with the likely typo."""
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
        r"(?i)(?:--redis-password|password|passwd)[\"']?(?:\s*[:=]\s*|\s+)[\"']?([^\s\"'$<{}][^\s\"'{}]{3,})"
    ),
}
TOKEN = re.compile(r"[0-9a-f]{64}")


def secrets_in(text: str) -> Iterator[Finding]:
    """An error for each line, comments too, that holds what looks like a secret. Only its first letters are repeated."""
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


WIDEST = 8  # bits of a network's prefix: no private network is wider than 10.0.0.0/8
PUBLIC = 24  # and a network of public addresses is somebody's own from here on
NETWORK = re.compile(r"[0-9A-Fa-f:.]*[.:][0-9A-Fa-f:.]*/\d{1,3}")


def open_to_the_world(document: Any, *, below: str = "") -> Iterator[Finding]:
    """An error for each network of addresses in the document that is wider than any private one."""
    for where, value in scalars(document, below):
        for text in NETWORK.findall(value) if isinstance(value, str) else ():
            try:
                network = ipaddress.ip_network(text, strict=False)
            except ValueError:
                continue
            least = WIDEST if network.is_private else PUBLIC if network.version == 4 else 2 * PUBLIC
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


def unfilled(text: str) -> Iterator[Finding]:
    """A warning for each line, comments aside, that still holds a value which only stands for yours."""
    for number, line in enumerate(text.splitlines(), 1):
        code = "" if line.lstrip().startswith("#") else line.partition(" #")[0]
        for what, pattern in UNFILLED.items():
            found = pattern.search(code)
            if found:
                yield warning(f"line {number}", f"a place marked <- must get your own value; {found[0]} is {what}")


def option(command: str, name: str) -> str | None:
    """The value of --name=value or --name value in a command, the last one as Ray takes it; None when it is not there."""
    found = re.findall(rf"{re.escape(name)}(?:=|\s+)[\"']?([^\s\"';&|]+)", command)
    return found[-1] if found else None


STARTS = re.compile(r"\bray(?:[\"']?)\s+start\b")
SERVES = re.compile(r"(?<!\[)\bray\.util\.client\.server\b")


def ports_of(where: str, command: str, *, fenced: bool = False) -> Iterator[Finding]:
    """Errors for a command that puts the dashboard or Ray Client where other machines reach it.

    fenced: the file itself keeps others away (a network policy), so that the dashboard may listen on all interfaces.
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


def authentication(where: str, command: str, *, before: str = "") -> Iterator[Finding]:
    """An error for a `ray start` without token authentication; before: what the same shell ran earlier."""
    said = re.findall(r"RAY_AUTH_MODE[\"']?[:=][ \t]*[\"']?(\w*)|unset\b[^;&|\n]*RAY_AUTH_MODE", f"{before}\n{command}")
    if said[-1:] != ["token"]:
        yield error(
            where,
            "`ray start` must run with RAY_AUTH_MODE=token, else whoever reaches its ports runs code as this "
            f"user; got {(said[-1] if said else '') or 'no RAY_AUTH_MODE'}",
        )


def _matches(pattern: str, path: str, folder: bool) -> bool:
    """Whether one of rsync's patterns excludes a path (relative to the folder that is sent)."""
    if pattern.endswith("/") and not folder:
        return False
    bare = pattern.rstrip("/")
    if bare.endswith("/**"):  # what is in the folder goes; here the folder itself may as well
        bare = bare.removesuffix("/**")
    parts, wanted = path.split("/"), bare.lstrip("/").split("/")
    if not bare.startswith("/"):  # not anchored: it may match at the end of the path
        parts = parts[-len(wanted) :]
    return len(parts) == len(wanted) and all(
        fnmatchcase(part, each.replace("**", "*")) for part, each in zip(parts, wanted, strict=True)
    )


def sent(folder: Path, exclude: Sequence[str]) -> dict[str, int]:
    """Bytes of each entry of a folder that rsync would send, by its name, after the excluded ones are taken out."""

    def size(path: Path, relative: str) -> int:
        """Of a file, or of what is sent of a folder."""
        inside = path.is_dir() and not path.is_symlink()
        if any(_matches(str(pattern), relative, inside) for pattern in exclude):
            return 0
        if not inside:
            return path.lstat().st_size
        return sum(size(each, f"{relative}/{each.name}") for each in path.iterdir())

    return {each.name: size(each, each.name) for each in folder.iterdir()}
