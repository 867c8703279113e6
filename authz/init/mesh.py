"""Where somebody else's Envoys ask: Istio's sidecars, or Envoy Gateway."""

import yaml

from authz.init.answers import Answers
from authz.init.kubernetes import (
    application,
    central,
    certificate_names,
    common_steps,
    moved,
    root,
    variables,
    verify_step,
)
from authz.init.plan import Plan, copy, shipped
from authz.init.yamls import Place, dump, rewritten, with_values

_GATEWAY = ("gateway.yaml", "policy.yaml", "tls.yaml")
_BESIDE = ("certificates.yaml", "network.yaml")
_ISTIO = ("authz-namespace.yaml", "workload.yaml", "envoyfilter.yaml")


def istio(answers: Answers) -> Plan:
    """The mesh asks the ext-authz in each pod."""
    plan = Plan()
    beside = "deploy/istio/kubernetes"
    copy(plan, "istio/kubernetes", beside)
    central(plan, answers, components=[f"../{beside}/central"])
    application(
        plan,
        answers,
        components=[f"../{beside}/sidecar"],
        literals=[
            "RECEIVER_HOST="
            + moved("receiver-0.receiver.authz.svc.cluster.local", answers.authz_namespace),
            *variables(yaml.safe_load(_identity(answers, "istio"))),
        ],
    )
    for name in _ISTIO:
        plan.add(f"istio/{name}", _moved(answers, shipped(f"istio/{name}")))
    plan.add("istio/kustomization.yaml", dump({"resources": list(_ISTIO)}))
    plan.add("mesh.yaml", _moved(answers, shipped("istio/mesh.yaml")))
    root(plan, answers, ["app", "istio"])
    plan.step(
        "Istio must have its CNI plugin (docs/istio.md): without it, its containers ask for rights"
        " that the namespaces' level `restricted` refuses, and no pod starts"
    )
    plan.step(
        "mesh.yaml belongs into MeshConfig: `meshConfig` in istiod's Helm values, or the key"
        " `mesh` of the ConfigMap `istio` in istio-system (docs/istio.md)"
    )
    common_steps(plan, answers, injected=True)
    verify_step(plan, answers)
    return plan


def envoy_gateway(answers: Answers) -> Plan:
    """The gateway asks an ext-authz that is shared."""
    plan = Plan()
    settings = yaml.safe_load(_identity(answers, "envoy-gateway"))
    central(plan, answers, shared=True, settings=variables(settings), gateway=True)
    for name in _GATEWAY:
        plan.add(f"gateway/{name}", _moved(answers, shipped(f"envoy-gateway/{name}")))
    for name in _BESIDE:
        plan.add(f"gateway/{name}", _moved(answers, shipped(f"envoy-gateway/kubernetes/{name}")))
    plan.add(
        "gateway/kustomization.yaml",
        dump(
            {
                "resources": [*_GATEWAY, *_BESIDE],
                "components": ["../deploy/kubernetes/components/certificates"],
                "patches": [certificate_names("gateway", list(answers.hostnames))],
            }
        ),
    )
    root(plan, answers, ["gateway"])
    ours = answers.authz_namespace
    common_steps(plan, answers)
    plan.step(
        "The gateway believes authz's authority",
        "kubectl -n cert-manager get secret authz-root -o jsonpath='{.data.ca\\.crt}' | base64 -d |"
        f" kubectl -n {ours} create configmap authz-ca --from-file=ca.crt=/dev/stdin",
    )
    plan.step(
        "HTTPRoutes in the namespace " + answers.namespace + " name the gateway `authz` as parent"
    )
    verify_step(plan, answers)
    return plan


def _identity(answers: Answers, platform: str) -> str:
    """ext-authz's own configuration there: authz verifies tokens itself."""
    place = "identity.issuers.0"
    return with_values(
        shipped(f"{platform}/authz.yaml"),
        {
            f"{place}.issuer": answers.issuer,
            f"{place}.audiences.0": answers.audience,
            f"{place}.jwks": answers.jwks,
        },
    )


def _moved(answers: Answers, text: str) -> str:
    """A file of the platform's, for the site's namespaces and issuer."""
    told = {
        ("namespace", "fhir"): answers.namespace,
        ("namespace", "authz"): answers.authz_namespace,
        ("issuer", "https://idp.example"): answers.issuer,
        ("jwksUri", "https://idp.example/keys"): answers.jwks,
        ("audiences", "fhir"): answers.audience,
    }

    def change(place: Place, value: str) -> str | None:
        named = [key for key in place if isinstance(key, str)][-1]
        if value == "fhir-tls":
            return f"{answers.name}-tls"
        return told.get((named, value), moved(value, answers.authz_namespace))

    return rewritten(
        text, lambda place, value: new if (new := change(place, value)) != value else None
    )
