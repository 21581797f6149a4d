"""What is wrong with a `ray up` file that Ray's own validation lets pass.

Ray validates the form of the keys that it knows. It takes an unknown provider key, a port open to the world, a secret and a
folder of 100 GB without a word.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeGuard

from mi_ray.launch.rules import (
    STARTS,
    Complaint,
    Form,
    authentication,
    entries,
    error,
    mapping,
    misshapen,
    open_to_the_world,
    ports_of,
    scalars,
    unknown_keys,
    warning,
)

# The keys that Ray reads at the top of the file, of each provider and of a node type.
TOP = (
    "cluster_name",
    "max_workers",
    "upscaling_speed",
    "idle_timeout_minutes",
    "provider",
    "auth",
    "docker",
    "head_node_type",
    "file_mounts",
    "cluster_synced_files",
    "file_mounts_sync_continuously",
    "rsync_exclude",
    "rsync_filter",
    "metadata",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "available_node_types",
)
LAUNCHED = ("disable_node_updaters", "disable_launch_config_check", "foreground_node_launch", "worker_liveness_check")
SHARED = ("type", "use_internal_ips", "use_external_head_ip", "cache_stopped_nodes", *LAUNCHED)
PROVIDERS: dict[str, tuple[str, ...]] = {
    "aws": (*SHARED, "region", "availability_zone", "key_pair", "security_group", "aws_credentials", "cloudwatch"),
    "gcp": (*SHARED, "region", "availability_zone", "project_id", "gcp_credentials"),
    "azure": (
        *SHARED,
        "location",
        "resource_group",
        "subscription_id",
        "tags",
        "unique_id",
        "subnet_mask",
        "availability_zone",
        "msi_name",
        "msi_resource_group",
        "msi_identity_id",
        "msi_identity_principal_id",
        "subnet_id",
    ),
    "local": (
        "type",
        "head_ip",
        "worker_ips",
        "external_head_ip",
        "coordinator_address",
        "use_internal_ips",
        *LAUNCHED,
    ),
    "vsphere": (*SHARED, "vsphere_config"),
}
NODE_TYPE = (
    "node_config",
    "min_workers",
    "max_workers",
    "idle_timeout_s",
    "priority",
    "resources",
    "labels",
    "initialization_commands",
    "worker_setup_commands",
    "docker",
)
COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")
CLIENT_ENDED = re.compile(r"pkill\b.*ray\.util\.client\.server|pkill\b.*\[r\]ay\.util\.client\.server")
MEGABYTE = 1_000_000
TOKEN_FILE = ".ray/auth_token"  # noqa: S105 - a path, not a token


# What must be a mapping or a list so that anything else can be said of the file.
FORMS: dict[str, Form] = {
    "provider": "mapping",
    "auth": "mapping",
    "file_mounts": "mapping",
    "rsync_exclude": "list",
    "head_start_ray_commands": "list",
    "worker_start_ray_commands": "list",
    "available_node_types": "mapping",
    "available_node_types.*": "mapping",
    "available_node_types.*.node_config": "mapping",
    "available_node_types.*.node_config.MetadataOptions": "mapping",
}


def check_ray_up(document: Mapping[str, object], limit: float) -> Iterator[Complaint]:
    """What is wrong with a file for `ray up`; limit: megabytes of files that may be sent to each node."""
    name = document.get("cluster_name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        yield error(
            "cluster_name",
            "must be a name of letters, digits, dots and dashes: Ray finds the cluster by it (left out, "
            f"every such cluster is `default`) and makes file names of it; got {name!r}",
        )
    wrong = misshapen(document, FORMS)
    if wrong:
        yield from wrong
        return
    yield from _keys(document)
    yield from open_to_the_world(document)
    if mapping(document.get("provider")).get("type") == "aws":
        yield from _aws(document)
    yield from _workers(document)
    yield from _started(document)
    yield from _token(_mounts(document), _start_commands(document))
    yield from _sizes(document, limit)


def _node_types(document: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    return {name: mapping(node) for name, node in mapping(document.get("available_node_types")).items()}


def _keys(document: Mapping[str, object]) -> Iterator[Complaint]:
    """Errors for keys that Ray does not read, and a warning for a provider whose keys are not known here."""
    provider = mapping(document.get("provider"))
    kind = provider.get("type")
    yield from unknown_keys("file", document, (*TOP, "min_workers") if kind == "local" else TOP)
    if isinstance(kind, str) and kind in PROVIDERS:
        yield from unknown_keys("provider", provider, PROVIDERS[kind])
    else:
        yield warning("provider.type", f"keys are known of {', '.join(PROVIDERS)}; those of {kind!r} are not checked")
    for name, node in _node_types(document).items():
        yield from unknown_keys(f"available_node_types.{name}", node, NODE_TYPE)


def _aws(document: Mapping[str, object]) -> Iterator[Complaint]:
    """Errors for what Ray would choose unsafely for a node on AWS because the file does not choose."""
    for name, node in _node_types(document).items():
        where, config = f"available_node_types.{name}.node_config", mapping(node.get("node_config"))
        if not config.get("SecurityGroupIds") and not config.get("NetworkInterfaces"):
            yield error(
                where,
                "SecurityGroupIds must name a group of yours: one that Ray makes has SSH open to 0.0.0.0/0, to "
                "which provider.security_group.IpPermissions only adds; got none",
            )
        image = str(config.get("ImageId", "")).lower()
        if image in ("", "latest_dlami"):
            yield error(
                where,
                "ImageId must name an image with Python 3.10 or newer: Ray's own choice is Ubuntu 18.04 with "
                f"Python 3.6; got {image or 'none'}",
            )
        if not config.get("IamInstanceProfile"):
            wide = name == document.get("head_node_type")
            own = " (Ray makes one for the head with all rights to EC2 and S3)" if wide else ""
            yield error(where, f"IamInstanceProfile must name a role that reads and writes the bucket{own}; got none")
        if mapping(config.get("MetadataOptions")).get("HttpTokens") != "required":
            yield error(
                where,
                "MetadataOptions.HttpTokens must be `required`, else a request forged through the node reads "
                f"its role's credentials; got {config.get('MetadataOptions')}",
            )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _workers(document: Mapping[str, object]) -> Iterator[Complaint]:
    """Whether the numbers of workers agree with each other."""
    most, provider = document.get("max_workers"), mapping(document.get("provider"))
    if most is not None and not _is_count(most):
        yield error("max_workers", f"must be a whole number of at least 0; got {most!r}")
    elif provider.get("type") == "local" and isinstance(provider.get("worker_ips"), list):
        yield from _workers_by_address(document, most)
    else:
        yield from _workers_by_node_type(document, most)


def _workers_by_address(document: Mapping[str, object], most: int | None) -> Iterator[Complaint]:
    """Errors where the workers' limits do not fit the listed addresses, or where one is listed twice or is the head's.

    most: the file's max_workers, None where it is left out.
    """
    provider = mapping(document.get("provider"))
    addresses = [str(address) for address in entries(provider.get("worker_ips"))]
    most = len(addresses) if most is None else most
    least = document.get("min_workers", len(addresses))
    if not _is_count(least) or not least <= most <= len(addresses):
        yield error(
            "min_workers",
            "min_workers <= max_workers <= the number of worker_ips must hold; got "
            f"{least!r}, {most} and {len(addresses)}",
        )
    if str(provider.get("head_ip")) in addresses or len(set(addresses)) < len(addresses):
        told = ", ".join(addresses)
        yield error("provider.worker_ips", f"must be different addresses, and none the head's; got {told}")


def _workers_by_node_type(document: Mapping[str, object], most: int | None) -> Iterator[Complaint]:
    """What is wrong with the node types' limits, each by itself and together.

    most: the file's max_workers, None where it is left out.
    """
    limits: list[tuple[int, int | None]] = []
    for name, node in _node_types(document).items():
        where = f"available_node_types.{name}"
        unless_told = 0 if name == document.get("head_node_type") else most
        low, high = node.get("min_workers", 0), node.get("max_workers", unless_told)
        if not _is_count(low) or not (high is None or _is_count(high)):
            yield error(
                where, f"min_workers and max_workers must be whole numbers of at least 0; got {low!r} and {high!r}"
            )
            return
        yield from _limits_of_one(where, low, high, most)
        limits.append((low, high))
    together = sum(low for low, _ in limits)
    if most is not None and together > most:
        yield error("max_workers", f"must be at least the sum of min_workers, {together}; got {most}")
    if limits and (most == 0 or all(high == 0 for _, high in limits)):
        yield error("max_workers", "at least one worker must be possible: the head has nothing to work with; got 0")


def _limits_of_one(where: str, low: int, high: int | None, most: int | None) -> Iterator[Complaint]:
    """Whether a node type's least and most workers agree with each other and with the file's max_workers."""
    if high is None:
        return
    if low > high:
        yield error(where, f"min_workers must not exceed max_workers; got {low} and {high}")
    if most is not None and high > most:
        yield warning(where, f"max_workers beyond the file's own {most} has no effect; got {high}")


def _commands(document: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(dotted path, command) of every shell command that Ray runs on a node because the file says so."""
    for where, value in scalars(document):
        if re.fullmatch(r"(?:available_node_types\..*\.)?\w+_commands\[\d+\]", where):
            yield where, str(value)


