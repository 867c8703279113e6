"""A kustomize overlay over deploy/kubernetes, with the site's values."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from authz.errors import UsageError
from authz.init.answers import (
    SAMPLE,
    Answers,
    Durability,
    host_port,
    image,
    manifest_files,
)
from authz.init.hosts import add_policy, fetch_keys, keys, users_step
from authz.init.plan import Plan, copy, database, privacy_key, shipped
from authz.init.yamls import Place, dump, rewritten

Object = dict[str, Any]

_VENDORED = ("base", "central", "components", "authority", "ext-authz")
_KINDS = ("Deployment", "StatefulSet")
_KUSTOMIZATION = "kustomization.yaml"


def kubernetes(answers: Answers) -> Plan:
    """One application and all of authz."""
    plan = Plan()
    shared = answers.durability == Durability.LOCAL
    central(plan, answers, shared=shared)
    vendored = "../deploy/kubernetes/components"
    literals = [
        f"SERVICE_PORT={host_port(answers.upstream)[1]}",
        f"NODE_CLUSTER={answers.name}",
        f"JWT_ISSUER={answers.issuer}",
        f"JWT_AUDIENCE={answers.audience}",
        "RECEIVER_HOST=" + moved("receiver-0.receiver.authz.svc", answers.authz_namespace),
    ]
    if shared:
        literals.append("AUTHZ_HOST=" + moved("ext-authz.authz.svc", answers.authz_namespace))
    component = f"{vendored}/envoy" if shared else f"{vendored}/sidecar"
    plan.add("app/jwks.json", keys(answers))
    application(plan, answers, [component], literals, envoy=True, opa=not shared)
    root(plan, answers, ["app"])
    fetch_keys(plan, answers, "app/jwks.json")
    common_steps(plan, answers)
    name, namespace = answers.name, answers.namespace
    plan.step("See it come up", f"kubectl -n {namespace} get pods --watch")
    if answers.manifests == SAMPLE:
        plan.step(
            f"The application is the sample FHIR service: put yours into app/{name}.yaml"
            " (deploy/kubernetes/README.md, `An application that you have`)"
        )
    else:
        plan.step("Clients now come in over TLS, at the port `ingress` of its pods, through Envoy")
    verify_step(plan, answers)
    return plan


def root(plan: Plan, answers: Answers, more: list[str]) -> None:
    """The overlay, and what it is made of: deploy/ as it is."""
    for name in _VENDORED:
        copy(plan, f"kubernetes/{name}", f"deploy/kubernetes/{name}")
    copy(plan, "opa", "deploy/opa")
    _images(plan, answers)
    told = f"authz in {answers.cluster}. deploy/ is authz's, unchanged; the rest is this site's."
    resources = ["deploy/kubernetes/authority", "central", *more]
    plan.add(_KUSTOMIZATION, dump({"resources": resources, "components": ["image"]}, told))
    plan.add(".gitignore", "/secrets/\n")


def central(
    plan: Plan,
    answers: Answers,
    *,
    shared: bool = False,
    gateway: bool = False,
    components: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> None:
    """authz's own namespace. `shared`: with an ext-authz for all; `gateway`: which is asked by a
    gateway. `settings` are NAME=value of its configuration."""
    namespace = answers.authz_namespace
    vendored = "../deploy/kubernetes"
    opa = [f"{vendored}/components/opa", *_policy(plan, answers)]
    values = [
        f"CLUSTER={answers.cluster}",
        f"AUTHZ_CONSOLE__URL={answers.console_url}",
        f"AUTHZ_CONSOLE__OIDC__ISSUER={answers.oidc_issuer}",
        f"AUTHZ_CONSOLE__OIDC__CLIENT_ID={answers.oidc_client}",
        *settings,
    ]
    patches: list[Object] = [{"path": "watch.yaml"}]
    for name, hosts in _certificates(answers, shared=shared, gateway=gateway).items():
        patches.append(certificate_names(name, hosts))
    plan.add(
        f"central/{_KUSTOMIZATION}",
        dump(
            {
                "resources": [f"{vendored}/base", *([f"{vendored}/ext-authz"] if shared else [])],
                "namespace": namespace,
                "components": [*opa, *components],
                "configMapGenerator": [
                    {"name": "authz-site", "behavior": "merge", "literals": values}
                ],
                "patches": patches,
            },
            "What the cluster has once: receiver, console, watch"
            + (", ext-authz." if shared else "."),
        ),
    )
    plan.add("central/watch.yaml", _WATCH)
    _secrets(plan, answers)


_WATCH = """# A user of its own in the database, which reads the log of queries too.
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: watch
  namespace: authz
spec:
  template:
    spec:
      containers:
        - name: authz
          env:
            - name: AUTHZ_STORE
              valueFrom: {secretKeyRef: {name: clickhouse-watch, key: store}}
