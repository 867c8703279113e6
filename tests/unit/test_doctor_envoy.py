"""`authz doctor` about Envoy: what opens the door is found, by whatever spelling and wherever."""

import copy
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from bootstraps import (
    CLOSED,
    DEPLOY,
    FILTER_CONFIG,
    SHIPPED,
    TEMPLATE,
    TYPE,
    VALUES,
    WRONG,
    edited,
    filters,
    on_manager,
    put,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.config import Config
from authz.demo.stack import envoy_program
from authz.doctor import Finding, Level, exit_code, look
from authz.doctor.bootstrap import examine, in_file, validated
from authz.doctor.documents import Document, normalised, read
from authz.doctor.envoy import Envoy, from_dump
from authz.envoy.bootstrap import render
from authz.errors import UnavailableError, UsageError


def found(text: str, config: Config | None = None, directory: Path | None = None) -> list[Finding]:
    path = (directory or Path("/nowhere")) / "envoy.yaml"
    if directory is None:
        root = normalised(yaml.safe_load(text))
        return list(examine(Envoy(Document("envoy.yaml", root), config)))
    path.write_text(text)
    return [finding for envoy in in_file(path, config) for finding in examine(envoy)]


def yaml_without_tokens(text: str) -> str:
    """`text` without jwt_authn, whose keys would have to be in a file."""
    start = text.index("                  # Every route needs a valid token")
    return (
        text[:start] + text[text.index("                  - name: envoy.filters.http.ext_authz") :]
    )


def levels(findings: list[Finding]) -> set[Level]:
    return {finding.level for finding in findings}


def test_the_shipped_bootstrap_has_no_finding():
    """What we ship is what the doctor wants, with the configuration's own defaults too."""
    for config in (None, Config()):
        [only] = found(SHIPPED, config)
        assert only.level is Level.OK
        assert "ext_authz filters: 1" in only.seen


def shipped(path: Path) -> str:
    text = path.read_text()
    return render(text, VALUES) if path.name == "envoy.yaml" else text


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(DEPLOY.rglob("*")) if path.suffix in {".yaml", ".yml", ".json"}],
    ids=lambda path: str(path.relative_to(DEPLOY)),
)
def test_nothing_that_we_ship_accepts_failures(path, tmp_path):
    """Every bootstrap and manifest under deploy/ passes, and has no finding at all."""
    assert levels(found(shipped(path), None, tmp_path)) == {Level.OK}


def test_no_text_that_we_ship_accepts_failures():
    """No file under deploy/ says so in words either, in a template or an example, but of a filter
    that only looks on."""
    looks_on = r"observability_mode: true\n(\s*#.*\n)*\s*failure_mode_allow: true"
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            opens = re.findall(
                r"(?:failure_?mode_?allow|fail_?open)[\"']?\s*:\s*[\"']?(?!false)\w+",
                re.sub(looks_on, "", path.read_text()),
                re.IGNORECASE,
            )
            assert not opens, path


@pytest.mark.parametrize("name", ["failure_mode_allow", "failureModeAllow"])
@pytest.mark.parametrize("value", ["true", '"true"', "True", "yes", "on", "y", "Y", "ON"])
def test_every_spelling_of_allowing_failures(tmp_path, name, value):
    """What Envoy takes for `failure_mode_allow: true` is a failure, and Envoy does take it."""
    text = SHIPPED.replace(CLOSED, f"{name}: {value}")
    [finding] = found(text, None, tmp_path)
    assert finding.level is Level.FAIL
    assert finding.part == "envoy.yaml: ingress > envoy.filters.http.ext_authz"
    path = tmp_path / "tokenless.yaml"
    path.write_text(yaml_without_tokens(text))
    command = [envoy_program(), "--mode", "validate", "-c", str(path)]
    subprocess.run(command, capture_output=True, check=True)


def test_a_filter_that_only_looks_on():
    """An ext_proc filter that answers wait for may not fail open; one that observes must, or it
    breaks answers off when authz does."""
    observing = "observability_mode: true"
    assert levels(found(SHIPPED)) == {Level.OK}
    assert levels(found(SHIPPED.replace(observing, "observability_mode: false"))) == {Level.WARN}