def _started(document: Mapping[str, object]) -> Iterator[Complaint]:
    """Whether Ray is started with authentication, and with its ports where they belong."""
    commands = list(_commands(document))
    for key in COMMANDS:
        if not any(where.startswith(f"{key}[") and STARTS.search(command) for where, command in commands):
            yield error(
                key,
                "must start Ray: left out, Ray's own commands leave the dashboard's address and authentication to "
                "its defaults; got no `ray start`",
            )
    for where, command in commands:
        if STARTS.search(command):
            yield from authentication(where, command)
        yield from ports_of(where, command)
    for where, value in scalars(document):
        published = re.search(r"(?:^|\s)(?:-p|--publish)\b|^-p\d", str(value))
        if where.rpartition("[")[0].endswith("run_options") and published:
            yield error(where, f"a container must publish no port (it shares the node's network as it is); got {value}")
    on_head = entries(document.get(COMMANDS[0]))
    if on_head and not any(CLIENT_ENDED.search(str(command)) for command in on_head):
        yield warning(
            COMMANDS[0],
            "Ray Client listens on the head's private address, port 10001, and cannot be told not to; end "
            "its process as the project's cluster.yaml does",
        )


def _mounts(document: Mapping[str, object]) -> dict[str, str]:
    """The path on this machine that is sent to each path on the nodes."""
    return {str(target): str(source) for target, source in mapping(document.get("file_mounts")).items()}


