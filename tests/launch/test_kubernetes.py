"""`mi-ray cluster check` finds each thing that a Kubernetes manifest must not become."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.cluster_files import errors_of, replaced, text_of

KUBERNETES = {
    "no authentication": (
        "authOptions: {mode: token, secretName: mi-ray-token}",
        "authOptions: {mode: disabled}",
        "must be token; got disabled",
    ),
    "a token in the file": (
        "env: [{name: HOME, value: /tmp}]",
        "env: [{name: RAY_AUTH_TOKEN, value: abc}]",
        "must come from a Secret",
    ),
    "a service that leaves the cluster": ("serviceType: ClusterIP", "serviceType: LoadBalancer", "must be ClusterIP"),
    "a service of the head that leaves the cluster": (
        "serviceType: ClusterIP",
        "headService: {spec: {type: LoadBalancer}}",
        "headService.spec.type must be ClusterIP; got LoadBalancer",
    ),
    "a way in from outside": ("kind: NetworkPolicy", "kind: Ingress", "nothing must lead from outside"),
    "a first container with rights": (
        "          containers:",
        "          initContainers: [{name: first, securityContext: {privileged: true}}]\n          containers:",
        "container first: securityContext must say allowPrivilegeEscalation: false",
    ),
    "more replicas than there may be": (
        "replicas: 0",
        "replicas: 50",
        "replicas must be between minReplicas and maxReplicas",
    ),
    "a container that may be root": ("runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot must be true"),
    "a container that may gain rights": (
        "allowPrivilegeEscalation: false",
        "privileged: true",
        "nothing of privileged",
    ),
    "no limits": ('limits: {cpu: "2", memory: 8Gi}', "claims: []", "must have requests and limits"),
    "pods that no policy selects": (
        "podSelector: {matchLabels: {app: mi-ray}}\n  policyTypes",
        "podSelector: {matchLabels: {app: other}}\n  policyTypes",
        "a NetworkPolicy in the file must select",
    ),
    "a policy for the way out alone": (
        "policyTypes: [Ingress, Egress]",
        "policyTypes: [Egress]",
        "a NetworkPolicy in the file must select",
    ),
    "a policy open to the world": (
        "- from: [{podSelector: {matchLabels: {app: mi-ray}}}]",
        "- from: [{ipBlock: {cidr: 0.0.0.0/0}}]",
        "nothing may be open to the world",
    ),
    "a policy with a rule for everybody": (
        "- from: [{podSelector: {matchLabels: {app: mi-ray}}}]",
        "- {}",
        "must name who is let in",
    ),
    "a policy for the pods of every namespace": (
        "- from: [{podSelector: {matchLabels: {app: mi-ray}}}]",
        "- from: [{namespaceSelector: {}}]",
        "got {'namespaceSelector': {}}",
    ),
    "a policy that selects by expressions": (
        "podSelector: {matchLabels: {app: mi-ray}}\n  policyTypes",
        "podSelector: {matchExpressions: [{key: app, operator: In, values: [other]}]}\n  policyTypes",
        "a NetworkPolicy in the file must select",
    ),
    "a policy of another namespace": (
        "kind: NetworkPolicy\nmetadata:\n  name: mi-ray\n  namespace: mi-ray",
        "kind: NetworkPolicy\nmetadata:\n  name: mi-ray\n  namespace: other",
        "a NetworkPolicy in the file must select",
    ),
    "a key with a typo": ("workerGroupSpecs:", "workerGroupSpec:", "did you mean 'workerGroupSpecs'?"),
    "a job's key with a typo": ("backoffLimit:", "backOffLimit:", "did you mean 'backoffLimit'?"),
    "a group's key with a typo": ("maxReplicas:", "maxReplica:", "did you mean 'maxReplicas'?"),
    "fewer replicas at most than at least": ("minReplicas: 0", "minReplicas: 9", "must hold; got 9 and 8"),
    "a folder of the node": (
        "{name: tmp, emptyDir: {sizeLimit: 20Gi}}",
        "{name: tmp, hostPath: {path: /}}",
        "got hostPath /",
    ),
    "the node's network": ("serviceAccountName: mi-ray", "hostNetwork: true", "hostNetwork must be left out"),
    "no name": ("name: sweep\n", "labels: {}\n", "metadata.name must be a name"),
    "a list where the head's options belong": (
        'rayStartParams: {num-cpus: "0", dashboard-host: 0.0.0.0}',
        "rayStartParams: [0.0.0.0]",
        "spec.rayClusterSpec.headGroupSpec.rayStartParams: must be a mapping; got ['0.0.0.0']",
    ),
    "a text where a container belongs": (
        "containers:\n              - name",
        "containers:\n              - ray\n              - name",
        "workerGroupSpecs[0].template.spec.containers[0]: must be a mapping",
    ),
    "a policy whose rules are no list": (
        "ingress:\n    - from: [{podSelector: {matchLabels: {app: mi-ray}}}]\n    - from: [{namespaceSelector:",
        "ingress: {}\n  other:\n    - from: [{namespaceSelector:",
        "spec.ingress: must be a list; got {}",
    ),
    "no most replicas": ("        maxReplicas: 8\n", "", "maxReplicas must be given"),
    "a port on the node": (
        "env: [{name: HOME, value: /tmp}]",
        "ports: [{containerPort: 8265, hostPort: 8265}]",
        "got hostPort 8265",
    ),
    "a container with a right of root": (
        "capabilities: {drop: [ALL]}",
        "capabilities: {add: [SYS_ADMIN]}",
        "got ['SYS_ADMIN']",
    ),
    "a container that is root": ("runAsUser: 10001", "runAsUser: 0", "runAsUser must not be 0"),
    "a secret as a resource": ("kind: ServiceAccount", "kind: Secret", "make it with `kubectl create secret`"),
}


@pytest.mark.parametrize("what", KUBERNETES)
def test_a_manifest_is_refused_with(what: str, tmp_path: Path) -> None:
    old, new, message = KUBERNETES[what]
    found = errors_of(replaced(tmp_path, "cluster/kuberay.yaml", old, new))
    assert [line for line in found if message in line], found


@pytest.mark.parametrize(
    ("service", "message"),
    [
        ({"externalIPs": ["203.0.113.9"]}, "externalIPs must be left out"),
        ({"type": "LoadBalancer"}, "type must be ClusterIP"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_service_beside_the_job_is_looked_at_in_a_list_too(
    service: dict[str, Any], message: str, listed: bool, tmp_path: Path
) -> None:
    one = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": service}
    added = {"apiVersion": "v1", "kind": "List", "items": [one]} if listed else one
    path = tmp_path / "more.yaml"
    path.write_text(f"{text_of('cluster/kuberay.yaml')}\n---\n{yaml.safe_dump(added)}", encoding="utf-8")
    (found,) = errors_of(path)
    assert message in found


def test_the_one_right_that_restricted_pods_may_have_is_no_error(tmp_path: Path) -> None:
    old, new = "capabilities: {drop: [ALL]}", "capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}"
    assert errors_of(replaced(tmp_path, "cluster/kuberay.yaml", old, new)) == []


def test_a_file_that_is_one_list_is_read_as_what_it_holds(tmp_path: Path) -> None:
    every = list(yaml.safe_load_all(text_of("cluster/kuberay.yaml")))
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": every}), encoding="utf-8")
    assert errors_of(path) == errors_of(replaced(tmp_path, "cluster/kuberay.yaml", "", ""))


POLICY = "metadata spec spec.podSelector spec.podSelector.matchLabels spec.policyTypes spec.ingress spec.ingress.0"
POLICY += " spec.ingress.0.from spec.ingress.0.from.0"
JOB = "metadata spec spec.rayClusterSpec"
CLUSTER = "authOptions headGroupSpec headGroupSpec.rayStartParams workerGroupSpecs workerGroupSpecs.0"
POD = "metadata metadata.labels spec spec.securityContext spec.volumes spec.volumes.0 spec.containers"
CONTAINER = "securityContext resources env env.0"
PLACES = [
    *(("NetworkPolicy", place) for place in POLICY.split()),
    *(("RayJob", place) for place in JOB.split()),
    *(("RayJob", f"spec.rayClusterSpec.{place}") for place in CLUSTER.split()),
    *(
        ("RayJob", f"spec.rayClusterSpec.{group}.template{place}")
        for group in ("headGroupSpec", "workerGroupSpecs.0")
        for place in ("", ".spec.containers.0", *(f".{each}" for each in POD.split()))
    ),
    *(
        ("RayJob", f"spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.{place}")
        for place in CONTAINER.split()
    ),
]


@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_a_number_is_refused_where_a_mapping_or_a_list_belongs(kind: str, place: str, tmp_path: Path) -> None:
    aliased = list(yaml.safe_load_all(text_of("cluster/kuberay.yaml")))
    documents = json.loads(json.dumps(aliased))  # What two groups share in the file is each one's own here.
    (document,) = [each for each in documents if each["kind"] == kind]
    *way, last = [int(step) if step.isdigit() else step for step in place.split(".")]
    for step in way:
        document = document[step]
    document[last] = 3
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    (found,) = [line for line in errors_of(path) if "must be a mapping" in line or "must be a list" in line]
    assert found.startswith(f"error: {place}: ".replace(".0", "[0]"))
    assert found.endswith("; got 3")
