"""What is wrong with a Kubernetes manifest for KubeRay: only its owner may run code there, and no pod may harm others."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mi_ray.launch.rules import (
    Complaint,
    Form,
    entries,
    error,
    found_at,
    mapping,
    misshapen,
    open_to_the_world,
    ports_of,
    unknown_keys,
    warning,
)

# Where in a resource of each kind the description of its Ray cluster stands.
CLUSTER_PATHS = {"RayCluster": "spec", "RayJob": "spec.rayClusterSpec", "RayService": "spec.rayClusterConfig"}
RAY_KINDS = tuple(CLUSTER_PATHS)
LEADING_IN = ("Ingress", "Route", "HTTPRoute", "TCPRoute", "Gateway", "IngressRoute", "VirtualService")
# The keys that KubeRay reads of a cluster, a job, the head's group and a group of workers.
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
    "preRunningDeadlineSeconds",
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

# What must be a mapping or a list so that anything else can be said of it: in every resource, in a policy, and in a pod.
RESOURCE_FORMS: dict[str, Form] = {"metadata": "mapping", "spec": "mapping"}
POLICY_FORMS: dict[str, Form] = {
    "spec.podSelector": "mapping",
    "spec.podSelector.matchLabels": "mapping",
    "spec.policyTypes": "list",
    "spec.ingress": "list",
    "spec.ingress.*": "mapping",
    "spec.ingress.*.from": "list",
    "spec.ingress.*.from.*": "mapping",
}
CLUSTER_FORMS: dict[str, Form] = {
    "authOptions": "mapping",
    "headGroupSpec": "mapping",
    "headGroupSpec.rayStartParams": "mapping",
    "headGroupSpec.headService": "mapping",
    "headGroupSpec.headService.spec": "mapping",
    "workerGroupSpecs": "list",
    "workerGroupSpecs.*": "mapping",
}
POD_FORMS: dict[str, Form] = {
    "template": "mapping",
    "template.metadata": "mapping",
    "template.metadata.labels": "mapping",
    "template.spec": "mapping",
    "template.spec.securityContext": "mapping",
    "template.spec.volumes": "list",
    "template.spec.volumes.*": "mapping",
    "template.spec.containers": "list",
    "template.spec.containers.*": "mapping",
    "template.spec.containers.*.securityContext": "mapping",
    "template.spec.containers.*.resources": "mapping",
    "template.spec.containers.*.env": "list",
    "template.spec.containers.*.env.*": "mapping",
    "template.spec.initContainers": "list",
    "template.spec.initContainers.*": "mapping",
    "template.spec.initContainers.*.securityContext": "mapping",
    "template.spec.initContainers.*.resources": "mapping",
}


def check_kubernetes(documents: Sequence[Mapping[str, object]]) -> Iterator[Complaint]:
    """What is wrong with the Ray resources of a manifest, and with the policies and services around them."""
    policies = [each for each in documents if each.get("kind") == "NetworkPolicy"]
    for each in documents:
        wrong = misshapen(each, _forms(str(each["kind"])))
        yield from wrong or _resource(each, policies)


def one_by_one(documents: Iterable[Mapping[str, object]]) -> Iterator[Mapping[str, object]]:
    """The resources of a manifest, with those that a `kind: List` holds."""
    for each in documents:
        if each.get("kind") == "List":
            yield from one_by_one(map(mapping, entries(each.get("items"))))
        else:
            yield each


def _forms(kind: str) -> dict[str, Form]:
    """What must be a mapping or a list in a resource of a kind."""
    if kind == "NetworkPolicy":
        return RESOURCE_FORMS | POLICY_FORMS
    if kind not in RAY_KINDS:
        return RESOURCE_FORMS
    groups = {
        f"{group}.{path}": form for group in ("headGroupSpec", "workerGroupSpecs.*") for path, form in POD_FORMS.items()
    }
    cluster = CLUSTER_PATHS[kind]
    return (
        RESOURCE_FORMS
        | {cluster: "mapping"}
        | {f"{cluster}.{path}": form for path, form in (CLUSTER_FORMS | groups).items()}
    )


def _resource(resource: Mapping[str, object], policies: Sequence[Mapping[str, object]]) -> Iterator[Complaint]:
    """What is wrong with one resource whose parts have the right form; policies: all network policies of the manifest."""
    kind, name = str(resource["kind"]), mapping(resource.get("metadata")).get("name")
    spec = mapping(resource.get("spec"))
    if not name:
        yield error(kind, "metadata.name must be a name; got none")
    if kind == "NetworkPolicy":
        yield from open_to_the_world(spec.get("ingress"), below=f"NetworkPolicy {name}.ingress")
        yield from _let_in(f"NetworkPolicy {name}.ingress", entries(spec.get("ingress")))
    elif kind == "Secret":
        yield error(
            f"Secret {name}",
            "a file must hold no secret; make it with `kubectl create secret`, as the comments say",
        )
    elif kind == "Service" and spec.get("type") in ("LoadBalancer", "NodePort"):
        yield error(
            f"Service {name}", f"type must be ClusterIP, so that no port leaves the cluster; got {spec['type']}"
        )
    elif kind == "Service" and spec.get("externalIPs"):
        yield error(
            f"Service {name}",
            f"externalIPs must be left out, so that no port leaves the cluster; got {spec['externalIPs']}",
        )
    elif kind in LEADING_IN:
        yield error(
            f"{kind} {name}", "nothing must lead from outside to the cluster's ports; `kubectl port-forward` does"
        )
    elif kind in RAY_KINDS:
        if kind == "RayJob":
            yield from _job(f"{kind} {name}", spec)
        near = [policy for policy in policies if _namespace(policy) == _namespace(resource)]
        clusters = [mapping(value) for _, value in found_at(resource, CLUSTER_PATHS[kind])]
        yield from _cluster(f"{kind} {name}", clusters[0] if clusters else {}, near)


def _namespace(resource: Mapping[str, object]) -> str:
    return str(mapping(resource.get("metadata")).get("namespace") or "default")


def _let_in(where: str, rules: Sequence[object]) -> Iterator[Complaint]:
    """Errors for a policy's rules that let in everybody, or every pod of every namespace."""
    for index, rule in enumerate(rules):
        peers = entries(mapping(rule).get("from"))
        everybody = [peer for peer in peers or [{}] if _is_anybody(mapping(peer))]
        if everybody:
            got = f"{everybody[0] or 'an empty peer'}" if peers else "a rule without `from`"
            yield error(
                f"{where}[{index}]",
                "must name who is let in (pods by their labels, a namespace by its own), since "
                f"whoever reaches Ray's ports may try them; got {got}",
            )


