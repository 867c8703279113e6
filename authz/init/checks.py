"""What was written is looked at, with the programs that will read it where they are at hand."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml

from authz.config import load
from authz.demo.people import Keys
from authz.demo.stack import envoy_program
from authz.doctor import Level, bootstrap
from authz.errors import UnavailableError, UsageError
from authz.init.answers import Answers, Platform
from authz.init.plan import shipped
from authz.policy.examine import examine
from authz.policy.opa import OpaOptions

_SECONDS = 120
_FETCH_SECONDS = 15  # without a network, kubeconform tries for long to get schemas
_DECISION = "envoy/authz/allow"
_PROGRAMS = re.compile(r"/(?:opt/authz|usr/local)/bin/[\w.]+")


class State(StrEnum):
    """What came of a check."""

    OK = "ok"
    FAILED = "failed"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, by what, and what there is to say."""

    what: str
    state: State
    told: str


class _NotHereError(Exception):
    """It cannot be looked at on this host; the text says why."""


def check(answers: Answers, directory: Path) -> Iterator[Check]:
    """Each check of what was written into `directory`, as soon as it is done."""
    looks: dict[str, Callable[[Answers, Path], str]] = {"configuration": _configuration}
    if not answers.policy.startswith("https://"):
        looks["policy"] = _policy
    if answers.platform in (Platform.KUBERNETES, Platform.BARE_HOSTS, Platform.LOCAL):
        looks["issuer's keys"] = _keys
        looks["Envoy's bootstrap"] = _envoy
    if answers.platform is Platform.BARE_HOSTS:
        looks["units"] = _units
    if answers.platform in (Platform.KUBERNETES, Platform.ISTIO, Platform.ENVOY_GATEWAY):
        looks["overlay"] = _overlay
        looks["manifests"] = _manifests
    for what, look in looks.items():
        try:
            yield Check(what, State.OK, look(answers, directory))
        except _NotHereError as error:
            yield Check(what, State.UNCHECKED, str(error))
        except (UsageError, UnavailableError) as error:
            failed = isinstance(error, UsageError)
            yield Check(what, State.FAILED if failed else State.UNCHECKED, str(error))


def _configuration(answers: Answers, directory: Path) -> str:
    given: dict[Path, Mapping[str, str]] = {}
    if answers.platform is Platform.BARE_HOSTS:
        given[directory / "etc" / "authz" / "authz.yaml"] = {}
    elif answers.platform is Platform.LOCAL:
        given[directory / "authz.yaml"] = {}
    else:
        vendored = directory / "deploy" / "kubernetes"
        site = _values(directory / "central" / "kustomization.yaml", "authz-site")
        given[vendored / "base" / "authz.yaml"] = site
        given[vendored / "ext-authz" / "authz.yaml"] = site
        if (directory / "app").is_dir():
            values = _values(directory / "app" / "kustomization.yaml", "authz-values")
            given[vendored / "components" / "ext-authz" / "authz.yaml"] = values
    for path, variables in given.items():
        with _environment(variables):
            load(path)
    return "the program takes it"


class _environment:  # noqa: N801 - read as a word
    """Of authz's settings only these, for the moment."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        ours = {name: text for name, text in variables.items() if name.startswith("AUTHZ_")}
        self._wanted = {n: t for n, t in ours.items() if n not in ("AUTHZ_HOST", "AUTHZ_PORT")}

    def __enter__(self) -> None:
        self._before = {n: os.environ.pop(n) for n in list(os.environ) if n.startswith("AUTHZ_")}
        os.environ.update(self._wanted)

    def __exit__(self, *_: object) -> None:
        for name in self._wanted:
            del os.environ[name]
        os.environ.update(self._before)


def _values(path: Path, name: str) -> dict[str, str]:
    """A ConfigMap's, out of the kustomization that makes it."""
    return _literals(path.read_text(), name)


def _literals(text: str, name: str) -> dict[str, str]:
    made = yaml.safe_load(text)["configMapGenerator"]
    [found] = [one["literals"] for one in made if one["name"] == name]
    return dict(line.split("=", 1) for line in found)


def _policy(answers: Answers, directory: Path) -> str:
    inner = "etc/authz/policy" if answers.platform is Platform.BARE_HOSTS else "policy"
    found = asyncio.run(examine(OpaOptions(str(directory / inner)), _DECISION))
    if found.dangers:
        raise UsageError(f"{inner} lets through what no rule allows: authz policy check")
    return f"OPA takes it: {len(found.modules)} modules"


def _jwks(answers: Answers, directory: Path) -> Path:
    places = {Platform.KUBERNETES: "app/jwks.json", Platform.LOCAL: "jwks.json"}
    return directory / places.get(answers.platform, "etc/authz/jwks.json")


def _keys(answers: Answers, directory: Path) -> str:
    path = _jwks(answers, directory)
    found = len(json.loads(path.read_bytes())["keys"])
    if not found:
        raise _NotHereError(f"{path.relative_to(directory)} has none yet; fetch {answers.jwks}")
    return f"{found} of them"


