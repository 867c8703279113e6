"""The inbound side of a sidecar as Istio makes it of deploy/istio, for an Envoy without a control
plane.

Filters in Istio's order, each with what the manifests say and with Istio's own values for the rest
(1.31: pilot's listener_builder.go, authz/builder, policy_applier.go, telemetry_logging.go). Left
out are Istio's own extensions (metadata exchange, statistics), which no other Envoy has.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

from authz.demo.stack import deploy_dir

DIRECTORY = deploy_dir() / "istio"

_V3 = "type.googleapis.com/envoy.extensions"
_HCM = "envoy.filters.network.http_connection_manager"
_NORMAL = {
    "NONE": {"normalize_path": False},
    "BASE": {"normalize_path": True},
    "MERGE_SLASHES": {"normalize_path": True, "merge_slashes": True},
    "DECODE_AND_MERGE_SLASHES": {
        "normalize_path": True, "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    },
}  # fmt: skip

Document = dict[str, Any]


class Mesh:
    """What deploy/istio says. `clusters` are by the services that its providers name."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.config: Document = yaml.safe_load((directory / "mesh.yaml").read_text())
        self.resources: list[Document] = []
        for name in yaml.safe_load((directory / "kustomization.yaml").read_text())["resources"]:
            self.resources += yaml.safe_load_all((directory / name).read_text())

    def one(self, kind: str) -> Document:
        [found] = [resource for resource in self.resources if resource["kind"] == kind]
        return found

    def provider(self, name: str, kind: str) -> Document:
        [found] = [one for one in self.config["extensionProviders"] if one["name"] == name]
        provider: Document = found[kind]
        return provider

    def connection_manager(self, jwks: str, clusters: dict[str, str], upstream: str) -> Document:
        """Keys are a JWK set, since Istio's control plane fetches `jwksUri` itself."""
        normalization = self.config["pathNormalization"]["normalization"]
        manager = {
            "@type": f"{_V3}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "inbound_0.0.0.0_8000",
            "use_remote_address": False,
            "forward_client_cert_details": "APPEND_FORWARD",
            "set_current_client_cert_details": {"subject": True, "dns": True, "uri": True},
            "server_name": "istio-envoy",
            "stream_idle_timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            **_NORMAL[normalization],
            "access_log": self._access_log(clusters),
            "route_config": {
                "name": "inbound", "validate_clusters": False,
                "virtual_hosts": [{"name": "inbound|http|80", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": upstream, "timeout": "0s"}}
                ]}],
            },
            "http_filters": [
                *self._ext_authz(clusters),
                self._jwt_authn(jwks),
                _filter("envoy.filters.http.grpc_stats", "filters.http.grpc_stats.v3.FilterConfig"),
                _filter("envoy.filters.http.fault", "filters.http.fault.v3.HTTPFault"),
                _filter("envoy.filters.http.cors", "filters.http.cors.v3.Cors"),
                _filter("envoy.filters.http.router", "filters.http.router.v3.Router"),
            ],
        }  # fmt: skip
        for patch in self.one("EnvoyFilter")["spec"]["configPatches"]:
            _apply(manager, patch)
        return manager

    def _ext_authz(self, clusters: dict[str, str]) -> list[Document]:
        """The RBAC filter enforces nothing: it says whether a rule matches, and ext_authz is asked
        only then."""
        policy = self.one("AuthorizationPolicy")
        name = policy["spec"]["provider"]["name"]
        provider = self.provider(name, "envoyExtAuthzGrpc")
        assert policy["spec"]["rules"] == [{}], "more is not made here"
        place = f"ns[{policy['metadata']['namespace']}]-policy[{policy['metadata']['name']}]"
        everything = {"and_rules": {"rules": [{"any": True}]}}
        matches = {"permissions": [everything],
                   "principals": [{"and_ids": {"ids": [{"any": True}]}}]}  # fmt: skip
        rules = {"action": "DENY",
                 "policies": {f"istio-ext-authz-{name}-{place}-rule[0]": matches}}  # fmt: skip
        service = provider["service"]
        more = {}
        if "statusOnError" in provider:
            more["status_on_error"] = {"code": int(provider["statusOnError"])}
        return [
            _filter(
                "envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC",
                shadow_rules=rules, shadow_rules_stat_prefix="istio_ext_authz_",
            ),
            _filter(
                "envoy.filters.http.ext_authz", "filters.http.ext_authz.v3.ExtAuthz",
                transport_api_version="V3",
                failure_mode_allow=provider.get("failOpen", False),
                grpc_service={
                    "envoy_grpc": {"cluster_name": clusters[service], "authority": service},
                    "timeout": provider.get("timeout", "600s"),
                },
                filter_enabled_metadata={
                    "filter": "envoy.filters.http.rbac",
                    "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
                    "value": {"string_match": {"prefix": f"istio-ext-authz-{name}"}},
                },
                **more,
            ),
        ]  # fmt: skip

    def _jwt_authn(self, jwks: str) -> Document:
        [rule] = self.one("RequestAuthentication")["spec"]["jwtRules"]
        places = [{"name": one["name"], "value_prefix": one.get("prefix", "")}
                  for one in rule.get("fromHeaders", [])]  # fmt: skip
        provider = {
            "issuer": rule["issuer"], "audiences": rule.get("audiences", []),
            "forward": rule.get("forwardOriginalToken", False), "from_headers": places,
            "payload_in_metadata": "payload", "local_jwks": {"inline_string": jwks},
        }  # fmt: skip
        either = {"requires_any": {
            "requirements": [{"provider_name": "origins-0"}, {"allow_missing": {}}]
        }}  # fmt: skip
        return _filter(
            "envoy.filters.http.jwt_authn", "filters.http.jwt_authn.v3.JwtAuthentication",
            providers={"origins-0": provider}, bypass_cors_preflight=True,
            rules=[{"match": {"prefix": "/"}, "requires": either}],
        )  # fmt: skip

    def _access_log(self, clusters: dict[str, str]) -> list[Document]:
        [logging] = self.one("Telemetry")["spec"]["accessLogging"]
        assert logging["match"]["mode"] == "SERVER", "else the client's side is logged too"
        [named] = logging["providers"]
        provider = self.provider(named["name"], "envoyHttpAls")
        service = provider["service"]
        grpc = {"envoy_grpc": {"cluster_name": clusters[service], "authority": service}}
        return [
            _filter(
                "envoy.access_loggers.http_grpc", "access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
                common_config={
                    "log_name": provider.get("logName", "http_envoy_accesslog"),
                    "grpc_service": grpc, "transport_api_version": "V3",
                    "filter_state_objects_to_log": ["upstream_peer", "downstream_peer"],
                },
                additional_request_headers_to_log=provider.get("additionalRequestHeadersToLog", []),
            )
        ]  # fmt: skip


def _filter(name: str, kind: str, **config: object) -> Document:
    return {"name": name, "typed_config": {"@type": f"{_V3}.{kind}", **config}}


def _apply(manager: Document, patch: Document) -> None:
    """One patch of an EnvoyFilter, as far as ours go."""
    chosen = patch["match"]["listener"]["filterChain"]["filter"]
    assert (patch["match"]["context"], chosen["name"]) == ("SIDECAR_INBOUND", _HCM)
    operation, value = patch["patch"]["operation"], copy.deepcopy(patch["patch"]["value"])
    filters = manager["http_filters"]
    if operation == "INSERT_FIRST":
        filters.insert(0, value)
        return
    assert operation == "MERGE"
    if patch["applyTo"] == "NETWORK_FILTER":
        _merge(manager, value["typed_config"])
    else:
        [merged] = [one for one in filters if one["name"] == chosen["subFilter"]["name"]]
        _merge(merged["typed_config"], value["typed_config"])


def _merge(into: Document, value: Document) -> None:
    """As protobuf merges messages, of which ours have no lists."""
    for key, item in value.items():
        assert not isinstance(item, list)
        if isinstance(item, dict) and isinstance(into.get(key), dict):
            _merge(into[key], item)
        else:
            into[key] = item