@pytest.mark.parametrize("value", ["false", '"false"', "no", "off", "n", "~"])
def test_every_spelling_of_refusing(tmp_path, value):
    """And what Envoy takes for false is none."""
    text = SHIPPED.replace(CLOSED, f"failure_mode_allow: {value}")
    assert levels(found(text, None, tmp_path)) == {Level.OK}


def test_no_option_silences_it():
    """Nothing in authz's own configuration makes `failure_mode_allow` acceptable."""
    text = SHIPPED.replace(CLOSED, "failure_mode_allow: true")
    for options in ({"unsafe_paths": "allow"}, {"dry_run": True}, {"timeout_ms": 60}):
        assert Level.FAIL in levels(found(text, Config(ext_authz=options)))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name):
    """Each change that opens something is found, at its level, with why and a mend."""
    change, level, words = WRONG[name]
    hits = [finding for finding in found(edited(change)) if words in finding.seen]
    assert [finding.level for finding in hits] == [level]
    assert all(finding.why and finding.mend for finding in hits)
    assert hits[0].part.startswith("envoy.yaml: ingress")


@pytest.mark.parametrize(
    ("layer", "level", "words"),
    [
        ({"envoy.reloadable_features.http_reject_path_with_fragment": False}, "fail", "is off"),
        ({"envoy": {"reloadable_features": {"x": True}}}, "warn", "features.x is set to True"),
    ],
)
def test_features_taken_back(layer, level, words):
    """A static layer of the runtime is read in both its spellings."""
    bootstrap = yaml.safe_load(SHIPPED)
    layers = [{"name": "ours", "static_layer": {**layer, "a.b": 1}}]
    bootstrap["layered_runtime"] = {"layers": layers}
    [finding] = found(yaml.safe_dump(bootstrap))
    assert (finding.level, words in finding.seen) == (level, True)


def test_only_what_is_wrong_is_found():
    """One change gives one finding: nothing else is blamed."""
    for name, (change, _, _) in WRONG.items():
        assert len(found(edited(change))) == 1, name


def test_what_reaches_no_service_needs_no_decision():
    """A listener that only answers by itself, or is for the service's own calls, is let be."""
    answers = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}

    def only_answers(manager, _):
        manager["http_filters"] = [manager["http_filters"][-1]]
        manager["route_config"]["virtual_hosts"][0]["routes"] = [answers]

    assert levels(found(edited(only_answers))) <= {Level.OK, Level.UNKNOWN}
    root = yaml.safe_load(edited(filters([0, 1, 5])))
    root["static_resources"]["listeners"][0]["traffic_direction"] = "OUTBOUND"
    assert Level.FAIL not in levels(found(yaml.safe_dump(root)))


def test_a_control_planes_listeners_are_not_called_good():
    """A bootstrap that only names a control plane says nothing: that is said, with exit code 3."""
    findings = found("dynamic_resources: {lds_config: {ads: {}}}")
    assert levels(findings) == {Level.UNKNOWN}
    assert exit_code(findings) == 3

    def discovered(manager, _):
        manager["http_filters"][2] = {"name": "authz", "config_discovery": {}}

    assert levels(found(edited(discovered))) == {Level.UNKNOWN}


def test_timeouts_are_held_against_our_own():
    """Envoy must wait as long as `ext_authz.timeout_ms` says that it does."""
    [short] = found(SHIPPED, Config(ext_authz={"timeout_ms": 300}))
    assert short.level is Level.WARN
    assert "250 ms" in short.seen
    assert "timeout_ms is 300" in short.seen
    default = edited(lambda _, ext_authz: ext_authz["grpc_service"].pop("timeout"))
    assert "200 ms for ext_authz (its default)" in found(default, Config())[0].seen
    assert levels(found(SHIPPED, Config(ext_authz={"timeout_ms": 200}))) == {Level.OK}


