"""Kubernetes manifests (KubeRay) and Slurm scripts: what they must say so that only their owner runs code on them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mi_ray.launch.rules import Finding, error, open_to_the_world, ports_of, unknown_keys, warning

RAY_KINDS = ("RayCluster", "RayJob", "RayService")
CLUSTER = (
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
    "headServiceAnnotations",
    "gcsFaultToleranceOptions",
    "suspend",
    "managedBy",
    "upgradeStrategy",
)
JOB = (
    "entrypoint",
    "rayClusterSpec",
    "clusterSelector",
    "submissionMode",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "schedule",
    "runtimeEnvYAML",
    "jobId",
    "metadata",
    "submitterPodTemplate",
    "submitterConfig",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "deletionStrategy",
    "suspend",
    "managedBy",
)
HEAD = ("rayStartParams", "template", "serviceType", "headService", "enableIngress", "resources", "labels")
WORKERS = (
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
    "numOfHosts",
    "idleTimeoutSeconds",
    "scaleStrategy",
    "suspend",
    "resources",
    "labels",
)


def _unknown(where: str, found: Iterable[Any], known: Sequence[str]) -> Iterator[Finding]:
    """As `unknown_keys`; a warning where nothing is like the key, since KubeRay gets new ones."""
    for finding in unknown_keys(where, found, known):
        yield finding if "did you mean" in finding.text else warning(where, finding.text)


def check_kubernetes(documents: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """What is wrong with the Ray resources of a manifest, and with what surrounds them."""
    policies = [each for each in documents if each.get("kind") == "NetworkPolicy"]
    for each in documents:
        kind, metadata = str(each["kind"]), each.get("metadata") or {}
        name = metadata.get("name")
        if not name:
            yield error(kind, "metadata.name must be a name; got none")
        spec = each.get("spec") or {}
        if kind == "NetworkPolicy":
            yield from open_to_the_world(spec.get("ingress"), below=f"NetworkPolicy {name}.ingress")
            yield from _let_in(f"NetworkPolicy {name}.ingress", spec.get("ingress") or [])
        if kind == "Secret":
            yield error(
                f"Secret {name}",
                "a file must hold no secret; make it with `kubectl create secret`, as the comments say",
            )
        if kind == "Service" and spec.get("type") in ("LoadBalancer", "NodePort"):
            yield error(
                f"Service {name}", f"type must be ClusterIP, so that no port leaves the cluster; got {spec['type']}"
            )
        if kind in RAY_KINDS:
            own = [policy for policy in policies if _namespace(policy) == _namespace(each)]
            yield from _ray(f"{kind} {name}", kind, spec, own)


def _namespace(resource: Mapping[str, Any]) -> str:
    return str((resource.get("metadata") or {}).get("namespace") or "default")


def _let_in(where: str, rules: Sequence[Any]) -> Iterator[Finding]:
    """Errors for rules that let in everybody, or every pod of every namespace."""
    for index, rule in enumerate(rules):
        peers = rule.get("from") if isinstance(rule, Mapping) else None
        everybody = [peer for peer in peers or [{}] if not peer or _is_anybody(peer)]
        if everybody:
            got = "a rule without `from`" if not peers else f"{everybody[0] or 'an empty peer'}"
            yield error(
                f"{where}[{index}]",
                "must name who is let in (pods by their labels, a namespace by its own), since "
                f"whoever reaches Ray's ports may try them; got {got}",
            )


def _is_anybody(peer: Mapping[str, Any]) -> bool:
    return "namespaceSelector" in peer and not peer["namespaceSelector"] and not peer.get("podSelector")


def _ray(where: str, kind: str, spec: Mapping[str, Any], policies: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    cluster = spec
    if kind == "RayJob":
        yield from _unknown(where, spec, JOB)
        if not spec.get("entrypoint"):
            yield error(where, "entrypoint must be the command of the job; got none")
    if kind != "RayCluster":
        cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or {}
    yield from _unknown(f"{where} cluster", cluster, CLUSTER)
    head, groups = cluster.get("headGroupSpec") or {}, cluster.get("workerGroupSpecs") or []
    yield from _unknown(f"{where} headGroupSpec", head, HEAD)
    if head.get("serviceType") in ("LoadBalancer", "NodePort") or head.get("enableIngress"):
        yield error(
            f"{where} headGroupSpec",
            "the head's service must be ClusterIP without ingress, so that the dashboard does "
            f"not leave the cluster; got {head.get('serviceType') or 'enableIngress'}",
        )
    fenced = False
    for place, group in [("head", head), *((str(g.get("groupName", "workers")), g) for g in groups)]:
        template = group.get("template") or {}
        held = [policy for policy in policies if _selects(policy, (template.get("metadata") or {}).get("labels") or {})]
        if not held:
            yield error(
                f"{where} {place}",
                "a NetworkPolicy in the file must select these pods and limit Ingress, else every "
                "pod of the Kubernetes cluster reaches Ray's ports; got none that does",
            )
        fenced = fenced or (place == "head" and bool(held))
        yield from _pod(f"{where} {place}", template.get("spec") or {}, cluster.get("authOptions") or {})
    for group in groups:
        place = f"{where} {group.get('groupName', 'workers')}"
        yield from _unknown(place, group, WORKERS)
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        if not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high and high > 0):
            yield error(place, f"0 <= minReplicas <= maxReplicas and maxReplicas > 0 must hold; got {low} and {high}")
    parameters = head.get("rayStartParams") or {}
    command = " ".join(f"--{key}={value}" for key, value in parameters.items())
    yield from ports_of(f"{where} headGroupSpec.rayStartParams", command, fenced=fenced)


def _selects(policy: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    """Whether a policy limits what reaches pods with these labels."""
    spec = policy.get("spec") or {}
    selector = spec.get("podSelector") or {}
    wanted = selector.get("matchLabels") or {}
    if selector.get("matchExpressions"):
        return False  # what they select is not worked out here
    return "Ingress" in (spec.get("policyTypes") or ["Ingress"]) and wanted.items() <= labels.items()


def _pod(where: str, pod: Mapping[str, Any], auth: Mapping[str, Any]) -> Iterator[Finding]:
    shared = pod.get("securityContext") or {}
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield error(where, f"{key} must be left out: the pod would share its node's; got {pod[key]}")
    for volume in pod.get("volumes") or []:
        if "hostPath" in volume:
            yield error(
                where, f"volumes must not be folders of the node; got hostPath {volume['hostPath'].get('path')}"
            )
    if not pod.get("containers"):
        yield error(where, "a pod must have containers; got none")
    for container in pod.get("containers") or []:
        place = f"{where} container {container.get('name')}"
        own = container.get("securityContext") or {}
        if not own.get("runAsNonRoot", shared.get("runAsNonRoot")):
            yield error(place, "securityContext.runAsNonRoot must be true")
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            yield error(place, "securityContext must say allowPrivilegeEscalation: false, and nothing of privileged")
        resources = container.get("resources") or {}
        if not resources.get("requests") or not resources.get("limits"):
            yield error(place, "resources must have requests and limits, else one pod takes its node from all others")
        env = {entry.get("name"): entry for entry in container.get("env") or []}
        if "value" in env.get("RAY_AUTH_TOKEN", {}):
            yield error(
                place, "RAY_AUTH_TOKEN must come from a Secret (valueFrom.secretKeyRef); got a value in the file"
            )
        mode = (env.get("RAY_AUTH_MODE") or {}).get("value", auth.get("mode"))
        if mode != "token":
            yield error(place, f"authOptions.mode or RAY_AUTH_MODE must be token; got {mode}")