def _start_commands(document: Mapping[str, object]) -> str:
    return " ".join(str(command) for key in COMMANDS for command in entries(document.get(key)))


def _token(mounts: Mapping[str, str], commands: str) -> Iterator[Complaint]:
    """What keeps Ray's token from reaching the nodes, or lets other users of this machine read it.

    mounts: path on the nodes -> path on this machine. commands: all commands that start Ray, as one text.
    """
    tokens = [source for target, source in mounts.items() if target.endswith(TOKEN_FILE)]
    if not tokens and "RAY_AUTH_TOKEN" not in commands:
        yield error(
            "file_mounts",
            f"must bring Ray's token to the nodes (~/{TOKEN_FILE}: ~/{TOKEN_FILE}), else no worker is let "
            f"in; got {', '.join(mounts) or 'none'}",
        )
    for source in map(_expanded, tokens):
        if not source.is_file():
            yield warning(
                "file_mounts",
                f"{source} must be there before `ray up`; make it with `(umask 077; ray get-auth-token "
                "--generate > /dev/null)`",
            )
        elif source.stat().st_mode & 0o077:
            mode = f"{source.stat().st_mode & 0o777:04o}"
            yield error(
                "file_mounts",
                f"{source} must be readable for you alone, and is copied with its mode; got {mode}. "
                f"Remedy: chmod 600 {source}",
            )


def _sizes(document: Mapping[str, object], limit: float) -> Iterator[Complaint]:
    """Whether what is sent to each node is there, and is below the limit in megabytes."""
    exclude = [str(pattern) for pattern in entries(document.get("rsync_exclude"))]
    sizes: dict[str, int] = {}
    for target, written in _mounts(document).items():
        source = _expanded(written)
        if target.endswith(TOKEN_FILE):
            continue
        if not source.exists():
            yield error(
                f"file_mounts.{target}", f"must be a file or folder on this machine; there is no {source.resolve()}"
            )
        elif source.is_dir():
            sizes |= {f"{source.resolve()}/{name}": size for name, size in sent(source, exclude).items()}
        else:
            sizes[str(source.resolve())] = source.stat().st_size
    filtered = " (rsync_filter is not read here)" if document.get("rsync_filter") else ""
    yield from _large(sizes, limit, filtered)


def _expanded(written: str) -> Path:
    return Path(written).expanduser()


def _large(sizes: Mapping[str, int], limit: float, filtered: str) -> Iterator[Complaint]:
    """An error where what is sent has more megabytes than `limit`. sizes: bytes by path. filtered: what is said of filters."""
    total = sum(sizes.values()) / MEGABYTE
    if total > limit:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
        told = ", ".join(f"{name} {size / MEGABYTE:.0f} MB" for name, size in largest)
        yield error(
            "file_mounts",
            f"what is sent to each node must be below {limit:g} MB after rsync_exclude{filtered}; all mounts have {total:.0f} "
            f"MB, of it {told}. Remedy: rsync_exclude, or --limit",
        )


def _matches(pattern: str, path: str, folder: bool) -> bool:
    """Whether a pattern, as rsync reads it, excludes a path.

    path: relative to the folder that is sent. folder: whether it is that of a folder.
    """
    if pattern.endswith("/") and not folder:
        return False
    bare = pattern.rstrip("/")
    while bare.lstrip("/").startswith("**/"):  # Any number of folders, none too.
        bare = bare.lstrip("/").removeprefix("**/")
    if bare.endswith("/**"):  # rsync then sends the empty folder, which weighs nothing.
        bare = bare.removesuffix("/**")
    parts, wanted = path.split("/"), bare.lstrip("/").split("/")
    if not bare.startswith("/"):  # A pattern without a leading slash matches the end of any path.
        parts = parts[-len(wanted) :]
    return len(parts) == len(wanted) and all(
        fnmatchcase(part, each.replace("**", "*")) for part, each in zip(parts, wanted, strict=True)
    )


def sent(folder: Path, exclude: Sequence[str]) -> dict[str, int]:
    """Bytes that rsync would send of each entry of a folder, by the entry's name; exclude: patterns as rsync reads them."""

    def size(path: Path, relative: str) -> int:
        """Bytes of a file, or of all that rsync sends of a folder; relative: its path from the folder that is sent."""
        inside = path.is_dir() and not path.is_symlink()
        if any(_matches(str(pattern), relative, inside) for pattern in exclude):
            return 0
        if not inside:
            return path.lstat().st_size
        return sum(size(each, f"{relative}/{each.name}") for each in path.iterdir())

    return {each.name: size(each, each.name) for each in folder.iterdir()}
