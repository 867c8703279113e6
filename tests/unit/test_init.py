"""`authz init`: what is asked, what is refused, and that what is written is valid."""

import hashlib
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kustomized import build, pods
from manifests import kubeconform
from typer.testing import CliRunner

from authz.cli import init as command
from authz.cli import program
from authz.demo.people import Keys
from authz.demo.stack import deploy_dir
from authz.errors import UsageError
from authz.init import Answers, Platform, checks, plan
from authz.init.answers import PLATFORM, QUESTIONS
from authz.init.checks import State, check
from authz.init.plan import USERS
from authz.init.yamls import rewritten, with_values

GO = Path.home() / "go" / "bin"
APPLICATION = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: charts}
spec:
  selector: {matchLabels: {app: charts}}
  template:
    metadata: {labels: {app: charts}}
    spec:
      containers: [{name: charts, image: registry.example.org/charts:1}]
---
apiVersion: v1
kind: Service
metadata: {name: charts}
spec:
  selector: {app: charts}
  ports: [{port: 443}]
"""
ISSUER = "https://idp.example.org"
IMAGE = "registry.example.org/authz:0.1.0"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, str]:
    """The files that a site brings along."""
    directory = tmp_path_factory.mktemp("site")
    (directory / "app.yaml").write_text(APPLICATION)
    (directory / "jwks.json").write_text(json.dumps(Keys().jwks()))
    (directory / "key.pem").write_text("-----BEGIN PUBLIC KEY-----\n")
    (directory / "policy").mkdir()
    (directory / "policy" / "own.rego").write_text(
        "package envoy.authz\n\ndefault allow := false\n"
    )
    (directory / "policy" / "own_test.rego").write_text("package own_test\n")
    return {path.name: str(path) for path in directory.iterdir()}


def options(platform: str, site: dict[str, str]) -> dict[str, str]:
    """What has no default there."""
    found = {"platform": platform}
    if platform != "local":
        local_keys = platform in ("kubernetes", "bare-hosts")
        found["jwks"] = site["jwks.json"] if local_keys else f"{ISSUER}/keys"
        found |= {"issuer": ISSUER, "clickhouse": "ch.example.org:9440"}
    if platform not in ("local", "bare-hosts"):
        found["image"] = IMAGE
    if platform == "istio":
        found["manifests"] = site["app.yaml"]
    return found


def flags(given: dict[str, str]) -> list[str]:
    return [word for key, text in given.items() for word in (f"--{key.replace('_', '-')}", text)]


def invoke(directory: Path | None, given: dict[str, str], *more: str, answers: str | None = None):
    words = ["init", *([str(directory)] if directory else []), *flags(given), *more]
    return CliRunner().invoke(program(), words, input=answers)


def written(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", params=tuple(Platform))
def made(request, site, tmp_path_factory):
    """Each platform's, by options: (options, directory, the command's result)."""
    if not (GO / "opa").exists() and not os.environ.get("CI"):
        pytest.skip("needs OPA: go install github.com/open-policy-agent/opa@v1.22.2")
    directory = tmp_path_factory.mktemp("made") / "deployment"
    given = options(request.param, site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{GO}")
        # By their schemas below: kubeconform alone would look for them on the network.
        patch.setattr(checks, "_manifests", lambda *_: "")
        if request.param is not Platform.LOCAL:  # it is the same policy
            patch.setattr(checks, "_policy", lambda *_: "")
        done = invoke(directory, given, "--yes", "--json")
    assert done.exit_code == 0, done.exception or done.output
    return given, directory, done


def test_it_is_valid(made):
    """Every program that is to read it takes it."""
    _, directory, done = made
    told = json.loads(done.stdout)
    states = {one["what"]: one["state"] for one in told["checks"]}
    assert set(states.values()) == {State.OK}, told["checks"]
    assert "configuration" in states
    assert "policy" in states
    assert set(told["files"]) == set(written(directory))
    assert told["next"]
    text = (directory / "NEXT.md").read_text()
    assert all(step["what"] in text and step["command"] in text for step in told["next"])


@pytest.mark.thorough
def test_answers_on_standard_input(made, tmp_path, monkeypatch):
    """The same answers, typed, give the same files; only what is secret is made anew."""
    given, directory, _ = made
    monkeypatch.setattr(checks, "check", lambda *_: iter(()))
    platform = Platform(given["platform"])
    asked = [question.name for question in QUESTIONS if platform in question.asked]
    lines = [given["platform"], *(given.get(name, "") for name in asked)]  # Enter for the default
    done = invoke(None, {}, answers="\n".join([*lines, str(tmp_path / "typed")]) + "\n")
    assert done.exit_code == 0, done.exception or done.output
    typed, by_options = written(tmp_path / "typed"), written(directory)
    assert {name: mode for name, (_, mode) in typed.items()} == {
        name: mode for name, (_, mode) in by_options.items()
    }
    different = {name for name in typed if typed[name] != by_options[name]}
    fresh = {"jwks.json"} if platform is Platform.LOCAL else set()
    assert different - fresh == {
        name for name, (data, mode) in typed.items() if mode == 0o600 and data
    }


def test_secrets(made):
    """They are in files for their owner alone, made anew, and told nowhere."""
    _, directory, done = made
    files = written(directory)
    secret = {name: data.decode() for name, (data, mode) in files.items() if mode == 0o600 and data}
    assert {len(bytes.fromhex(text)) for name, text in secret.items() if "privacy" in name} == {32}
    words = {text.rpartition("://")[2].partition("@")[0].strip() for text in secret.values()}
    others = done.output + "".join(data.decode() for data, mode in files.values() if mode != 0o600)
    assert len(words) > 1
    assert [word for word in words if word in others] == []
    for name, (_, mode) in files.items():
        assert mode in (0o600, 0o644, 0o755), name
    for name in secret:
        inside = (directory / name).parent
        if inside.name in ("keys", "secrets", "passwords", "tokens"):
            assert stat.S_IMODE(inside.stat().st_mode) == 0o700


def test_shipped_files_stay_as_they_are(made):
    """deploy/ of an overlay is authz's own, file by file."""
    _, directory, _ = made
    for name, (data, _) in written(directory).items():
        if name.startswith("deploy/"):
            assert data == (deploy_dir().parent / name).read_bytes()


