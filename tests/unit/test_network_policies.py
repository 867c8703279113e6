"""deploy/kubernetes: who may connect to whom, by the NetworkPolicies of each overlay."""

import pytest
from kustomized import OVERLAYS, built
from network_policies import OUTSIDE, Network, Peer, peers

STRANGERS = (
    Peer("prometheus", "monitoring"),
    Peer("ingress", "ingress-nginx"),
    Peer("neighbour", "fhir"),
    Peer("stranger", "elsewhere", {"authz/envoy": "sidecar"}),
    OUTSIDE,
)
EVERYBODY = {one.name for one in STRANGERS}
WRITERS = {"console", "watch", "fhir"}
REACHED = {
    "fhir:ingress": EVERYBODY,
    "receiver:grpc": WRITERS,
    "console:https": {"ingress"},
}
AMONG_THEMSELVES = {
    "autoscaled": REACHED,
    "on-disk": REACHED | {"receiver:grpc": WRITERS | {"ext-authz"}, "ext-authz:grpc": {"fhir"}},
    "opa-per-node": REACHED | {"opa:https": {"fhir"}},
    "demo": REACHED | {"clickhouse:native": {"receiver", "console", "watch", "migrate"}},
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_may_connect_to_whom(overlay):
    """What each pod takes is as its policies say; metrics are for the monitoring alone. Of the pods
    of authz none but these ports lead out, and those of applications are the applications' own."""
    found = built(overlay)
    network = Network(found)
    ours = list(peers(found))
    reached: dict[str, set[str]] = {}
    for target in ours:
        for name, port in target.ports.items():
            sources = {
                source.name
                for source in (*ours, *STRANGERS)
                if source is not target and network.lets(source, target, port)
            }
            if "metrics" in name:
                assert sources == {"prometheus"}, target
            else:
                reached[f"{target.name}:{name}"] = sources
    assert reached == AMONG_THEMSELVES[overlay]
    tried = (22, 53, 80, 443, 4317, 8181, 9000, 9191, 9292, 9440)
    for source in ours:
        assert network.lets(source, Peer("dns", "kube-system"), 53)
        out = {port for port in tried if network.lets(source, OUTSIDE, port)}
        if source.namespace != "fhir":
            assert out == LEAD_OUT[source.name], source


LEAD_OUT = {
    "receiver": {443, 9000, 9440},
    "console": {443, 9000, 9440},
    "watch": {443, 9000, 9440},
    "migrate": {9000, 9440},
    "ext-authz": {443},
    "opa": {443},
    "fhir": set[int](),  # the demo's, in the same namespace
    "clickhouse": set[int](),
}
