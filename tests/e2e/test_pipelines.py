"""The pipeline templates: valid by the forges' own schemas, and every step of every job run, in a
repository made for it, with the real programs."""

import asyncio
import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import string
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from live import Caller, Tuned, settle
from manifests import go_program
from programs import AUTHZ, CHECKOUT, OWN, program, run, world

from authz.demo.people import PEOPLE, plan
from authz.demo.stack import running

pytestmark = pytest.mark.opa

CI = CHECKOUT / "deploy" / "ci"
GITHUB = sorted((CI / "github").glob("*.yaml"))
GITLAB = sorted((CI / "gitlab").glob("*.yml"))
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
COMMIT = "4f0c3c8b2a6d4e5f8091a2b3c4d5e6f708192a3b"


@dataclass(frozen=True, slots=True)
class Step:
    """A job's commands, as the forge runs them, and the environment that the template gives."""

    job: str
    script: str
    environment: Mapping[str, str]
    shell: tuple[str, ...]


class Forge(http.server.BaseHTTPRequestHandler):
    """Takes what is put and posted, gives back what was put, and knows one vulnerability."""

    def __init__(self, kept: dict[str, bytes], *arguments: object) -> None:
        self._kept = kept
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer(200 if self.path in self._kept else 404, self._kept.get(self.path, b""))

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        allowed = self.headers.get("authorization") == "Bearer bundle-token"
        if allowed:
            self._kept[self.path] = content
        self._answer(201 if allowed else 401, b"")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/osv":
            known = json.loads(content)["package"]["name"] == "leaky"
            vulnerability = {"id": "PYSEC-2026-1", "details": "it leaks", "affected": []}
            return self._answer(
                200, json.dumps({"vulns": [vulnerability]} if known else {}).encode()
            )
        tokens = self.headers.get("authorization"), self.headers.get("private-token")
        if tokens in (("Bearer run-token", None), (None, "comment-token")):
            self._kept[self.path] = content
            return self._answer(201, b"{}")
        return self._answer(401, b"")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Site:
    """A repository with the templates in it, a site that has decided, and a forge."""

    repository: Path
    stack: Tuned
    url: str
    kept: dict[str, bytes]
    secrets: Mapping[str, str]
    path: str

    def job(self, file: Path, name: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run the steps of a job one after the other until one fails; the last one's outcome."""
        done = None
        for step in steps(file, self):
            if step.job != name:
                continue
            forge = {
                "GITHUB_API_URL": self.url, "GITHUB_REPOSITORY": "clinic/policy",
                "GITHUB_STEP_SUMMARY": str(self.repository / "summary.md"),
                "CI_API_V4_URL": self.url, "CI_PROJECT_ID": "12", "CI_MERGE_REQUEST_IID": "7",
            }  # fmt: skip
            ours = {
                "PACKAGES": "pyyaml", "PROGRAMS": ACTIONLINT, "PATH": self.path,
                "GOBIN": str(self.repository.parent / "go"),
                "SEALING_KEY": str(self.stack.data_dir / "ext-authz" / "sealing.key"),
                "STATE": str(self.repository.parent / "state.json"),
            }  # fmt: skip
            with world() as where:
                environment = (
                    where.environment | self.secrets | step.environment | forge | ours | more
                )
                done = run(
                    [*step.shell, step.script], where, 300, cwd=self.repository, env=environment
                )
            if done.returncode:
                break
        assert done is not None, f"{file.name} has no job {name}"
        return done


def steps(file: Path, site: Site) -> list[Step]:
    document = yaml.safe_load(file.read_text())
    return _github(document, site) if file in GITHUB else _gitlab(document, site)


def _github(document: Mapping[str, Any], site: Site) -> list[Step]:
    known = {
        "secrets.AUTHZ_STORE": site.secrets["AUTHZ_STORE"], "github.token": "run-token",
        "github.event.pull_request.number": "7", "github.sha": COMMIT, "inputs.revision": COMMIT,
        "secrets.POLICY_SIGNING_KEY": site.secrets["SIGNING_KEY"],
        "secrets.BUNDLE_TOKEN": "bundle-token", "vars.BUNDLE_URL": f"{site.url}/bundles",
    }  # fmt: skip
    found = []
    for name, job in document["jobs"].items():
        for step in job["steps"]:
            if "run" not in step:
                continue
            assert "${{" not in step["run"], "what others write must not become a script"
            given = {**document.get("env", {}), **job.get("env", {}), **step.get("env", {})}
            told = {
                key: re.sub(r"\$\{\{ (\S+) \}\}", lambda found: known[found[1]], value)
                for key, value in given.items()
            }
            shell = ("bash", "-eo", "pipefail", "-c") if "shell" in step else ("bash", "-e", "-c")
            found.append(Step(name, step["run"], told, shell))
    return found


def _gitlab(document: Mapping[str, Any], site: Site) -> list[Step]:
    known = {"CI_COMMIT_SHA": COMMIT, "ROLLBACK": COMMIT}
    found = []
    for name, job in document.items():
        if "script" not in job or name.startswith("."):
            continue
        whole = {**document.get(job.get("extends", ""), {}), **job}
        given = {**document.get("variables", {}), **whole.get("variables", {})}
        told = {key: string.Template(value).safe_substitute(known) for key, value in given.items()}
        if "BUNDLE_URL" in told:
            told["BUNDLE_URL"] = f"{site.url}/bundles"
        script = "\n".join([*whole.get("before_script", []), *whole["script"]])
        found.append(Step(name, script, told, ("bash", "-eo", "pipefail", "-c")))
    return found


@contextlib.contextmanager
def forge(kept: dict[str, bytes]) -> Iterator[str]:
    handler = functools.partial(Forge, kept)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def site(opa: str, tmp_path_factory) -> Iterator[Site]:
    """A site that has decided and sealed some requests, and a repository like one of its owners."""
    for name, package in (
        ("jq", "jq"),
        ("curl", "curl"),
        ("git", "git"),
        ("promtool", "prometheus"),
    ):
        program(name, package)
    directory = tmp_path_factory.mktemp("pipelines")
    repository = directory / "repository"
    policy = Path(shutil.copytree(CHECKOUT / "deploy" / "opa", directory / "deciding"))
    shutil.copytree(policy, repository / "policy", ignore=shutil.ignore_patterns("*.md", "*.yaml"))
    shutil.copytree(CI, repository / "ci")
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (repository / "bundle.pem").write_bytes(public)
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    stack = Tuned(
        directory / "data", policy=policy, ext_authz={"AUTHZ_PRIVACY__SEAL_INPUTS": "true"},
        timeout_ms=2000,
    )  # fmt: skip
    kept: dict[str, bytes] = {}
    with forge(kept) as url, running(stack, lambda _: None):
        asyncio.run(send(stack))
        shutil.copy(stack.trust, repository / "trust.yaml")
        secrets = {
            "AUTHZ_STORE": stack.store, "SIGNING_KEY": private.decode(),
            "BUNDLE_TOKEN": "bundle-token", "COMMENT_TOKEN": "comment-token",
        }  # fmt: skip
        yield Site(repository, stack, url, kept, secrets, programs(directory, opa))


async def send(stack: Tuned) -> None:
    async with Caller(stack) as caller:
        for request in plan(60):
            if request.expect != "rejected":
                await caller.send(request)
    await settle(stack)


def programs(directory: Path, opa: str) -> str:
    """A PATH with the programs as their steps call them."""
    bin_ = directory / "bin"
    bin_.mkdir()
    uv = f"exec {OWN / 'uv'} tool run --quiet"
    lines = {
        "authz": f'exec {" ".join(map(str, AUTHZ))} "$@"',
        "pip-audit": f'{uv} pip-audit==2.10.1 "$@"',
        "pip-licenses": f'{uv} pip-licenses==5.5.5 "$@"',
    }
    for name, line in lines.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_ / name).chmod(0o755)
    found = [opa, go_program("kubeconform", "…"), go_program("kustomize", "…")]
    places = [str(bin_), str(OWN), *dict.fromkeys(str(Path(one).parent) for one in found)]
    return os.pathsep.join([*places, os.environ["PATH"]])


