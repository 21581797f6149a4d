"""`mi-ray cluster check`: what is wrong with a cluster file that Ray's own validation lets pass.

Ray validates the form of the keys that it knows. It takes an unknown provider key, a port open to the world, a secret and a
folder of 100 GB without a word.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mi_ray.launch.rules import (
    STARTS,
    Finding,
    authentication,
    error,
    open_to_the_world,
    ports_of,
    scalars,
    sent,
    unknown_keys,
    warning,
)

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


def check_ray_up(document: Mapping[str, Any], limit: float) -> Iterator[Finding]:
    """What is wrong with a file for `ray up`."""
    name = document.get("cluster_name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        yield error(
            "cluster_name",
            "must be a name of letters, digits, dots and dashes: Ray finds the cluster by it (left out, "
            f"every such cluster is `default`) and makes file names of it; got {name!r}",
        )
    wrong = _misshapen(document)
    if wrong:
        yield from wrong
        return
    provider = document.get("provider") or {}
    kind = provider.get("type")
    yield from unknown_keys("file", document, (*TOP, "min_workers") if kind == "local" else TOP)
    if kind in PROVIDERS:
        yield from unknown_keys("provider", provider, PROVIDERS[kind])
    else:
        yield warning("provider.type", f"keys are known of {', '.join(PROVIDERS)}; those of {kind!r} are not checked")
    yield from open_to_the_world(document)
    types = document.get("available_node_types") or {}
    for place, node in types.items():
        yield from unknown_keys(f"available_node_types.{place}", node, NODE_TYPE)
    if kind == "aws":
        yield from _aws(document, types)
    yield from _workers(document, types)
    yield from _started(document)
    yield from _mounted(document, limit)


SHAPES: dict[str, type] = {
    "provider": dict,
    "auth": dict,
    "available_node_types": dict,
    "file_mounts": dict,
    "rsync_exclude": list,
    "head_start_ray_commands": list,
    "worker_start_ray_commands": list,
}


def _misshapen(document: Mapping[str, Any]) -> list[Finding]:
    """Errors for what must be a mapping or a list and is none; nothing else can be looked at then."""
    said: dict[type, str] = {dict: "mapping", list: "list"}
    wrong = [key for key, shape in SHAPES.items() if not isinstance(document.get(key), (shape, type(None)))]
    found = [error(key, f"must be a {said[SHAPES[key]]}; got {document[key]!r}") for key in wrong]
    types = document.get("available_node_types")
    for name, node in types.items() if isinstance(types, dict) else ():
        config = node.get("node_config") if isinstance(node, dict) else None
        options = config.get("MetadataOptions") if isinstance(config, dict) else None
        within = {"": node or [], ".node_config": config or {}, ".node_config.MetadataOptions": options or {}}
        found += [
            error(f"available_node_types.{name}{key}", f"must be a mapping; got {value or node!r}")
            for key, value in within.items()
            if not isinstance(value, dict)
        ]
    return found


def _aws(document: Mapping[str, Any], types: Mapping[str, Any]) -> Iterator[Finding]:
    """What a node on AWS gets from Ray when the file does not say otherwise."""
    for place, node in types.items():
        where, config = f"available_node_types.{place}.node_config", node.get("node_config") or {}
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
            wide = place == document.get("head_node_type")
            own = " (Ray makes one for the head with all rights to EC2 and S3)" if wide else ""
            yield error(where, f"IamInstanceProfile must name a role that reads and writes the bucket{own}; got none")
        if (config.get("MetadataOptions") or {}).get("HttpTokens") != "required":
            yield error(
                where,
                "MetadataOptions.HttpTokens must be `required`, else a request forged through the node reads "
                f"its role's credentials; got {config.get('MetadataOptions')}",
            )


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _workers(document: Mapping[str, Any], types: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the numbers of workers agree with each other."""
    head, most = document.get("head_node_type"), document.get("max_workers")
    ips = (document.get("provider") or {}).get("worker_ips")
    if most is not None and not _count(most):
        yield error("max_workers", f"must be a whole number of at least 0; got {most!r}")
        return
    if (document.get("provider") or {}).get("type") == "local" and isinstance(ips, list):
        least = document.get("min_workers", len(ips))
        most = len(ips) if most is None else most
        if not _count(least) or not least <= most <= len(ips):
            yield error(
                "min_workers",
                "min_workers <= max_workers <= the number of worker_ips must hold; got "
                f"{least!r}, {most} and {len(ips)}",
            )
        if document["provider"].get("head_ip") in ips or len(set(ips)) < len(ips):
            told = ", ".join(map(str, ips))
            yield error("provider.worker_ips", f"must be different addresses, and none the head's; got {told}")
        return
    together, possible = 0, 0
    for place, node in types.items():
        low, high = node.get("min_workers", 0), node.get("max_workers", 0 if place == head else most)
        where = f"available_node_types.{place}"
        if not _count(low) or not (high is None or _count(high)):
            yield error(
                where, f"min_workers and max_workers must be whole numbers of at least 0; got {low!r} and {high!r}"
            )
            return
        if high is not None and low > high:
            yield error(where, f"min_workers must not exceed max_workers; got {low} and {high}")
        if most is not None and high is not None and high > most:
            yield warning(where, f"max_workers beyond the file's own {most} has no effect; got {high}")
        together, possible = together + low, possible + (1 if high is None else high)
    if most is not None and together > most:
        yield error("max_workers", f"must be at least the sum of min_workers, {together}; got {most}")
    if types and (possible == 0 or most == 0):
        yield error("max_workers", "at least one worker must be possible: the head has nothing to work with; got 0")


