"""The shipped Envoy bootstrap, and what people do to it that opens something."""

import copy
import re
from pathlib import Path

import yaml

from authz.envoy.bootstrap import render

DEPLOY = Path(__file__).parents[1] / "deploy"
TEMPLATE = (DEPLOY / "envoy" / "envoy.yaml").read_text()
NAMES = sorted(set(re.findall(r"\$\{([A-Z_]+)\}", TEMPLATE)))
VALUES = {name: 8080 if name.endswith("PORT") else "127.0.0.1" for name in NAMES} | {
    "AUTHZ_TIMEOUT": "0.25s",
    "XFF_TRUSTED_HOPS": 0,
    "OBSERVE_OFF": "true",
    "HOLD_OFF": "true",
}
SHIPPED = render(TEMPLATE, VALUES)
TYPE = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3"
CLOSED = "failure_mode_allow: false"


def edited(change) -> str:
    """The shipped bootstrap after `change(manager, ext_authz)`."""
    root = yaml.safe_load(SHIPPED)
    [chain] = root["static_resources"]["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    change(manager, manager["http_filters"][2]["typed_config"])
    return yaml.safe_dump(root)


def put(**values):
    return lambda _, ext_authz: ext_authz.update(values)


def on_manager(**values):
    return lambda manager, _: manager.update(values)


def without(*names):
    def change(manager, ext_authz):
        for name in names:
            manager.pop(name, None)
            ext_authz.pop(name, None)

    return change


def on_route(config):
    def change(manager, _):
        [host] = manager["route_config"]["virtual_hosts"]
        host["routes"][0]["typed_per_filter_config"] = {"envoy.filters.http.ext_authz": config}

    return change


def on_log(**values):
    return lambda manager, _: manager["access_log"][0]["typed_config"].update(values)


def on_log_common(change):
    return lambda manager, _: change(manager["access_log"][0]["typed_config"]["common_config"])


def on_entry(**values):
    return lambda manager, _: manager["http_filters"][2].update(values)


def filters(order):
    def change(manager, _):
        manager["http_filters"] = [manager["http_filters"][at] for at in order]

    return change


def before_all(kind):
    return lambda manager, _: manager["http_filters"].insert(0, of_type(kind))


def behind(kind):
    return lambda manager, _: manager["http_filters"].insert(-1, of_type(kind))


def of_type(kind):
    config = {"@type": f"type.googleapis.com/envoy.extensions.filters.http.{kind}"}
    return {"name": kind, "typed_config": config}


def wrapped(manager, ext_authz):
    inner = copy.deepcopy(ext_authz)
    kind = "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher"
    manager["http_filters"][2]["typed_config"] = {
        "@type": kind,
        "extension_config": {"name": "inner", "typed_config": inner},
        "xds_matcher": {},
    }


def struct(manager, ext_authz):
    inner = {key: value for key, value in ext_authz.items() if key != "@type"}
    manager["http_filters"][2]["typed_config"] = {
        "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
        "type_url": f"{TYPE}.ExtAuthz",
        "value": {**inner, "shadowMode": True},
    }


def tcp(manager, _):
    kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    manager.clear()
    manager.update({"@type": kind, "cluster": "service"})


HALF = {"default_value": {"numerator": 50}}
ALL = {"default_value": {"numerator": 1_000_000, "denominator": "MILLION"}, "runtime_key": "x"}
DENIES = {"default_value": True, "runtime_key": "y"}
FILTER_CONFIG = "type.googleapis.com/envoy.config.route.v3.FilterConfig"
PER_ROUTE = {"@type": f"{TYPE}.ExtAuthzPerRoute"}
STDOUT = "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"

WRONG = {
    "shadow mode": (put(shadow_mode=True), "fail", "shadow_mode"),
    "half of the requests": (put(filter_enabled=HALF), "fail", "50 %"),
    "at run time": (put(filter_enabled=ALL), "fail", "run time"),
    "half, rest denied": (put(filter_enabled=HALF, deny_at_disable=DENIES), "warn", "50 %"),
    "odd share": (put(filter_enabled={"default_value": "x"}), "fail", "0 %"),
    "by metadata": (put(filter_enabled_metadata={"filter": "x"}), "fail", "metadata"),
    "route disabled": (on_route({**PER_ROUTE, "disabled": True}), "fail", "disabled"),
    "route, camel": (on_route({"@type": FILTER_CONFIG, "disabled": "true"}), "fail", "disabled"),
    "route within": (
        on_route({"@type": FILTER_CONFIG, "config": {**PER_ROUTE, "disabled": True}}),
        "fail",
        "disabled",
    ),
    "route asks another": (
        on_route({**PER_ROUTE, "checkSettings": {"grpcService": {}}}),
        "warn",
        "service of its own",
    ),
    "entry disabled": (on_entry(disabled=True), "fail", "disabled is on"),
    "entry optional": (on_entry(is_optional=True), "fail", "is_optional"),
    "no ext_authz": (filters([0, 1, 5]), "fail", "before the router"),
    "behind the router": (filters([0, 1, 5, 2, 3, 4]), "fail", "before the router"),
    "matcher": (wrapped, "warn", "matcher"),
    "typed struct": (struct, "fail", "shadow_mode"),
    "http service": (put(http_service={}), "fail", "http_service"),
    "partial body": (
        put(with_request_body={"max_request_bytes": 1, "allow_partial_message": True}),
        "warn",
        "allow_partial_message",
    ),
    "raw headers": (put(encode_raw_headers=True), "warn", "encode_raw_headers"),
    "no certificate": (without("include_peer_certificate"), "warn", "include_peer_certificate"),
    "no time": (put(grpc_service={"timeout": "0.05s"}), "fail", "50 ms"),
    "no metadata": (put(enable_dynamic_metadata_ingestion=False), "fail", "ingestion"),
    "no access log": (without("access_log"), "fail", "no gRPC access log"),
    "no trace": (on_log(additional_request_headers_to_log=[]), "warn", "traceparent"),
    "secret logged": (
        on_log(additional_request_headers_to_log=["traceparent", "Authorization"]),
        "fail",
        "authorization",
    ),
    "log filtered": (
        lambda manager, _: manager["access_log"][0].update(filter={}),
        "warn",
        "filter",
    ),
    "log printed": (
        lambda manager, _: manager["access_log"].append({"typed_config": {"@type": STDOUT}}),
        "warn",
        "standard output",
    ),
    "flush": (on_log_common(lambda c: c.pop("buffer_flush_interval")), "warn", "flush"),
    "slow flush": (on_log_common(lambda c: c.update(buffer_flush_interval="60s")), "warn", "60s"),
    "buffer": (on_log_common(lambda c: c.pop("buffer_size_bytes")), "warn", "buffer_size"),
    "drain": (without("drain_timeout"), "warn", "drain_timeout"),
    "nothing in between": (without("access_log_options"), "warn", "access_log_flush_interval is l"),
    "seldom in between": (
        on_manager(access_log_options={"access_log_flush_interval": "90s"}),
        "warn",
        "is 90s",
    ),
    "normalize": (without("normalize_path"), "fail", "normalize_path"),
    "merge": (on_manager(merge_slashes=False), "warn", "merge_slashes"),
    "escaped": (on_manager(path_with_escaped_slashes_action="KEEP_UNCHANGED"), "warn", "KEEP_UNCH"),
    "escaped, default": (without("path_with_escaped_slashes_action"), "warn", "default"),
    "remote address": (on_manager(use_remote_address=False), "warn", "use_remote_address"),
    "request id": (on_manager(preserve_external_request_id=True), "warn", "request_id"),
    "header of allowing": (
        put(failure_mode_allow_header_add=True),
        "warn",
        "failure_mode_allow_header_add",
    ),
    "tokens after": (filters([0, 2, 1, 3, 4, 5]), "warn", "jwt_authn stands after"),
    "changed after": (filters([1, 2, 3, 4, 0, 5]), "warn", "header_mutation stands after"),
    "cache before": (before_all("cache.v3.CacheConfig"), "fail", "a cache stands before"),
    "script after": (behind("lua.v3.Lua"), "warn", "lua stands after"),
    "tcp": (tcp, "warn", "tcp_proxy"),
}