def _is_anybody(peer: Mapping[str, object]) -> bool:
    """Whether a peer of a rule is empty or is every pod of every namespace."""
    return not peer or ("namespaceSelector" in peer and not peer["namespaceSelector"] and not peer.get("podSelector"))


def _unknown(where: str, found: Iterable[object], known: Sequence[str]) -> Iterator[Complaint]:
    """An error for each key that looks like a typo, and a warning for each other unknown one: a newer KubeRay may know it."""
    for complaint in unknown_keys(where, found, known):
        yield complaint if "did you mean" in complaint.text else warning(where, complaint.text)


def _job(where: str, spec: Mapping[str, object]) -> Iterator[Complaint]:
    yield from _unknown(where, spec, JOB)
    if not spec.get("entrypoint"):
        yield error(where, "entrypoint must be the command of the job; got none")


def _cluster(
    where: str, cluster: Mapping[str, object], policies: Sequence[Mapping[str, object]]
) -> Iterator[Complaint]:
    """What is wrong with a Ray cluster; policies: the network policies of its namespace."""
    yield from _unknown(f"{where} cluster", cluster, CLUSTER)
    head = mapping(cluster.get("headGroupSpec"))
    workers = [mapping(group) for group in entries(cluster.get("workerGroupSpecs"))]
    yield from _head(where, head, fenced=_is_fenced(head, policies))
    for group in workers:
        yield from _workers(f"{where} {group.get('groupName', 'workers')}", group)
    named = [("head", head), *((group.get("groupName", "workers"), group) for group in workers)]
    for name, group in named:
        if not _is_fenced(group, policies):
            yield error(
                f"{where} {name}",
                "a NetworkPolicy in the file must select these pods and limit Ingress, else every "
                "pod of the Kubernetes cluster reaches Ray's ports; got none that does",
            )
        pod = mapping(mapping(group.get("template")).get("spec"))
        yield from _pod(f"{where} {name}", pod)
        for container in map(mapping, entries(pod.get("containers"))):
            yield from _container(f"{where} {name}", container, pod)
            yield from _token(f"{where} {name}", container, mapping(cluster.get("authOptions")))
        for container in map(mapping, entries(pod.get("initContainers"))):
            yield from _container(f"{where} {name}", container, pod)


def _head(where: str, head: Mapping[str, object], *, fenced: bool) -> Iterator[Complaint]:
    """Whether the head's dashboard stays inside; fenced: whether a network policy keeps others away from the head."""
    yield from _unknown(f"{where} headGroupSpec", head, HEAD)
    if head.get("serviceType") in ("LoadBalancer", "NodePort") or head.get("enableIngress"):
        yield error(
            f"{where} headGroupSpec",
            "the head's service must be ClusterIP without ingress, so that the dashboard does "
            f"not leave the cluster; got {head.get('serviceType') or 'enableIngress'}",
        )
    service = mapping(mapping(head.get("headService")).get("spec")).get("type", "ClusterIP")
    if service != "ClusterIP":
        yield error(f"{where} headGroupSpec", f"headService.spec.type must be ClusterIP; got {service}")
    parameters = mapping(head.get("rayStartParams"))
    command = " ".join(f"--{key}={value}" for key, value in parameters.items())
    yield from ports_of(f"{where} headGroupSpec.rayStartParams", command, fenced=fenced)