CLUSTERS = {
    "kubernetes": {},
    "kubernetes: elsewhere, on disk": {
        "durability": "local", "authz_namespace": "audit", "namespace": "ward",
        "manifests": "app.yaml", "upstream": "127.0.0.1:9999", "policy": "policy",
    },
    "kubernetes: a bundle": {
        "policy": "https://bundles.example.org/a/b.tar.gz", "bundle_key": "key.pem",
    },
    "istio": {"authz_namespace": "audit", "name": "charts"},
    "envoy-gateway": {"authz_namespace": "audit", "name": "charts"},
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in ("kubernetes", "istio") else pytest.mark.thorough)
        for case in CLUSTERS
    ],
)
def test_manifests(case, site, tmp_path):
    """Kubernetes and the makers of custom resources know each field; names lead to what is there,
    and no pod is in a namespace that was not asked for."""
    platform = case.partition(":")[0]
    given = options(platform, site) | {
        key: site.get(text, text) for key, text in CLUSTERS[case].items()
    }
    answers = command._answers(dict(given), (), ask=False)
    plan(answers).write(tmp_path / "site")
    objects, secrets = build(tmp_path / "site"), build(tmp_path / "site" / "secrets")
    for name, found in (("all", objects), ("secrets", secrets)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(found))
    assert kubeconform([tmp_path / "all.yaml", tmp_path / "secrets.yaml"]) == []
    ours = {answers.authz_namespace, answers.namespace}
    names = [str(host) for one in objects for host in one.get("spec", {}).get("dnsNames", ())]
    there = {(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
             for one in (*objects, *secrets)}  # fmt: skip
    for one in objects:
        if one["kind"] == "Certificate":
            space = one["metadata"]["namespace"]
            there.add(("Secret", space, one["spec"]["secretName"]))
    for pod in pods(objects):
        assert pod.namespace in ours
        for volume in pod.spec.get("volumes", ()):
            if "secret" in volume:
                assert ("Secret", pod.namespace, volume["secret"]["secretName"]) in there
            if "configMap" in volume:
                assert ("ConfigMap", pod.namespace, volume["configMap"]["name"]) in there
        for container in pod.containers:
            assert not container["image"].startswith(("authz", "opa", "envoy"))
            names += pod.environment(container).values()
            if container["name"] == "ext-authz" and platform == "istio":
                assert pod.command(container)[-1] == (
                    "receiver-0.receiver.audit.svc.cluster.local:9292"
                )
    elsewhere = [name for name in names if ".authz.svc" in name]
    assert not (elsewhere and answers.authz_namespace != "authz")
    assert "https://idp.example" not in names


@pytest.mark.parametrize(
    ("platform", "field", "value", "told"),
    [
        ("kubernetes", "name", "Charts", "lowercase"),
        ("kubernetes", "namespace", "a b", "lowercase"),
        ("kubernetes", "image", "registry.example.org/authz", "a place with a tag"),
        ("kubernetes", "upstream", "10.0.0.1:8000", "127.0.0.1:PORT"),
        ("kubernetes", "upstream", "127.0.0.1:0", "no port"),
        ("kubernetes", "upstream", "8000", "host:port"),
        ("kubernetes", "issuer", "http://idp.example.org", "https://"),
        ("kubernetes", "issuer", 'https://idp.example.org/"', "https://"),
        ("kubernetes", "audience", "a b", "letters"),
        ("kubernetes", "jwks", "/nowhere.json", "No such file"),
        ("kubernetes", "jwks", "app.yaml", "no JWK set"),
        ("kubernetes", "clickhouse", "clickhouse://me:secret@ch:9440", "without user"),
        ("kubernetes", "clickhouse", "clickhouse://ch:9440/other", "called authz"),
        ("kubernetes", "clickhouse", "ch", "host:port"),
        ("kubernetes", "durability", "none", "receiver"),
        ("kubernetes", "policy", "/nowhere", "no directory"),
        ("kubernetes", "policy", "https://b.example/b.tar.gz", "--bundle-key"),
        ("kubernetes", "manifests", "/nowhere", "want `sample`"),
        ("kubernetes", "manifests", "jwks.json", "objects of Kubernetes"),
        ("kubernetes", "console-url", "audit", "https://"),
        ("kubernetes", "oidc-secret", "/nowhere", "no file"),
        ("kubernetes", "hostname", "a b", "a name such as"),
        ("kubernetes", "listen", "127.0.0.1:1", "no meaning on kubernetes"),
        ("istio", "manifests", "sample", "your own"),
        ("istio", "jwks", "jwks.json", "the address of the keys"),
        ("envoy-gateway", "durability", "receiver", "one of local"),
        ("bare-hosts", "listen", "0.0.0.0:8080", "without TLS"),
        ("bare-hosts", "image", IMAGE, "no meaning on bare-hosts"),
        ("bare-hosts", "policy", "https://b.example/b.tar.gz", "a directory"),
        ("local", "clickhouse", "127.0.0.1:9000", "no meaning on local"),
    ],
)
def test_bad_answers(site, tmp_path, platform, field, value, told):
    """Each is refused with its option and the mend, and nothing is written."""
    given = options(platform, site) | {field: site.get(value, value)}
    done = invoke(tmp_path / "new", given, "--yes")
    assert done.exit_code
    said = str(done.exception) if isinstance(done.exception, UsageError) else done.output
    assert f"--{field}" in said
    assert told in said
    assert "secret@" not in said.replace(value, "")
    assert not (tmp_path / "new").exists()


@given(
    value=st.text(max_size=40),
    number=st.integers(0, len(QUESTIONS) - 1),
    on=st.sampled_from(Platform),
)
def test_no_answer_breaks_out(value, number, on):
    """An answer that is taken is a word: it ends no line, quotes nothing, and starts no command."""
    question = QUESTIONS[number]
    try:
        kept = question.checked(value, Answers(on))
    except UsageError as error:
        told = str(error)
    else:
        told = f"{question.option}: taken"
        if question.name not in ("manifests", "policy", "jwks", "oidc_secret", "bundle_key"):
            assert not set(kept) & set(" \n\r\t\"'\\$`;|<>(){}*#%\0")
    assert told.startswith(f"{question.option}: ")


def test_answers_that_end_early(site, tmp_path):
    """The option is named that would have been asked for next; a wrong answer ends it there."""
    done = invoke(tmp_path / "new", {}, answers="bare-hosts\nfhir\n")
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith("--upstream: the answers end")
    done = invoke(tmp_path / "new", {}, answers="bare-hosts\nNO NAME\n")
    assert str(done.exception).startswith("--name: want a name")
    done = invoke(tmp_path / "new", {}, "--yes")
    assert str(done.exception) == "--platform: is missing; give it"
    assert PLATFORM.option in str(done.exception)
    assert not (tmp_path / "new").exists()


def test_a_directory_that_is_used(tmp_path):
    """Nothing is written over; an empty directory will do."""
    (tmp_path / "kept").write_text("mine")
    for place in (tmp_path, tmp_path / "kept"):
        done = invoke(place, {"platform": "local"}, "--yes")
        assert "is there already" in str(done.exception)
    assert written(tmp_path) == {
        "kept": (b"mine", stat.S_IMODE((tmp_path / "kept").stat().st_mode))
    }
    (tmp_path / "empty").mkdir()
    plan(command._answers({"platform": "local"}, (), ask=False)).write(tmp_path / "empty")
    assert (tmp_path / "empty" / "run.sh").exists()


@pytest.mark.parametrize(
    ("platform", "file", "old", "new", "what"),
    [
        ("bare-hosts", "etc/authz/authz.yaml", "origin:", "orgin:", "configuration"),
        ("bare-hosts", "etc/authz/envoy.env", "AUTHZ_PORT=9191", "AUTHZ_PORT=none", "Envoy"),
        ("bare-hosts", "etc/systemd/system/authz-watch.service", "Restart=", "Restrt=", "units"),
        ("local", "policy/roles.rego", "package", "pakage", "policy"),
        ("local", "policy/decision.rego", "default allow := ", "default allow := true #", "policy"),
        (
            "kubernetes",
            "central/kustomization.yaml",
            "behavior: merge",
            "behavior: merg",
            "overlay",
        ),
    ],
)
def test_its_own_checks_find(site, tmp_path, monkeypatch, opa, platform, file, old, new, what):
    """What is spoilt between writing and looking is found, by the check that is for it."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{GO}")
    wanted = {"Envoy": "_envoy", "overlay": "_overlay"}.get(what, f"_{what}")
    for name in ("_configuration", "_policy", "_envoy", "_units", "_overlay", "_manifests"):
        if name != wanted:
            monkeypatch.setattr(checks, name, lambda *_: "")
    answers = command._answers(dict(options(platform, site)), (), ask=False)
    plan(answers).write(tmp_path / "site")
    path = tmp_path / "site" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    found = [one for one in check(answers, tmp_path / "site") if one.state is State.FAILED]
    assert [one.what.partition("'")[0] for one in found] == [what], found


def test_keys_that_are_not_there_yet(site, tmp_path, monkeypatch):
    """Where they are an address, the next steps fetch them, and the check says that they lack."""
    for name in ("_configuration", "_policy", "_envoy", "_units"):
        monkeypatch.setattr(checks, name, lambda *_: "")
    given = options("bare-hosts", site) | {"jwks": f"{ISSUER}/keys"}
    answers = command._answers(given, (), ask=False)
    made = plan(answers)
    made.write(tmp_path / "site")
    told = {one.what: one.state for one in check(answers, tmp_path / "site")}
    assert told["issuer's keys"] is State.UNCHECKED
    assert any(f"curl -fsS {ISSUER}/keys" in step for _, step in made.steps)


def test_comments_and_order_stay():
    """Only the values that are named are others; what is no plain scalar is quoted."""
    text = "# why\na: {b: one, c: [x, y]} # here\n---\nd: 'two'\n"
    assert rewritten(text, lambda place, _: "3" if place == ("a", "b") else None) == (
        "# why\na: {b: \"3\", c: [x, y]} # here\n---\nd: 'two'\n"
    )
    assert with_values(text, {"a.c.1": "z", "d": "a b"}) == (
        '# why\na: {b: one, c: [x, z]} # here\n---\nd: "a b"\n'
    )
    with pytest.raises(AssertionError):
        with_values(text, {"e": "z"})


def test_the_databases_users():
    """users.sh gives each user of users.sql its own password, and makes no other."""
    directory = deploy_dir() / "clickhouse"
    wanted = set(re.findall(r"BY \{(\w+):String\}", (directory / "sql" / "users.sql").read_text()))
    given = re.findall(r'--param_(\w+) "\$\(hash (\w+)\)"', (directory / "users.sh").read_text())
    assert dict(given) == {name: name for name in wanted}
    assert set(USERS) == wanted


def test_users_script(tmp_path):
    """Passwords stay in their files: clickhouse-client is told their SHA-256, and the site's
    options."""
    given = {"platform": "bare-hosts", "jwks": f"{ISSUER}/keys", "issuer": ISSUER}
    plan(command._answers(given, (), ask=False)).write(tmp_path / "site")
    (tmp_path / "bin").mkdir()
    client = tmp_path / "bin" / "clickhouse-client"
    client.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    client.chmod(0o755)
    script = tmp_path / "site" / "clickhouse" / "users.sh"
    subprocess.run(
        [script, "passwords", "--host", "ch-1"], check=True, timeout=60, cwd=tmp_path / "site",
        env={"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    told = (tmp_path / "told").read_text()
    assert len(re.findall(r"^--host ch-1 ", told, re.MULTILINE)) == 3
    for user in USERS:
        password = (tmp_path / "site" / "passwords" / f"{user}.password").read_text().strip()
        assert password not in told
        assert f"--param_{user} {hashlib.sha256(password.encode()).hexdigest()}" in told