def test_a_policy_that_minds_truncation(tmp_path):
    """A partial body is accepted only with a policy that reads `truncated_body`, tests aside."""
    body = {"max_request_bytes": 1, "allow_partial_message": True}
    text = edited(put(with_request_body=body))
    policy = tmp_path / "policy"
    policy.mkdir()
    config = Config(ext_authz={"policy": str(policy)})
    (policy / "a_test.rego").write_text("truncated_body")
    (policy / "a.rego").write_text("package a")
    assert levels(found(text, config)) == {Level.WARN}
    (policy / "a.rego").write_text("package a\nallow if not input.truncated_body")
    assert levels(found(text, config)) == {Level.OK}


def test_lenient_paths_make_normalisation_a_must():
    """With `unsafe_paths: allow`, nothing but Envoy's normalisation is left."""
    text = edited(on_manager(merge_slashes=False))
    assert levels(found(text, Config(ext_authz={"unsafe_paths": "allow"}))) == {Level.FAIL}


MANIFESTS = {
    "ConfigMap": {"kind": "ConfigMap", "data": {"envoy.yaml": "TEXT"}},
    "EnvoyFilter": {
        "kind": "EnvoyFilter",
        "spec": {"configPatches": [{"patch": {"value": {"typed_config": "CONFIG"}}}]},
    },
    "mesh": {
        "kind": "ConfigMap",
        "data": {
            "mesh": "extensionProviders:\n- name: authz\n  envoyExtAuthzGrpc: {failOpen: true}\n"
        },
    },
    "SecurityPolicy": {"kind": "SecurityPolicy", "spec": {"extAuth": {"failOpen": True}}},
    "unreadable": {"data": {"envoy.yaml": "{{ x }}\nfailureModeAllow: {{ .Values.open }}\n"}},
    "annotation": {"metadata": {"annotations": {"a": '{"failureModeAllow": true}'}}},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(tmp_path, name):
    """A manifest that accepts failures is found, also in a text within it, in any document."""
    config = {"@type": f"{TYPE}.ExtAuthz", "failureModeAllow": True}
    opened = SHIPPED.replace(CLOSED, "failure_mode_allow: true")
    manifest = json.loads(json.dumps(MANIFESTS[name]).replace('"CONFIG"', json.dumps(config)))
    if name == "ConfigMap":
        manifest["data"]["envoy.yaml"] = opened
    text = yaml.safe_dump_all([{"kind": "Namespace"}, manifest])
    assert Level.FAIL in levels(found(text, None, tmp_path))


def test_a_manifest_without_it_is_good(tmp_path):
    """And one that does not, is not blamed for what a part of a configuration lacks."""
    manifest = {"kind": "ConfigMap", "data": {"envoy.yaml": SHIPPED}}
    assert levels(found(yaml.safe_dump(manifest), None, tmp_path)) == {Level.OK}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SHIPPED.replace(CLOSED, f"{CLOSED}\n                      {CLOSED}"), "is there twice"),
        (SHIPPED.replace(CLOSED, f"{CLOSED}\n                      failureModeAllow: true"), "two"),
        ('{"admin": {}, "admin": {}}', "admin is there twice"),
        (TEMPLATE, "a template must be filled first"),
        ("- just\n- a list", "no configuration"),
        ("a: &a {b: *a}", "nested"),
        ("a: \x07", "no text"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, text, words):
    """What could mean two things, or nothing, is a usage error that says why."""
    path = tmp_path / "envoy.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read(path)


def test_ignored_parts_are_ignored(tmp_path):
    """`!ignore` is Envoy's own way to keep anchors beside the configuration."""
    text = "anchors: !ignore\n  a: &a {failure_mode_allow: true}\nadmin: {}\n"
    assert levels(found(text, None, tmp_path)) == {Level.OK}
    assert Level.FAIL in levels(found(f"{text}b: *a\n", None, tmp_path))