def _workers(where: str, group: Mapping[str, object]) -> Iterator[Complaint]:
    """Whether a group of workers has known keys, and replicas whose numbers agree."""
    yield from _unknown(where, group, WORKERS)
    low, high = group.get("minReplicas", 0), group.get("maxReplicas")
    if high is None:
        yield error(where, "maxReplicas must be given: nothing bounds the group without it")
    elif not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high and high > 0):
        yield error(where, f"0 <= minReplicas <= maxReplicas and maxReplicas > 0 must hold; got {low} and {high}")
    elif not (isinstance(count := group.get("replicas", low), int) and low <= count <= high):
        yield error(where, f"replicas must be between minReplicas and maxReplicas, {low} and {high}; got {count}")


def _is_fenced(group: Mapping[str, object], policies: Sequence[Mapping[str, object]]) -> bool:
    """Whether one of the policies limits what reaches the pods of a group."""
    labels = mapping(mapping(mapping(group.get("template")).get("metadata")).get("labels"))
    return any(_selects(policy, labels) for policy in policies)


def _selects(policy: Mapping[str, object], labels: Mapping[str, object]) -> bool:
    """Whether a policy limits what reaches pods with these labels; never for one that selects by expressions."""
    spec = mapping(policy.get("spec"))
    selector = mapping(spec.get("podSelector"))
    if selector.get("matchExpressions"):
        return False  # Which pods an expression selects is Kubernetes' to say, so such a policy counts as none.
    wanted = mapping(selector.get("matchLabels"))
    return "Ingress" in (entries(spec.get("policyTypes")) or ["Ingress"]) and wanted.items() <= labels.items()


def _pod(where: str, pod: Mapping[str, object]) -> Iterator[Complaint]:
    """Errors for a pod that shares something with its node, or that runs nothing."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield error(where, f"{key} must be left out: the pod would share its node's; got {pod[key]}")
    for volume in map(mapping, entries(pod.get("volumes"))):
        if "hostPath" in volume:
            path = mapping(volume["hostPath"]).get("path")
            yield error(where, f"volumes must not be folders of the node; got hostPath {path}")
    if not pod.get("containers"):
        yield error(where, "a pod must have containers; got none")


def _container(where: str, container: Mapping[str, object], pod: Mapping[str, object]) -> Iterator[Complaint]:
    """Whether a container has no rights that it does not need, and bounded resources.

    pod: its pod, whose security context holds where the container's own says nothing.
    """
    place = f"{where} container {container.get('name')}"
    own, shared = mapping(container.get("securityContext")), mapping(pod.get("securityContext"))
    if not own.get("runAsNonRoot", shared.get("runAsNonRoot")):
        yield error(place, "securityContext.runAsNonRoot must be true")
    if own.get("runAsUser", shared.get("runAsUser")) == 0:
        yield error(place, "securityContext.runAsUser must not be 0, which is root; got 0")
    added = [each for each in entries(mapping(own.get("capabilities")).get("add")) if each != "NET_BIND_SERVICE"]
    if added:
        yield error(place, f"securityContext.capabilities.add must be left out; got {added}")
    for port in map(mapping, entries(container.get("ports"))):
        if port.get("hostPort"):
            yield error(place, f"ports must not be opened on the node; got hostPort {port['hostPort']}")
    if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
        yield error(place, "securityContext must say allowPrivilegeEscalation: false, and nothing of privileged")
    resources = mapping(container.get("resources"))
    if not resources.get("requests") or not resources.get("limits"):
        yield error(place, "resources must have requests and limits, else one pod takes its node from all others")


def _token(where: str, container: Mapping[str, object], auth: Mapping[str, object]) -> Iterator[Complaint]:
    """Whether a container that runs Ray has its token authentication. auth: the cluster's authOptions."""
    place = f"{where} container {container.get('name')}"
    env = {entry.get("name"): entry for entry in map(mapping, entries(container.get("env")))}
    if "value" in env.get("RAY_AUTH_TOKEN", {}):
        yield error(place, "RAY_AUTH_TOKEN must come from a Secret (valueFrom.secretKeyRef); got a value in the file")
    mode = env.get("RAY_AUTH_MODE", {}).get("value", auth.get("mode"))
    if mode != "token":
        yield error(place, f"authOptions.mode or RAY_AUTH_MODE must be token; got {mode}")
