"""deploy/kubernetes: each overlay is valid, closed, and says only what the programs understand."""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from certificates import Certificates
from kustomized import KUBERNETES, OVERLAYS, Object, Pod, build, built, pod, pods
from manifests import kubeconform
from pages import block
from programs import CHECKOUT
from programs import program as wanted
from typer.testing import CliRunner

from authz import config
from authz.cli import program
from authz.demo.people import Keys

SIDECARS = ["opa", "privacy-key", "ext-authz", "envoy-config", "envoy", "envoy-drain"]
README = KUBERNETES / "README.md"
ALERTS = KUBERNETES / "components" / "monitoring" / "alerts.yaml"

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


@overlays
def test_schemas(overlay, tmp_path):
    """Kubernetes, cert-manager and the Prometheus operator know each field."""
    path = tmp_path / f"{overlay}.yaml"
    path.write_text(yaml.safe_dump_all(built(overlay)))
    assert kubeconform([path]) == []


@overlays
def test_containers_are_closed(overlay):
    """No container can become root, write to its image, use a capability or the cluster's API; each
    has its bounds."""
    for one in pods(built(overlay)):
        assert one.spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(one.spec)
        assert not [volume for volume in one.spec["volumes"] if "hostPath" in volume]
        of_pod = one.spec.get("securityContext", {})
        for container in one.containers:
            context = of_pod | container["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] > 100
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ("demo", ["people", *SIDECARS]),
        ("autoscaled", SIDECARS),
        ("opa-per-node", SIDECARS[1:]),
        ("on-disk", SIDECARS[3:]),
    ],
)
def test_neither_end_of_a_pods_life_goes_unrecorded(overlay, expected):
    """What decides and records is up before Envoy takes a request, and goes after it: sidecars
    start in their order, each when the one before has started, and end in the opposite one. The
    drain is the last of them, so Envoy is not told to stop before all that it knows is sent."""
    one = pod(overlay, "fhir")
    assert [each["name"] for each in one.spec["initContainers"]] == expected
    for container in one.spec["initContainers"]:
        stays = container["name"] in ("opa", "ext-authz", "envoy", "envoy-drain")
        assert container.get("restartPolicy") == ("Always" if stays else None)
        assert ("startupProbe" in container) == (stays and container["name"] != "envoy-drain")
    drain = one.container("envoy-drain")["lifecycle"]["preStop"]["exec"]["command"]
    assert drain[:2] == ["drain.sh", "/run/envoy/admin.sock"]
    drained = int(drain[2])
    assert one.spec["terminationGracePeriodSeconds"] >= drained + 20
    envoy = one.command(one.container("envoy"))
    takes = int(envoy[envoy.index("--drain-time-s") + 1])
    assert takes < drained
    # The application serves on for as long as Envoy takes requests.
    assert one.container("fhir")["lifecycle"]["preStop"]["sleep"]["seconds"] > takes


@overlays
def test_configurations(overlay, tmp_path, monkeypatch):
    """Each command line and each configuration, with the container's environment over it, is one
    that the program takes; what it says of ports is what the manifest says."""
    seen = set()
    for one in pods(built(overlay)):
        for container in one.containers:
            if "authz:" not in container["image"] or "command" in container:
                continue
            words = one.command(container)
            done = CliRunner().invoke(program(), [*words, "--help"])
            assert done.exit_code == 0, done.output
            if "--config" not in words:
                continue
            loaded = configuration(one, container, tmp_path, monkeypatch)
            section = words[1] if words[0] == "serve" else words[0]
            options = getattr(loaded, section.replace("-", "_"))
            listens = {"metrics": options.metrics, "grpc": getattr(options, "listen", "")}
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for name in listens.keys() & ports:
                assert listens[name] == f"0.0.0.0:{ports[name]}"
            seen.add(section)
    assert {"receiver", "console", "watch", "ext-authz"} == seen


