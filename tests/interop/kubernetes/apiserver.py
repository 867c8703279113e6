"""deploy/kubernetes, asked of Kubernetes itself: a real API server, with a real etcd, takes each
overlay. They are built of their Go modules, once, which takes minutes: `make kubernetes`.
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
from kustomized import KUBERNETES, OVERLAYS, built
from manifests import CRDS, module
from programs import free_port, program

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

Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def programs() -> Path:
    """A directory with all three."""
    go = program("go", "golang")
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
        if "cert-manager" in name or "prometheus-operator" in name:
            for path in sorted(module(name).glob(pattern)):
                done = run("create", "-f", path)
                assert done.returncode == 0, done.stderr
    names = {each["metadata"]["name"]: each for overlay in OVERLAYS for each in built(overlay)
             if each["kind"] == "Namespace"}  # fmt: skip
    names["cert-manager"] = {
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cert-manager"}
    }  # fmt: skip
    path = directory / "namespaces.yaml"
    path.write_text(yaml.safe_dump_all(names.values()))
    deadline = time.monotonic() + 60
    while (done := run("apply", "-f", path)).returncode or _unknown(run):
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)


def _unknown(run: Kubectl) -> bool:
    """Whether a custom resource is not served yet."""
    kinds = run("api-resources", "-o", "name").stdout
    return not {"certificates.cert-manager.io", "podmonitors.monitoring.coreos.com"} <= set(
        kinds.split()
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_is_taken(kubectl, overlay):
    """By the server's own validation, rules in CEL included, and without a warning: none about a
    field, none about the level `restricted`."""
    path = KUBERNETES / "overlays" / overlay
    done = kubectl("apply", "--dry-run=server", "--validate=strict", "-k", path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == len(built(overlay))


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