def _envoy(answers: Answers, directory: Path) -> str:
    """Envoy's own word on the bootstrap as it will be rendered, and the doctor's."""
    try:
        program = envoy_program()
    except UsageError:
        program = None
    if answers.platform is Platform.KUBERNETES:
        component = shipped("kubernetes/components/envoy/kustomization.yaml")
        values = _literals(component, "authz-envoy") | {"NODE_ID": "pod"}
        values |= _values(directory / "app" / "kustomization.yaml", "authz-values")
        config = directory / "deploy" / "kubernetes" / "components" / "ext-authz" / "authz.yaml"
    else:
        etc = directory / "etc" / "authz" if answers.platform is Platform.BARE_HOSTS else directory
        lines = (etc / "envoy.env").read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        config = etc / "authz.yaml"
    with tempfile.TemporaryDirectory(prefix="authz-init-") as temporary:
        path = Path(temporary) / "envoy.yaml"
        keys = _jwks(answers, directory).resolve()
        if not json.loads(keys.read_bytes())["keys"]:  # told by the check of them
            keys = Path(temporary) / "jwks.json"
            keys.write_text(json.dumps(Keys().jwks()))
        values["JWKS_FILE"] = str(keys)
        values.setdefault("ADMIN_SOCKET", f"{temporary}/admin.sock")
        plaintext = {"ENVOY_PLAINTEXT": "listener authz receiver"}  # certificates come later
        command = [sys.executable, "-m", "authz", "envoy-config", "--output", str(path)]
        done = _run(command, environment=values | plaintext)
        if done.returncode:
            raise UsageError(_last(done.stderr))
        with _environment({}):
            envoys = bootstrap.in_file(path, load(config))
        found = [finding for envoy in envoys for finding in bootstrap.examine(envoy)]
        found += bootstrap.validated(path, [envoy.document for envoy in envoys], program)
        wrong = [finding for finding in found if finding.level in (Level.WARN, Level.FAIL)]
        if wrong:
            raise UsageError("; ".join(f"{finding.seen}: {finding.mend}" for finding in wrong))
    if program is None:
        raise _NotHereError("authz doctor has nothing against it; Envoy itself is not here")
    return "Envoy and authz doctor take it"


def _units(_: Answers, directory: Path) -> str:
    """Verified as they are, but for the programs, which this host need not have."""
    analyze = _program("systemd-analyze")
    true = shutil.which("true") or "/bin/true"
    with tempfile.TemporaryDirectory(prefix="authz-init-") as temporary:
        units = Path(temporary) / "units"
        shutil.copytree(directory / "etc" / "systemd" / "system", units)
        for path in units.rglob("*.service"):
            path.write_text(_PROGRAMS.sub(true, path.read_text()))
        named = [str(path) for path in sorted(units.iterdir()) if path.is_file()]
        done = _run([analyze, "verify", "--man=no", *named])
        if done.returncode or done.stderr.strip():
            raise UsageError(_last(done.stderr))
    return f"systemd takes all {len(named)}"


def _overlay(_: Answers, directory: Path) -> str:
    objects = 0
    for inner in (".", "secrets"):
        objects += len(list(yaml.safe_load_all(_built(directory / inner))))
    return f"kustomize makes {objects} objects of it"


def _built(directory: Path) -> str:
    for name in ("kustomize", "kubectl"):
        if program := shutil.which(name):
            verb = "build" if name == "kustomize" else "kustomize"
            done = _run([program, verb, str(directory)])
            if done.returncode:
                raise UsageError(f"{name}: {_last(done.stderr)}")
            return done.stdout
    raise _NotHereError("neither kustomize nor kubectl is on the PATH")


def _manifests(_: Answers, directory: Path) -> str:
    program = _program("kubeconform")
    text = _built(directory)
    command = [program, "-strict", "-ignore-missing-schemas", "-output", "json", "-summary"]
    done = _run(command, given=text, seconds=_FETCH_SECONDS)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        raise _NotHereError(f"kubeconform: {_last(done.stderr)}") from None
    resources = told.get("resources") or []
    if wrong := [one for one in resources if one["status"] == "statusInvalid"]:
        raise UsageError(f"{wrong[0]['kind']} {wrong[0]['name']}: {wrong[0]['msg']}")
    if told["summary"]["errors"]:
        raise _NotHereError("kubeconform did not get Kubernetes' schemas: no network?")
    skipped = told["summary"]["skipped"]
    return f"kubeconform takes them ({skipped} are of kinds it has no schema for)"


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise _NotHereError(f"{name} is not on the PATH")
    return found


def _run(
    command: list[str],
    given: str = "",
    environment: Mapping[str, str] | None = None,
    seconds: float = _SECONDS,
) -> "subprocess.CompletedProcess[str]":
    ours = {name: text for name, text in os.environ.items() if not name.startswith("AUTHZ_")}
    try:
        return subprocess.run(
            command, input=given, env=ours | dict(environment or {}), capture_output=True,
            text=True, errors="replace", timeout=seconds, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        raise _NotHereError(f"{Path(command[0]).name} did not end within {seconds} s") from None


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]
