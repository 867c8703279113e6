"""deploy/istio, deploy/envoy-gateway and deploy/systemd, each held against what its platform says
of itself."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from istio import DIRECTORY as ISTIO
from istio import Mesh
from manifests import kubeconform
from programs import program

from authz.config import load
from authz.demo.stack import deploy_dir

GATEWAY = deploy_dir() / "envoy-gateway"
UNITS = deploy_dir() / "systemd" / "units"
INTEROP = Path(__file__).parents[1] / "interop"


def resources(directory: Path) -> list[Path]:
    """The files that kustomize applies."""
    text = (directory / "kustomization.yaml").read_text()
    return [directory / name for name in yaml.safe_load(text)["resources"]]


def documents(directory: Path) -> list[dict]:
    return [one for path in resources(directory) for one in yaml.safe_load_all(path.read_text())]


def one(kind: str) -> dict:
    [found] = [document for document in documents(GATEWAY) if document["kind"] == kind]
    return found["spec"]


@pytest.mark.parametrize("directory", [ISTIO, GATEWAY], ids=lambda path: path.name)
def test_schemas(directory):
    """Every resource is one that its maker's schema takes, with no field that it does not know; no
    file is left out."""
    assert kubeconform(resources(directory)) == []
    others = {"kustomization.yaml", "authz.yaml", "mesh.yaml"}
    assert {path.name for path in directory.glob("*.yaml")} - others == {
        path.name for path in resources(directory)
    }


@pytest.mark.parametrize("name", ["istio", "envoy-gateway", "systemd"])
def test_our_own_configuration(name):
    """It is one that the program takes; where ext_authz comes first, it verifies tokens itself."""
    loaded = load(deploy_dir() / name / "authz.yaml")
    assert list(loaded.identity.sources) == (["jwt_authn"] if name == "systemd" else ["jwt"])


@pytest.fixture(scope="session")
def meshcheck(tmp_path_factory) -> Path:
    built = tmp_path_factory.mktemp("meshcheck") / "meshcheck"
    command = [program("go", "golang"), "build", "-o", str(built), "./meshcheck"]
    subprocess.run(command, cwd=INTEROP, check=True, timeout=600)
    return built


def test_mesh_config(meshcheck):
    """Istio reads all of mesh.yaml, and a misspelt key it would not."""
    text = (ISTIO / "mesh.yaml").read_text()

    def read(given: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([meshcheck], input=given, capture_output=True, text=True, check=False)

    done = read(text)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    providers = {provider["name"]: provider for provider in told["extensionProviders"]}
    asked = providers["authz"]["envoyExtAuthzGrpc"]
    assert not asked.get("failOpen")
    assert (asked["statusOnError"], float(asked["timeout"].removesuffix("s"))) == ("503", 0.25)
    assert told["pathNormalization"] == {"normalization": "MERGE_SLASHES"}
    done = read(text.replace("failOpen:", "failopen:"))
    assert done.returncode == 1
    assert "failopen" in done.stderr


def test_istio_fits_together():
    """What resources name is there: providers with names that Istio takes, the ServiceEntry behind
    ext-authz; and the policy leaves no request out."""
    mesh = Mesh()
    asked = mesh.provider("authz", "envoyExtAuthzGrpc")
    entry = mesh.one("ServiceEntry")["spec"]
    assert entry["hosts"] == [asked["service"]]
    assert [port["number"] for port in entry["ports"]] == [asked["port"]]
    policy = mesh.one("AuthorizationPolicy")["spec"]
    assert policy == {"action": "CUSTOM", "provider": {"name": "authz"}, "rules": [{}]}
    [logging] = mesh.one("Telemetry")["spec"]["accessLogging"]
    told = mesh.provider(logging["providers"][0]["name"], "envoyHttpAls")
    assert {"authorization", "cookie"}.isdisjoint(told["additionalRequestHeadersToLog"])
    names = [provider["name"] for provider in mesh.config["extensionProviders"]]
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in names)


def removed() -> tuple[set[str], set[str]]:
    """The headers that deploy/envoy takes from clients: by how they begin, and whole."""
    text = (deploy_dir() / "envoy" / "envoy.yaml").read_text()
    document = yaml.safe_load(re.sub(r"\$\{\w+\}", "1", text))
    chain = document["static_resources"]["listeners"][0]["filter_chains"][0]
    return _mutations(chain["filters"][0]["typed_config"]["http_filters"][0])


def _mutations(header_mutation: dict) -> tuple[set[str], set[str]]:
    changes = header_mutation["typed_config"]["mutations"]["request_mutations"]
    begin = {change["remove_on_match"]["key_matcher"]["prefix"] for change in changes
             if "remove_on_match" in change}  # fmt: skip
    return begin, {change["remove"] for change in changes if "remove" in change}


def test_clients_headers():
    """The three ways to run Envoy take the same headers from clients."""
    patches = Mesh().one("EnvoyFilter")["spec"]["configPatches"]
    [first] = [one["patch"] for one in patches if one["patch"]["operation"] == "INSERT_FIRST"]
    assert _mutations(first["value"]) == removed()
    taken = one("ClientTrafficPolicy")["headers"]["earlyRequestHeaders"]
    assert all(match["type"] == "Prefix" for match in taken["removeOnMatch"])
    begin = {match["value"] for match in taken["removeOnMatch"]}
    assert (begin, set(taken["remove"])) == removed()


def test_envoy_gateway_fits_together():
    """It asks about every route, is closed without an answer, and may reach what it names."""
    policy = one("SecurityPolicy")
    [gateway] = [doc for doc in documents(GATEWAY) if doc["kind"] == "Gateway"]
    [target] = policy["targetRefs"]
    assert (target["kind"], target["name"]) == ("Gateway", gateway["metadata"]["name"])
    asked = policy["extAuth"]
    assert (asked["failOpen"], asked["statusOnError"], asked["timeout"]) == (False, 503, "250ms")
    assert "bodyToExtAuth" not in asked
    [setting] = one("EnvoyProxy")["telemetry"]["accessLog"]["settings"]
    [sink] = setting["sinks"]
    backends = [*asked["grpc"]["backendRefs"], *sink["als"]["backendRefs"]]
    granted = {target["name"] for target in one("ReferenceGrant")["to"]}
    assert {backend["name"] for backend in backends} == granted
    believed = {
        doc["spec"]["targetRefs"][0]["name"]
        for doc in documents(GATEWAY) if doc["kind"] == "BackendTLSPolicy"
    }  # fmt: skip
    assert believed == granted


@pytest.fixture
def units(tmp_path) -> list[Path]:
    """Our units, with programs that are there."""
    directory = tmp_path / "units"
    shutil.copytree(UNITS, directory)
    there = shutil.which("true")
    for path in directory.glob("*.service"):
        text = re.sub(r"/(?:opt/authz|usr/local)/bin/[\w.]+", str(there), path.read_text())
        path.write_text(text)
    return sorted([*directory.glob("*.service"), *directory.glob("*.timer")])


def test_units(units):
    """systemd has nothing to say against them."""
    analyze = program("systemd-analyze", "systemd")
    done = subprocess.run(
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_exposure(units):
    """How much each leaves open, by systemd's own reckoning (0 to 10); a unit without anything
    has 9.6."""
    analyze = program("systemd-analyze", "systemd")
    for unit in units:
        if unit.suffix == ".service":
            command = [analyze, "security", "--offline=true", "--threshold=14", str(unit)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-300:]


def test_what_units_need(units):
    """Whatever user, group or file a unit names is one that the guide has made."""
    guide = (deploy_dir().parent / "docs" / "bare-hosts.md").read_text()
    users = (deploy_dir() / "systemd" / "sysusers.conf").read_text()
    for unit in units:
        text = unit.read_text()
        for name in re.findall(r"^(?:User|SupplementaryGroups)=(\S+)$", text, re.MULTILINE):
            assert re.search(rf"^u {name} ", users, re.MULTILINE), name
        for path in re.findall(r"/etc/authz/[\w./-]+", text):
            assert Path(path).name in guide, path


def test_users_are_their_own():
    """No two services that run for long share a user."""
    services = list(UNITS.glob("*.service"))
    text = "".join(path.read_text() for path in services)
    users = re.findall(r"^User=(\S+)$", text, re.MULTILINE)
    assert len(users) == len(set(users)) == len(services)
