"""deploy, asked of Kubernetes itself: a real API server, with a real etcd, takes each overlay, what
is for Istio and Envoy Gateway, and what `authz init` writes. They are built of their Go modules,
once, which takes minutes: `make kubernetes`.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from kustomized import KUBERNETES, OVERLAYS, build, built, pods
from manifests import CRDS, module
from programs import free_port
from programs import program as installed
from typer.testing import CliRunner

from authz.cli import program

VERSION = "1.37.2"
HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "authz-kubernetes" / VERSION
_MODULES = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": ("apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kubectl": ("apiserver", "k8s.io/kubernetes/cmd/kubectl"),
}
_NAMED = "k8s.io/component-base/version."
_TOKEN = "an-administrators"
_CUSTOM = {
    "certificates.cert-manager.io", "podmonitors.monitoring.coreos.com",
    "envoyfilters.networking.istio.io", "authorizationpolicies.security.istio.io",
    "telemetries.telemetry.istio.io", "httproutes.gateway.networking.k8s.io",
    "securitypolicies.gateway.envoyproxy.io", "envoyproxies.gateway.envoyproxy.io",
}  # fmt: skip

Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def programs() -> Path:
    """A directory with all three."""
    go = installed("go", "golang")
    CACHE.mkdir(parents=True, exist_ok=True)
    major, minor, _ = VERSION.split(".")
    said = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor}
    flags = "-s -w " + " ".join(f"-X {_NAMED}{name}={text}" for name, text in said.items())
    for name, (directory, package) in _MODULES.items():
        if not (CACHE / name).exists():
            subprocess.run(
                [go, "build", "-p", "2", "-trimpath", f"-ldflags={flags}", "-o", CACHE / name,
                 package],
                cwd=HERE / directory, env={**os.environ, "CGO_ENABLED": "0"}, check=True,
            )  # fmt: skip
    return CACHE


@pytest.fixture(scope="session")
def kubectl(programs, tmp_path_factory) -> Iterator[Kubectl]:
    """Runs kubectl, as the administrator of a cluster without nodes and controllers, which has the
    custom resources and the namespaces of all overlays."""
    directory = tmp_path_factory.mktemp("apiserver")
    port, store, peer = free_port(), free_port(), free_port()
    (directory / "tokens.csv").write_text(f'{_TOKEN},admin,1,"system:masters"\n')
    openssl = ["openssl", "genrsa", "-out", str(directory / "sa.key"), "2048"]
    subprocess.run(openssl, check=True, capture_output=True)
    etcd = f"http://127.0.0.1:{store}"
    servers = [
        [programs / "etcd", "--data-dir", directory / "etcd", "--listen-client-urls", etcd,
         "--advertise-client-urls", etcd, "--listen-peer-urls", f"http://127.0.0.1:{peer}",
         "--log-level", "error"],
        [programs / "kube-apiserver", "--etcd-servers", etcd, "--secure-port", str(port),
         "--bind-address", "127.0.0.1", "--cert-dir", directory / "certs",
         "--service-account-key-file", directory / "sa.key",
         "--service-account-signing-key-file", directory / "sa.key",
         "--service-account-issuer", "https://kubernetes.default.svc",
         "--token-auth-file", directory / "tokens.csv", "--authorization-mode", "RBAC",
         # Without controllers nobody makes the service accounts that it asks for.
         "--disable-admission-plugins", "ServiceAccount"],
    ]  # fmt: skip

    def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        command = [programs / "kubectl", "--server", f"https://127.0.0.1:{port}", "--token", _TOKEN,
                   "--insecure-skip-tls-verify", *arguments]  # fmt: skip
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, timeout=300,
            env={**os.environ, "HOME": str(directory)},
        )  # fmt: skip

    with contextlib.ExitStack() as stack:
        for command in servers:
            log = stack.enter_context((directory / "servers.log").open("ab"))
            process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
        deadline = time.monotonic() + 300
        while run("get", "--raw", "/readyz").returncode:
            assert time.monotonic() < deadline, (directory / "servers.log").read_text()[-3000:]
            time.sleep(1)
        _prepare(run, directory)
        yield run


def _prepare(run: Kubectl, directory: Path) -> None:
    for name, pattern in CRDS.items():
        for path in sorted(module(name).glob(pattern)):
            done = run("create", "-f", path)
            assert done.returncode == 0, done.stderr
    names = {each["metadata"]["name"]: each for overlay in OVERLAYS for each in built(overlay)
             if each["kind"] == "Namespace"}  # fmt: skip
    for name in ("cert-manager", "envoy-gateway-system"):  # whose own installation makes them
        names[name] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    path = directory / "namespaces.yaml"
    path.write_text(yaml.safe_dump_all(names.values()))
    deadline = time.monotonic() + 60
    while (done := run("apply", "-f", path)).returncode or _unknown(run):
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)


def _unknown(run: Kubectl) -> bool:
    """Whether a custom resource is not served yet."""
    return not set(run("api-resources", "-o", "name").stdout.split()) >= _CUSTOM


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_is_taken(kubectl, overlay):
    """By the server's own validation, rules in CEL included, and without a warning: none about a
    field, none about the level `restricted`."""
    assert taken(kubectl, KUBERNETES / "overlays" / overlay) == len(built(overlay))


def taken(kubectl: Kubectl, path: Path) -> int:
    """How many objects of a kustomization the server takes: all, and without a word."""
    done = kubectl("apply", "--dry-run=server", "--validate=strict", "-k", path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return len(done.stdout.splitlines())


@pytest.mark.parametrize("platform", ["istio", "envoy-gateway"])
def test_a_mesh_is_taken(kubectl, platform):
    """What is for Istio's and Envoy Gateway's own resources, by their rules."""
    path = KUBERNETES.parent / platform
    assert taken(kubectl, path) == len(build(path)) > 3


CHARTS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: charts}
spec:
  selector: {matchLabels: {app: charts}}
  template:
    metadata: {labels: {app: charts}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: charts
          image: charts
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"""