"""


def certificate_names(name: str, hosts: list[str]) -> Object:
    change = [{"op": "replace", "path": "/spec/dnsNames", "value": hosts}]
    target = {"kind": "Certificate", "name": name}
    return {"target": target, "patch": dump(change)}


def _certificates(answers: Answers, *, shared: bool, gateway: bool) -> dict[str, list[str]]:
    """The names in authz's own certificates, where they are not the usual ones."""
    namespace = answers.authz_namespace
    found = {}
    for path in ("base/certificates.yaml", *(("ext-authz/ext-authz.yaml",) if shared else ())):
        for one in yaml.safe_load_all(shipped(f"kubernetes/{path}")):
            if one["kind"] == "Certificate":
                name, hosts = one["metadata"]["name"], one["spec"]["dnsNames"]
                if gateway and name == "receiver":
                    hosts = [*hosts, "receiver.authz.svc", "receiver.authz.svc.cluster.local"]
                made = [moved(host, namespace) for host in hosts]
                if made != one["spec"]["dnsNames"]:
                    found[name] = made
    return found


def moved(name: str, namespace: str) -> str:
    """The name of a Service of authz's, in another namespace than `authz`."""
    return name.replace(".authz.svc", f".{namespace}.svc")


def _policy(plan: Plan, answers: Answers) -> list[str]:
    """OPA's policy, as components for whoever has an OPA."""
    generators: list[Object]
    if answers.policy.startswith("https://"):
        plan.add("policy/bundle.pem", Path(answers.bundle_key).read_bytes())
        host, _, path = answers.policy.removeprefix("https://").partition("/")
        literals = [f"BUNDLE_SERVICE=https://{host}", f"BUNDLE_RESOURCE={path}"]
        generators = [
            {"name": "opa-bundle", "behavior": "merge", "literals": literals},
            {"name": "opa-bundle-key", "files": ["bundle.pem"]},
        ]
        told, components = "Signed bundles: from where, and by whose key.", ["../policy"]
    else:
        names = add_policy(plan, answers, "policy")
        generators = [{"name": "opa-policy", "behavior": "replace", "files": names}]
        told = "The policy, as a ConfigMap. A bundle that is signed takes its place in production."
        components = ["../deploy/kubernetes/components/opa-files", "../policy"]
    component = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "configMapGenerator": generators,
    }
    plan.add(f"policy/{_KUSTOMIZATION}", dump(component, told))
    return components


def application(
    plan: Plan,
    answers: Answers,
    components: Sequence[str],
    literals: Sequence[str],
    *,
    envoy: bool = False,
    opa: bool = True,
) -> None:
    """The application's namespace. `literals` are its values, NAME=value; `envoy`: with an Envoy of
    its own; `opa`: with an OPA."""
    resources, services = _manifests(plan, answers)
    generators: list[Object] = [{"name": "authz-values", "literals": list(literals)}]
    patches: list[Object] = []
    if envoy:
        generators.append({"name": "authz-jwks", "files": ["jwks.json"]})
        hosts = [
            f"{service}.{answers.namespace}.svc{more}"
            for service in services
            for more in ("", ".cluster.local")
        ]
        if named := [*hosts, *answers.hostnames]:
            patches.append(certificate_names("authz-sidecar", named))
    port = [{"op": "add", "path": "/spec/ports/0/targetPort", "value": "ingress"}]
    patches += [
        {"target": {"kind": "Service", "name": service}, "patch": dump(port)}
        for service in services
        if envoy
    ]
    plan.add(
        f"app/{_KUSTOMIZATION}",
        dump(
            {
                "resources": ["namespace.yaml", *resources],
                "namespace": answers.namespace,
                "components": [*components, *(_policy(plan, answers) if opa else ())],
                "configMapGenerator": generators,
                "patches": patches,
            },
            "The application, and what asks about its requests.",
        ),
    )
    plan.add("app/namespace.yaml", namespace_of("example/namespace.yaml", answers.namespace))


def namespace_of(path: str, name: str) -> str:
    return rewritten(
        shipped(f"kubernetes/{path}"),
        lambda place, _: name if place == ("metadata", "name") else None,
    )