def test_a_dump_is_looked_at_as_a_whole():
    """In `/config_dump`, listeners, routes and filters that came by discovery are found."""
    root = yaml.safe_load(SHIPPED)
    [listener] = root["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    ext_authz = manager["http_filters"][2]
    manager["http_filters"][2] = {"name": ext_authz["name"], "configDiscovery": {}}
    routes = manager.pop("route_config")
    manager["rds"] = {"routeConfigName": routes["name"]}
    kind = "type.googleapis.com/envoy.admin.v3."
    dump = {
        "configs": [
            {
                "@type": f"{kind}ListenersConfigDump",
                "dynamicListeners": [{"activeState": {"listener": listener}}],
            },
            {
                "@type": f"{kind}RoutesConfigDump",
                "dynamicRouteConfigs": [{"routeConfig": routes}],
            },
            {"@type": f"{kind}EcdsConfigDump", "ecdsFilters": [{"ecdsFilter": ext_authz}]},
        ]
    }
    assert levels(list(examine(Envoy(from_dump("x", normalised(dump)))))) == {Level.OK}
    routes["virtual_hosts"][0]["routes"][0]["typedPerFilterConfig"] = {
        ext_authz["name"]: {"@type": FILTER_CONFIG, "disabled": True}
    }
    ext_authz["typed_config"]["failure_mode_allow"] = True
    seen = [finding.seen for finding in examine(Envoy(from_dump("x", normalised(dump))))]
    assert len(seen) == 2
    assert any("disabled for this route" in text for text in seen)
    assert any("failure_mode_allow is on" in text for text in seen)


def test_nothing_secret_is_told(tmp_path):
    """Findings hold names of settings, and never what a header or a token is set to."""
    secret = "s3cr3t-t0ken-value"

    def change(manager, ext_authz):
        ext_authz["failure_mode_allow"] = True
        headers = [{"key": "authorization", "value": f"Bearer {secret}"}]
        ext_authz["grpc_service"]["initial_metadata"] = headers
        ext_authz["unknown_field"] = secret
        manager.pop("normalize_path")

    path = tmp_path / "envoy.yaml"
    path.write_text(edited(change))
    envoys = in_file(path, None)
    findings = [finding for envoy in envoys for finding in examine(envoy)]
    documents = [envoy.document for envoy in envoys]
    findings += validated(path, documents, envoy_program())
    assert any("does not accept" in finding.seen for finding in findings)
    assert secret not in repr(findings)


def test_deprecated_fields(tmp_path):
    """What Envoy only warns about is a finding with the field's name."""
    path = tmp_path / "envoy.yaml"
    path.write_text(yaml_without_tokens(SHIPPED))
    documents = [envoy.document for envoy in in_file(path, None)]
    assert list(validated(path, documents, envoy_program())) == []
    text = path.read_text().replace("\nadmin:\n", "\nadmin:\n  access_log_path: /dev/null\n")
    path.write_text(text)
    documents = [envoy.document for envoy in in_file(path, None)]
    findings = list(validated(path, documents, envoy_program()))
    assert levels(findings) == {Level.WARN}
    assert any("v3.Admin.access_log_path" in finding.seen for finding in findings)
    assert list(validated(path, documents, None)) == []


ODD = st.sampled_from([None, True, 7, "x", [], {}, [None], [7], ["x"], {"a": 7}])


PLAIN = normalised(yaml.safe_load(SHIPPED))


@settings(max_examples=300)
@given(st.data())
def test_odd_shapes_are_no_crash(data):
    """Whatever stands where something else is due, the checks come to an end and say something."""
    root = copy.deepcopy(PLAIN)
    value, place = root, []
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        place.append((value, key := data.draw(st.sampled_from(keys))))
        value = value[key]
        if not (isinstance(value, (dict, list)) and value) or data.draw(st.integers(0, 5)) == 0:
            break
    outer, key = place[-1]
    outer[key] = data.draw(ODD)
    findings = list(examine(Envoy(Document("x", root), Config())))
    assert findings
    if key == "failure_mode_allow" and outer[key]:
        assert Level.FAIL in levels(findings)


def test_a_check_that_cannot_look_says_so():
    """What was found before stays, and the exit code is 3 only where nothing is to be mended."""

    def check():
        yield Finding(Level.WARN, "a", "b")
        raise UnavailableError("c")

    findings = look("part", check)
    assert [finding.level for finding in findings] == [Level.WARN, Level.UNKNOWN]
    assert exit_code(findings) == 1
    assert exit_code(findings[1:]) == 3
    assert exit_code([Finding(Level.OK, "a", "b")]) == 0