def _commands(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(place, command) of every shell command that the file has run on a node."""
    for where, value in scalars(document):
        if re.fullmatch(r"(?:available_node_types\..*\.)?\w+_commands\[\d+\]", where):
            yield where, str(value)


def _started(document: Mapping[str, Any]) -> Iterator[Finding]:
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
    ended = any(CLIENT_ENDED.search(str(command)) for command in document.get(COMMANDS[0]) or [])
    if document.get(COMMANDS[0]) and not ended:
        yield warning(
            COMMANDS[0],
            "Ray Client listens on the head's private address, port 10001, and cannot be told not to; end "
            "its process as the project's cluster.yaml does",
        )


def _mounted(document: Mapping[str, Any], limit: float) -> Iterator[Finding]:
    """Whether the token reaches the nodes unread by others, and whether what is sent is small and there."""
    mounts = {str(target): str(source) for target, source in (document.get("file_mounts") or {}).items()}
    commands = " ".join(str(command) for key in COMMANDS for command in document.get(key) or [])
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
    exclude = [str(pattern) for pattern in document.get("rsync_exclude") or []]
    for target, written in mounts.items():
        source = _expanded(written)
        if target.endswith(TOKEN_FILE):
            continue
        if not source.exists():
            yield error(
                f"file_mounts.{target}", f"must be a file or folder on this machine; there is no {source.resolve()}"
            )
        else:
            yield from _large(f"file_mounts.{target}", source, exclude, limit)


def _expanded(written: str) -> Path:
    return Path(written).expanduser()


def _large(where: str, source: Path, exclude: list[str], limit: float) -> Iterator[Finding]:
    sizes = sent(source, exclude) if source.is_dir() else {source.name: source.stat().st_size}
    total = sum(sizes.values()) / MEGABYTE
    if total > limit:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
        told = ", ".join(f"{name} {size / MEGABYTE:.0f} MB" for name, size in largest)
        yield error(
            where,
            f"what is sent to each node must be below {limit:g} MB after rsync_exclude; {source.resolve()} has "
            f"{total:.0f} MB, of it {told}. Remedy: rsync_exclude, or --limit",
        )