def _manifests(plan: Plan, answers: Answers) -> tuple[list[str], list[str]]:
    """Their files below app/, and the names of their Services. Raises `UsageError`."""
    if answers.manifests == SAMPLE:
        named = f"{answers.name}.yaml"

        def change(_: Place, value: str) -> str | None:
            at = value.replace("127.0.0.1:8000", answers.upstream)
            return answers.name if value == "fhir" else at if at != value else None

        plan.add(f"app/{named}", rewritten(shipped("kubernetes/example/fhir.yaml"), change))
        return [named], [answers.name]
    found: list[Object] = []
    names = []
    for path in manifest_files(Path(answers.manifests)):
        try:
            found += [one for one in yaml.safe_load_all(path.read_text()) if one]
        except (yaml.YAMLError, UnicodeDecodeError):
            raise UsageError(f"--manifests: {path} is no YAML") from None
        names.append(path.name)
        plan.add(f"app/{path.name}", path.read_bytes())
    if not all(isinstance(one, dict) and "kind" in one for one in found):
        raise UsageError(f"--manifests: {answers.manifests}: want objects of Kubernetes")
    if not any(one["kind"] in _KINDS for one in found):
        raise UsageError(
            f"--manifests: {answers.manifests}: no Deployment or StatefulSet to put Envoy before"
        )
    services = [one for one in found if one["kind"] == "Service"]
    for one in services:
        if len(one["spec"].get("ports", ())) != 1:
            raise UsageError(
                f"--manifests: the Service {one['metadata']['name']} has several ports, or none;"
                " want one, which is to lead to Envoy"
            )
    if {"namespace.yaml", "jwks.json", _KUSTOMIZATION} & set(names):
        raise UsageError("--manifests: a file must not be called namespace.yaml; rename it")
    return names, [str(one["metadata"]["name"]) for one in services]


def _images(plan: Plan, answers: Answers) -> None:
    component = yaml.safe_load(shipped(f"kubernetes/components/image/{_KUSTOMIZATION}"))
    [ours] = [one for one in component["images"] if one["name"] == "authz"]
    for key in ("newName", "newTag", "digest"):
        ours.pop(key, None)
    ours |= image(answers.image)
    told = "Where images come from. For a production site, give each a digest."
    plan.add(f"image/{_KUSTOMIZATION}", dump(component, told))


def _secrets(plan: Plan, answers: Answers) -> None:
    """What is secret, as Secrets: applied once, and in no repository."""
    plan.secret("secrets/privacy.key", privacy_key())
    passwords = database(plan, "secrets/passwords")
    ours = answers.authz_namespace
    generators: list[Object] = [
        {"name": "authz-privacy", "namespace": namespace, "files": ["privacy.key"]}
        for namespace in dict.fromkeys((ours, answers.namespace))
    ]
    for user in ("receiver", "reader", "watch", "migrator"):
        plan.secret(f"secrets/{user}.store", answers.store(user, passwords[user]))
        name = f"clickhouse-{user}"
        generators.append({"name": name, "namespace": ours, "files": [f"store={user}.store"]})
    secret = Path(answers.oidc_secret).read_text().strip() if answers.oidc_secret else ""
    plan.secret("secrets/client-secret", secret)
    generators.append({"name": "console-oidc", "namespace": ours, "files": ["client-secret"]})
    spaces = [namespace_of("base/namespace.yaml", ours)]
    if answers.namespace != ours:
        spaces.append(namespace_of("example/namespace.yaml", answers.namespace))
    plan.add("secrets/namespaces.yaml", "---\n".join(spaces))
    plan.add(
        f"secrets/{_KUSTOMIZATION}",
        dump(
            {
                "resources": ["namespaces.yaml"],
                "generatorOptions": {"disableNameSuffixHash": True},
                "secretGenerator": generators,
            },
            "What is secret, and the namespaces that it is in. For no repository.",
        ),
    )


def common_steps(plan: Plan, answers: Answers, *, injected: bool = False) -> None:
    plan.step("cert-manager must be in the cluster, and a CNI that enforces NetworkPolicies")
    users_step(plan, answers, "secrets/passwords")
    if not answers.oidc_secret:
        plan.step(
            f"Register the client {answers.oidc_client} at {answers.oidc_issuer}; its secret",
            "cat > secrets/client-secret",
        )
    plan.step("The secrets, once", "kubectl apply -k secrets")
    if injected:
        spaces = " ".join(dict.fromkeys((answers.authz_namespace, answers.namespace)))
        plan.step(
            "Both namespaces in the mesh",
            f"kubectl label namespace {spaces} istio-injection=enabled",
        )
    plan.step("Everything", "kubectl apply -k .")
    plan.step("Back up secrets/, above all privacy.key, and leave it in no repository and not here")


def verify_step(plan: Plan, answers: Answers) -> None:
    exec_ = f"kubectl -n {answers.authz_namespace} exec receiver-0 -- authz"
    plan.step("Verify the log", f"{exec_} verify --trust /var/lib/authz/trust.yaml")


def variables(document: Object, above: str = "AUTHZ_") -> list[str]:
    """A configuration, as variables of the environment."""
    found = []
    for key, value in document.items():
        name = f"{above}{key.upper()}"
        if isinstance(value, dict):
            found += variables(value, f"{name}__")
        elif isinstance(value, str):
            found.append(f"{name}={value}")
        else:
            found.append(f"{name}={json.dumps(value, separators=(',', ':'))}")
    return found