def twin(name: str) -> list[Path]:
    return [CI / "github" / f"{name}.yaml", CI / "gitlab" / f"{name}.yml"]


JOBS = {
    "github": {"check": "check", "replay": "replay", "bundle": "bundle", "rollback": "rollback"},
    "gitlab": {name: f"authz-policy-{name}" for name in ("check", "replay", "bundle", "rollback")},
}


def job_of(file: Path, name: str) -> str:
    return JOBS[file.parent.name][name]


@pytest.mark.parametrize(
    "file", [*GITHUB, *GITLAB], ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_valid_by_the_forges_schema(file: Path) -> None:
    """The forge's own schema takes each template."""
    kind = "vendor.github-workflows" if file in GITHUB else "vendor.gitlab-ci"
    with world() as where:
        done = run([OWN / "check-jsonschema", "--builtin-schema", kind, file], where)
    assert done.returncode == 0, done.stdout


def test_actionlint_finds_nothing() -> None:
    """Neither in the workflows nor in the shell and expressions in them."""
    line = [go_program("actionlint", ACTIONLINT), "-config-file", CI / "actionlint.yaml", *GITHUB]
    with world() as where:
        done = run(line, where)
    assert done.returncode == 0, done.stdout


def test_what_they_use_is_pinned() -> None:
    """Actions by the hash of a commit, packages and programs by version; Go programs by the version
    that this project's own CI has."""
    ours = (CHECKOUT / ".ci" / "run").read_text()
    for file in [*GITHUB, *GITLAB]:
        text = file.read_text()
        for used in re.findall(r"uses: (.*)", text):
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used
        for used in re.findall(r"\S+@v[\d.]+\S*", re.sub(r"uses: .*", "", text)):
            assert used in ours, f"{file.name}: {used}"
        for packages in re.findall(r"PACKAGES: ([^#\n]+)", text):
            assert all("==" in package for package in packages.split() if package != "pip")


@pytest.mark.thorough
@pytest.mark.parametrize("file", twin("policy"), ids=["github", "gitlab"])
def test_check(site: Site, file: Path, tmp_path: Path) -> None:
    """A sound policy passes; a misspelt table, a failing test and a door left open each fail."""
    done = site.job(file, job_of(file, "check"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "coverage 100.0 %" in done.stdout
    if file in GITLAB:
        return  # the same script
    breaks = {
        "data.json": ('"tenant"', '"tennant"', "tennant"),
        "policy_test.rego": (
            "test_nurse_not_on_the_care_team if {",
            "test_wrong if {\n\tfalse",
            "test_wrong",
        ),
        "decision.rego": ("default granted := false", "default granted := true", "failed"),
    }
    for name, (old, new, said) in breaks.items():
        broken = Path(shutil.copytree(site.repository / "policy", tmp_path / name))
        text = (broken / name).read_text()
        assert old in text
        (broken / name).write_text(text.replace(old, new, 1))
        done = site.job(file, job_of(file, "check"), POLICY=str(broken))
        assert done.returncode != 0, name
        assert said in done.stdout + done.stderr, (name, done.stdout[-500:])


@pytest.mark.thorough
@pytest.mark.parametrize("file", twin("policy"), ids=["github", "gitlab"])
def test_replay(site: Site, file: Path, tmp_path: Path) -> None:
    """How many gain and lose is posted under the change, and nobody's name or patient with it."""
    changed = Path(shutil.copytree(site.repository / "policy", tmp_path / "policy"))
    data = json.loads((changed / "data.json").read_text())
    del data["roles"]["nurse"]
    (changed / "data.json").write_text(json.dumps(data))
    site.kept.clear()
    done = site.job(file, job_of(file, "replay"), POLICY=str(changed))
    assert done.returncode == 0, done.stdout + done.stderr
    [(path, posted)] = site.kept.items()
    github = "/repos/clinic/policy/issues/7/comments"
    assert path == (github if file in GITHUB else "/projects/12/merge_requests/7/notes")
    body = json.loads(posted)["body"]
    assert re.search(r"^0 gain, [1-9]\d* lose, \d+ the same", body, re.MULTILINE), body
    assert re.search(r"^0 people gain, [12] people lose$", body, re.MULTILINE), body
    for text in (body, done.stdout, done.stderr):
        assert not any(person.sub in text for person in PEOPLE.values())
        assert "p-0" not in text
    away = site.job(file, job_of(file, "replay"), AUTHZ_STORE="clickhouse://u:p@127.0.0.1:9/x")
    assert away.returncode == 3


@pytest.mark.thorough
@pytest.mark.parametrize("file", twin("policy"), ids=["github", "gitlab"])
def test_bundle_and_rollback(site: Site, file: Path) -> None:
    """The bundle is published under its commit and as the current one, signed; the key is left
    nowhere; a rollback takes one back, unless its signature does not hold."""
    site.kept.clear()
    done = site.job(file, job_of(file, "bundle"))
    assert done.returncode == 0, done.stdout + done.stderr
    own, current = f"/bundles/{COMMIT}.tar.gz", "/bundles/bundle.tar.gz"
    assert site.kept.keys() == {own, current}
    assert site.kept[own] == site.kept[current] == (site.repository / "bundle.tar.gz").read_bytes()
    assert "signed (ES256)" in done.stdout or file in GITHUB  # there, a step of its own
    assert not any(
        b"PRIVATE KEY" in path.read_bytes() for path in site.repository.rglob("*") if path.is_file()
    )
    site.kept[current] = b"newer"
    done = site.job(file, job_of(file, "rollback"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.kept[current] == site.kept[own]
    site.kept[own], site.kept[current] = site.kept[own][:-40], b"newer"
    done = site.job(file, job_of(file, "rollback"))
    assert done.returncode != 0
    assert site.kept[current] == b"newer"


@pytest.mark.thorough
@pytest.mark.parametrize("file", twin("verify"), ids=["github", "gitlab"])
def test_verify(site: Site, file: Path, tmp_path: Path) -> None:
    """The log is verified, from the database and from an export; the result is kept whatever it is,
    and what was changed, or could not be read, fails."""
    name = "verify" if file in GITHUB else "authz-verify"
    kept = tmp_path / "worm"
    kept.mkdir()
    shutil.rmtree(site.repository / "evidence", ignore_errors=True)  # another job's
    done = site.job(file, name, EVIDENCE=str(kept))
    assert done.returncode == 0, done.stdout + done.stderr
    evidence = site.repository / "evidence"
    assert "exit code 0" in (evidence / "about.txt").read_text()
    assert json.loads((evidence / "verification.json").read_text())
    assert [path.name for copy in kept.iterdir() for path in sorted(copy.iterdir())] == [
        "about.txt", "verification.json",
    ]  # fmt: skip
    if file in GITLAB:
        return  # the same script
    export = tmp_path / "export"
    with world() as where:
        line = [*AUTHZ, "export", "--store", site.stack.store, "--receiver",
                site.stack.parts["receiver"].address, "--reason", "nightly", "--data-dir",
                tmp_path / "writer", "-o", export]  # fmt: skip
        told = run(line, where)
    assert told.returncode == 0, told.stderr
    assert site.job(file, name, FROM=str(export)).returncode == 0
    entries = next(path for path in export.glob("logs/*/tile/entries/**/*") if path.is_file())
    entries.write_bytes(entries.read_bytes().replace(b"n.cedar", b"n.cedas", 1))
    done = site.job(file, name, FROM=str(export))
    assert (done.returncode, "NOT intact" in done.stdout) == (1, True)
    assert "exit code 1" in (evidence / "about.txt").read_text()
    done = site.job(file, name, AUTHZ_STORE="clickhouse://u:p@127.0.0.1:9/x")
    assert (done.returncode, "could not tell" in done.stdout) == (3, True)


@pytest.mark.thorough
@pytest.mark.parametrize("file", twin("manifests"), ids=["github", "gitlab"])
def test_manifests(site: Site, file: Path, tmp_path: Path) -> None:
    """What is valid passes, part by part; what is not fails."""
    name = "manifests" if file in GITHUB else "authz-manifests"
    (tmp_path / "schemas").mkdir()
    schema = {
        "type": "object", "additionalProperties": False,
        "properties": {key: {} for key in ("apiVersion", "kind", "metadata", "data")},
    }  # fmt: skip
    (tmp_path / "schemas" / "configmap.json").write_text(json.dumps(schema))
    deploy = tmp_path / "deploy"
    deploy.mkdir()
    (deploy / "kustomization.yaml").write_text("resources: [map.yaml]\n")
    good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: b}\n"
    (deploy / "map.yaml").write_text(good)
    (tmp_path / "authz.yaml").write_text("identity:\n  sources: [jwt_authn]\n")
    envoy = site.stack.data_dir / "envoy.yaml"
    found = envoy if envoy.exists() else next(site.stack.data_dir.rglob("envoy*.yaml"))
    parts = {
        "MANIFESTS": str(deploy), "CONFIG": str(tmp_path / "authz.yaml"), "ENVOY": str(found),
        "RULES": str(CHECKOUT / "deploy" / "prometheus" / "alerts.yaml"),
        "KUBECONFORM": f"-schema-location {tmp_path}/schemas/{{{{.ResourceKind}}}}.json",
    }  # fmt: skip
    done = site.job(file, name, **parts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid: 1, Invalid: 0" in done.stdout
    assert "SUCCESS" in done.stdout
    if file in GITLAB:
        return  # the same script
    (deploy / "map.yaml").write_text(good.replace("data", "dta"))
    assert site.job(file, name, **parts).returncode != 0
    (tmp_path / "wrong.yaml").write_text("identity:\n  source: [jwt_authn]\n")
    wrong = {"MANIFESTS": "", "CONFIG": str(tmp_path / "wrong.yaml")}
    assert site.job(file, name, **(parts | wrong)).returncode != 0


@pytest.mark.thorough
@pytest.mark.parametrize("file", twin("supply"), ids=["github", "gitlab"])
def test_supply(site: Site, file: Path, tmp_path: Path) -> None:
    """What is installed is listed with its licence; a known vulnerability fails, and is told."""
    name = "supply" if file in GITHUB else "authz-supply"
    for package in ("sound", "leaky"):
        about = tmp_path / package / f"{package}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    outcomes = {}
    for package in ("sound", "leaky"):
        options = f"-s osv --osv-url {site.url}/osv --path {tmp_path / package}"
        done = site.job(file, name, PIP_AUDIT=options)
        outcomes[package] = done.returncode, done.stderr
        told = json.loads((site.repository / "evidence" / "vulnerabilities.json").read_text())
        ids = [one["id"] for each in told["dependencies"] for one in each["vulns"]]
        assert ids == (["PYSEC-2026-1"] if package == "leaky" else [])
    assert {package: code for package, (code, _) in outcomes.items()} == {"sound": 0, "leaky": 1}
    assert json.loads((site.repository / "evidence" / "licences.json").read_text()) is not None


def test_no_job_is_left_out(site: Site) -> None:
    """Every job that has commands is one that a test above runs."""
    named = {"check", "replay", "bundle", "rollback", "verify", "manifests", "supply"}
    for file in [*GITHUB, *GITLAB]:
        for step in steps(file, site):
            assert step.job.removeprefix("authz-").removeprefix("policy-") in named


def test_the_page_shows_a_command_that_runs(site: Site, tmp_path: Path) -> None:
    """The command in deploy/ci/README.md checks the library as it is shipped."""
    (tmp_path / "deploy").symlink_to(CHECKOUT / "deploy")
    [block] = re.findall(
        r"^```sh\n(.*?)^```$", (CI / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    with world() as where:
        done = run(
            ["sh", "-eu", "-c", block], where, 120, cwd=tmp_path,
            env=where.environment | {"PATH": site.path},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