@pytest.mark.parametrize("platform", ["kubernetes", "istio", "envoy-gateway"])
def test_what_init_writes_is_taken(kubectl, tmp_path, platform):
    """The namespaces and secrets first, as its next steps say; then everything."""
    site = tmp_path / "site"
    issuer = "https://idp.example.org"
    manifests = tmp_path / "charts.yaml"
    manifests.write_text(CHARTS)
    done = CliRunner().invoke(program(), [
        "init", "--platform", platform, "--name", "charts",
        "--namespace", f"charts-{platform}", "--authz-namespace", f"audit-{platform}",
        "--image", "registry.example.org/authz:0.1.0", "--jwks", f"{issuer}/keys",
        "--issuer", issuer, "--clickhouse", "ch-1.example.org:9440", "--yes", "--json", str(site),
        *(("--durability", "receiver") if platform == "kubernetes" else ()),
        *(("--manifests", str(manifests)) if platform == "istio" else ()),
    ])  # fmt: skip
    assert done.exit_code == 0, done.exception or done.output
    told = json.loads(done.stdout)
    steps = "\n".join(str(step) for step in told["next"])
    assert steps.index("kubectl apply -k secrets") < steps.index("kubectl apply -k .")
    done = kubectl("apply", "-k", site / "secrets")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert taken(kubectl, site) == len(build(site)) > 10


ROOT = {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]}, "runAsUser": 0,
        "runAsGroup": 0, "runAsNonRoot": False, "allowPrivilegeEscalation": False}  # fmt: skip
USER = {"capabilities": {"drop": ["ALL"]}, "runAsUser": 1337, "runAsGroup": 1337,
        "runAsNonRoot": True, "allowPrivilegeEscalation": False}  # fmt: skip


@pytest.mark.parametrize(("context", "taken"), [(ROOT, False), (USER, True)], ids=["init", "cni"])
def test_istio_without_its_cni_plugin(kubectl, tmp_path, context, taken):
    """docs/istio.md asks for the plugin: a pod of the example with the container that Istio's
    injection adds is refused without it, and taken with it, where that container only checks."""
    [workload] = [one for one in pods(built("on-disk")) if one.name == "fhir"]
    injected = {"name": "istio-init", "image": "istio/proxyv2", "securityContext": context}
    spec = workload.spec | {"initContainers": [injected, *workload.spec["initContainers"]]}
    meta = {"name": "injected", "namespace": workload.namespace}
    path = tmp_path / "pod.yaml"
    path.write_text(
        yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    )
    done = kubectl("apply", "--dry-run=server", "-f", path)
    assert (done.returncode == 0) == taken, done.stderr
    assert taken or 'violates PodSecurity "restricted' in done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_can_be_applied_again(kubectl, overlay):
    """What the server makes of it is what was meant: applied once more, nothing changes."""
    path = KUBERNETES / "overlays" / overlay
    versions = []
    for _ in range(2):
        done = kubectl("apply", "-k", path)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        told = json.loads(kubectl("get", "-k", path, "-o", "json").stdout)["items"]
        metadata = [each["metadata"] for each in told]
        versions.append({(one["name"], one["uid"]): one["resourceVersion"] for one in metadata})
    assert versions[0] == versions[1] != {}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("runAsNonRoot: true", "runAsNonRoot: false", "would violate PodSecurity"),
        ("terminationGracePeriodSeconds", "terminationGraceSeconds", "unknown field"),
        ("internalTrafficPolicy: Local", "internalTrafficPolicy: Node", "Unsupported value"),
        ("rotationPolicy: Always", "rotationPolicy: Often", "Unsupported value"),
    ],
)
def test_what_is_wrong_would_be_seen(kubectl, tmp_path, old, new, told):
    """A pod that is not restricted, a field that nobody knows, a value that is none."""
    text = yaml.safe_dump_all(built("opa-per-node"))
    assert old in text
    path = tmp_path / "wrong.yaml"
    path.write_text(text.replace(old, new))
    done = kubectl("apply", "--dry-run=server", "--validate=strict", "-f", path)
    assert told in done.stderr


@pytest.mark.parametrize("namespace", ["authz", "fhir"])
@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("get", "secrets"), ("list", "pods"), ("create", "pods"), ("create", "pods/exec"),
        ("update", "configmaps"), ("create", "certificaterequests.cert-manager.io"),
        ("create", "tokenreviews"),
    ],
)  # fmt: skip
def test_what_the_pods_may_ask_of_the_cluster(kubectl, namespace, verb, what):
    """Nothing: their service account is the namespace's own, no role is bound to it, and no token
    of it is mounted."""
    for overlay in OVERLAYS:
        kinds = {each["kind"] for each in built(overlay)}
        assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & kinds
    account = f"--as=system:serviceaccount:{namespace}:default"
    done = kubectl("auth", "can-i", verb, what, "-n", namespace, account)
    assert done.stdout.strip() == "no"
