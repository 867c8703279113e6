"""Manifests held against the schemas of what they are for, by kubeconform, strictly.

Kubernetes' own schemas come out of the PyPI package kubernetes-validate, those of custom resources
out of the CRDs in the Go modules of their makers. Made once, and kept in ~/.cache/authz-schemas.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

KUBERNETES = "1.37.0"
KUBECONFORM = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"
CRDS = {
    "istio.io/api@v1.31.1": "kubernetes/customresourcedefinitions.gen.yaml",
    "github.com/envoyproxy/gateway@v1.9.1": (
        "charts/gateway-helm/charts/crds/crds/generated/*.yaml"
    ),
    "sigs.k8s.io/gateway-api@v1.6.3": "config/crd/standard/*.yaml",
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd/*.yaml"
    ),
}

_GO_BIN = Path.home() / "go" / "bin"


def kubeconform(paths: Iterable[Path]) -> list[str]:
    """What is wrong with the manifests in these files; empty if nothing is."""
    made = _schemas()
    done = subprocess.run(
        [
            go_program("kubeconform", KUBECONFORM), "-strict", "-output", "json",
            "-kubernetes-version", KUBERNETES,
            "-schema-location", f"{made}/core/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
            "-schema-location",
            f"{made}/custom/{{{{.Group}}}}/{{{{.ResourceKind}}}}_{{{{.ResourceAPIVersion}}}}.json",
            *map(str, paths),
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    told = json.loads(done.stdout)["resources"]
    wrong = [f"{one['filename']}: {one['kind']}: {one['msg']}" for one in told or ()]
    assert bool(wrong) == bool(done.returncode), done.stderr
    return wrong


def go_program(name: str, source: str) -> str:
    """A program that `go install` brings. Without it its tests are skipped, and in CI that is a
    failure."""
    found = shutil.which(name) or shutil.which(name, path=str(_GO_BIN))
    if found is None:
        _lacking(f"needs {name}: go install {source}")
    return str(found)


def module(name: str) -> Path:
    """The directory of a Go module, `path@version`, fetched if it is not there yet."""
    go = shutil.which("go")
    if go is None:
        _lacking("needs Go 1.25 or later: https://go.dev/doc/install")
    done = subprocess.run(
        [str(go), "mod", "download", "-json", name],
        capture_output=True, text=True, check=False, timeout=300,
        cwd=tempfile.gettempdir(),  # outside any module
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(json.loads(done.stdout)["Dir"])


def _lacking(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _schemas() -> Path:
    """The directory with all schemas, `core/` and `custom/<group>/`."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    kept = Path.home() / ".cache" / "authz-schemas" / key
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=kept.parent))
        _core(fresh / "core")
        for name, pattern in CRDS.items():
            for path in sorted(module(name).glob(pattern)):
                _custom(fresh / "custom", path)
        try:
            fresh.rename(kept)
        except OSError:  # another one was quicker
            shutil.rmtree(fresh)
    return kept


def _core(out: Path) -> None:
    out.mkdir()
    package = Path(kubernetes_validate.__file__).parent
    for path in (package / "kubernetes-json-schema" / f"v{KUBERNETES}-local-strict").glob("*.json"):
        text = path.read_text().replace("/api/_definitions.json#", "_definitions.json#")
        schema = json.loads(text)
        schema.pop("$id", None)  # references are to the files beside it
        (out / path.name).write_text(json.dumps(schema))


def _custom(out: Path, crds: Path) -> None:
    # A line of a Helm template is no YAML.
    text = re.sub(r"^\s*\{\{.*\}\}\s*$", "", crds.read_text(), flags=re.MULTILINE)
    for crd in yaml.load_all(text, _Loader):
        if not crd or crd["kind"] != "CustomResourceDefinition":
            continue
        spec = crd["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            for part in _parts(schema):
                _close(part)
            ours = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
            schema["properties"] |= {**ours, "metadata": {"type": "object"}}
            schema["additionalProperties"] = False
            name = f"{spec['names']['kind'].lower()}_{version['name']}.json"
            path = out / spec["group"] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(schema))


class _Loader(yaml.CSafeLoader):
    """PyYAML has no reading of a plain `=`, which some descriptions are."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _, node: node.value)


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema and those of all that it holds."""
    yield schema
    inner = [schema.get("items"), schema.get("additionalProperties")]
    for name in ("properties", "patternProperties"):
        inner += schema.get(name, {}).values()
    for part in inner:
        if isinstance(part, dict):
            yield from _parts(part)


def _close(schema: dict[str, Any]) -> None:
    """What Kubernetes says in ways of its own, as JSON Schema; unknown fields are refused."""
    if schema.get("x-kubernetes-int-or-string"):
        for name in ("type", "anyOf", "format"):
            schema.pop(name, None)
        schema["oneOf"] = [{"type": "string"}, {"type": "integer"}]
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    if schema.get("properties") and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