def configuration(
    one: Pod, container: Object, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> config.Config:
    """What the container's program has, from its ConfigMap and its environment."""
    [name] = [
        volume["configMap"]["name"]
        for volume in one.spec["volumes"]
        if volume["name"] in ("config", "authz-config")
    ]
    held = one.object("ConfigMap", name)
    assert held
    path = directory / "authz.yaml"
    path.write_text(held["data"]["authz.yaml"])
    with monkeypatch.context() as patched:
        for variable, value in one.environment(container).items():
            if "/store" not in value:  # a secret that is not here
                patched.setenv(variable, value)
        return config.load(path)


@overlays
def test_envoys(overlay, tmp_path, monkeypatch):
    """The bootstrap that is made in the pod is accepted by Envoy without a deprecated field, and by
    the doctor, beside the configuration of the ext-authz that it asks."""
    one = pod(overlay, "fhir")
    container = one.container("envoy-config")
    (tmp_path / "jwks.json").write_text(json.dumps(Keys().jwks()))
    for variable, value in one.environment(container).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("JWKS_FILE", str(tmp_path / "jwks.json"))
    if "ENVOY_TLS" in os.environ:
        monkeypatch.setenv("ENVOY_TLS", str(mounted(tmp_path)))
    command = one.command(container)
    assert command == ["envoy-config", "-o", "/run/envoy/envoy.yaml"]
    path = tmp_path / "envoy.yaml"
    done = CliRunner().invoke(program(), ["envoy-config", "-o", str(path)])
    assert done.exit_code == 0, done.exception or done.output
    shared = overlay == "on-disk"
    asked = pod(overlay, "ext-authz") if shared else one
    name = "ext-authz" if shared else "authz-sidecar"
    [text] = [
        each["data"]["authz.yaml"]
        for each in asked.found
        if each["kind"] == "ConfigMap" and re.fullmatch(rf"{name}-\w+", each["metadata"]["name"])
    ]
    (tmp_path / "authz.yaml").write_text(text)
    judged = CliRunner().invoke(
        program(),
        ["doctor", "--json", "--envoy-config", str(path), "--config", str(tmp_path / "authz.yaml")],
    )
    findings = json.loads(judged.stdout)["findings"]
    assert findings
    # The certificates are in the pod alone.
    here = [found for found in findings if "cannot be read here" not in found["seen"]]
    assert [found for found in here if found["level"] != "ok"] == []


def mounted(directory: Path) -> Path:
    """A directory as a certificate's secret makes it."""
    cert, key = Certificates(directory).issue("fhir.fhir.svc")
    made = directory / "tls"
    made.mkdir()
    for source, name in ((cert, "tls.crt"), (key, "tls.key"), (directory / "ca.pem", "ca.crt")):
        shutil.copy(source, made / name)
    return made


@overlays
def test_what_is_named_is_there(overlay):
    """Every ConfigMap and Secret that a pod names is in the overlay, comes of a Certificate, or is
    in the README's list of what a site brings along."""
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", README.read_text(), re.MULTILINE))
    for one in pods(built(overlay)):
        issued = {
            each["spec"]["secretName"]
            for each in one.found
            if each["kind"] == "Certificate" and each["metadata"]["namespace"] == one.namespace
        }
        missing = {
            name
            for kind, name in references(one.spec)
            if not one.object(kind, name) and name not in issued
        }
        assert missing <= (set() if overlay == "demo" else listed)


def test_what_a_site_brings(tmp_path):
    """The README's commands make objects of the names, the keys and the kinds that its list has."""
    wanted("kubectl", "kubernetes-client")
    dry = 'kubectl() { echo ---; command kubectl "$@" --dry-run=client -o yaml; }\n'
    (tmp_path / "jwks.json").write_text('{"keys": []}')
    done = subprocess.run(
        ["sh", "-eu", "-c", dry + block("deploy/kubernetes/README.md", "kubectl")], cwd=tmp_path,
        env=os.environ | {"KUBECONFIG": "/dev/null"}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = list(filter(None, yaml.safe_load_all(done.stdout)))
    assert len(made) > 1
    for one in made:
        [(key, content)] = one["data"].items()
        row = f"| `{one['metadata']['name']}` | {one['kind']} | `{key}`"
        assert row in README.read_text()
        if key == "privacy.key":
            assert re.fullmatch(r"[0-9a-f]{64}", base64.b64decode(content).decode())


def references(value: object) -> Iterator[tuple[str, str]]:
    """The ConfigMaps and Secrets that are named in a pod's spec."""
    if isinstance(value, list):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("configMap", "configMapRef") and not item.get("optional"):
                yield "ConfigMap", item["name"]
            elif key == "secret":
                yield "Secret", item["secretName"]
            elif key == "secretKeyRef":
                yield "Secret", item["name"]
            else:
                yield from references(item)


@overlays
def test_ports_lead_somewhere(overlay):
    """A port that a Service, a policy of the network or a monitor names is one of the pods that it
    selects."""
    found = built(overlay)
    workloads = [one for one in pods(found) if one.name != "migrate"]

    def selected(namespace: str, labels: dict[str, str]) -> set[str]:
        return {
            port["name"]
            for one in workloads
            if one.namespace == namespace and labels.items() <= one.labels.items()
            for container in one.containers
            for port in container.get("ports", [])
        }

    for one in found:
        namespace, name = one["metadata"].get("namespace", ""), one["metadata"]["name"]
        if one["kind"] == "Service":
            there = selected(namespace, one["spec"]["selector"])
            for port in one["spec"]["ports"]:
                assert port.get("targetPort", port["name"]) in there, name
        if one["kind"] == "NetworkPolicy":
            there = selected(namespace, one["spec"]["podSelector"].get("matchLabels", {}))
            named = {
                port["port"]
                for rule in one["spec"].get("ingress", [])
                for port in rule["ports"]
                if isinstance(port["port"], str)
            }
            assert named - {"metrics", "opa-metrics"} <= there, name


@overlays
def test_writers_believe_the_receiver(overlay):
    """Each pod that writes calls the receiver by a name that is in its certificate, in a form that
    gRPC takes: a `*` stands for one label before two or more."""
    found = built(overlay)
    issued = [
        name
        for one in found
        if one["kind"] == "Certificate" and one["spec"]["secretName"] == "receiver-tls"
        for name in one["spec"]["dnsNames"]
    ]
    assert bool(issued) == (overlay != "demo")
    writers = 0
    for one in pods(found):
        for container in one.containers:
            address = one.environment(container).get("AUTHZ_EXT_AUTHZ__RECEIVER")
            if address is None:
                continue
            writers += 1
            host = address.rpartition(":")[0]
            assert host.startswith("receiver-0.receiver.")
            assert f".{receiver_of(found)}.svc" in host
            wild = "*." + host.partition(".")[2]
            assert not issued or host in issued or (wild in issued and wild.count(".") > 1)
    assert writers >= 3


def receiver_of(found: tuple[Object, ...]) -> str:
    """The namespace that the receiver is in."""
    [one] = [one for one in pods(found) if one.name == "receiver"]
    return one.namespace


@overlays
def test_what_keeps_it_up(overlay):
    """Each server is asked how it is, those that others call whether they may; where there may be
    several, one goes at a time; and the monitoring finds all metrics."""
    found = built(overlay)
    budgets = {
        one["metadata"]["name"]: one["spec"]
        for one in found
        if one["kind"] == "PodDisruptionBudget"
    }
    monitors = [one["spec"] for one in found if one["kind"] == "PodMonitor"]
    assert len(monitors) == (overlay != "demo")
    for one in pods(found):
        if one.name in ("fhir", "receiver", "ext-authz"):
            assert budgets[one.name]["selector"]["matchLabels"].items() <= one.labels.items()
        for container in one.containers:
            ports = {port["name"] for port in container.get("ports", [])}
            asked = {name for name in container if name.endswith("Probe")}
            if ports and (overlay, one.name) != ("demo", "console"):  # that listens on loopback
                assert asked >= {"startupProbe", "livenessProbe"}, one.name
                clients = ports - {"metrics", "opa-metrics", "native"}
                assert "readinessProbe" in asked or not clients, one.name
            words = one.command(container)
            if any(word.startswith("--tls-cert-file") for word in words):
                # OPA would have its probes and its metrics over TLS too.
                assert "--diagnostic-addr=http://0.0.0.0:8282" in words
            for monitor in monitors:
                named = {each["port"] for each in monitor["podMetricsEndpoints"]}
                told = {name for name in ports if "metrics" in name}
                chosen = monitor["selector"]["matchLabels"].items() <= one.labels.items()
                assert told <= named
                assert chosen or not told, one.name


def test_an_application_of_ones_own(tmp_path):
    """One line gives a Deployment that knows nothing of authz its sidecars; what is its own stays
    as it is."""
    (tmp_path / "deployment.yaml").write_text("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: charts}
spec:
  selector: {matchLabels: {app: charts}}
  template:
    metadata: {labels: {app: charts}}
    spec:
      initContainers: [{name: schema, image: charts}]
      containers: [{name: charts, image: charts, volumeMounts: [{name: tls, mountPath: /tls}]}]
      volumes: [{name: tls, secret: {secretName: charts}}]
""")
    component = KUBERNETES / "components" / "sidecar"
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [deployment.yaml]\nnamespace: charts\n"
        "configMapGenerator: [{name: authz-values, literals: [SERVICE_PORT=80]}]\n"
        f"components: [{os.path.relpath(component, tmp_path)}]\n"
    )
    [one] = pods(build(tmp_path))
    assert [each["name"] for each in one.spec["initContainers"]] == [*SIDECARS, "schema"]
    [own] = one.spec["containers"]
    assert own == {
        "name": "charts", "image": "charts", "volumeMounts": [{"name": "tls", "mountPath": "/tls"}]
    }  # fmt: skip
    names = [volume["name"] for volume in one.spec["volumes"]]
    assert len(names) == len(set(names))
    assert {"name": "tls", "secret": {"secretName": "charts"}} in one.spec["volumes"]


def test_the_sample_policy_is_whole():
    """The ConfigMap of the demo has every file of the policy, and no test of it."""
    directory = CHECKOUT / "deploy" / "opa"
    [generator] = yaml.safe_load((directory / "kustomization.yaml").read_text())[
        "configMapGenerator"
    ]
    rego = {path.name for path in directory.glob("*.rego") if not path.name.endswith("_test.rego")}
    assert set(generator["files"]) == rego | {"data.json"}


def test_who_may_ask_the_nodes_opa(opa):
    """Decisions and the policy's text, and nothing else: OPA's own rules about itself hold what
    their tests say."""
    directory = KUBERNETES / "opa-node"
    rego = sorted(directory.glob("*.rego"))
    for command in (["check", "--strict"], ["fmt", "--fail", "--list"], ["test"]):
        done = subprocess.run(
            [opa, *command, *rego], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts():
    """The Prometheus operator is given the alerts of deploy/prometheus."""
    rules = yaml.safe_load((CHECKOUT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    path = ALERTS.relative_to(CHECKOUT)
    assert yaml.safe_load(ALERTS.read_text())["spec"] == rules, f"run: make {path}"
