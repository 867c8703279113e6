"""Envoy's runtime: values that stand over the configuration, set by files, a control plane or hand.

A running Envoy tells them with `/runtime`; in a file only those of a static layer are to be seen.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from authz.doctor import documents
from authz.doctor.admin import Running
from authz.doctor.envoy import ANY_EXT_AUTHZ, Envoy, items, section
from authz.doctor.findings import Finding, Level

_FEATURE: Final = re.compile(r"^envoy\.(reloadable|restart)_features\.")
_OPENS: Final = {
    "envoy.reloadable_features.http_reject_path_with_fragment": (
        "the policy decides on a path that the service may read as another"
    ),
    "envoy.reloadable_features.jwt_authn_sanitize_payload_headers_filter_wide": (
        "clients can send the headers in which jwt_authn hands on what a token says"
    ),
    "envoy.reloadable_features.rbac_match_headers_individually": (
        "a header that stands twice can pass a rule that is meant for each"
    ),
}
_MEND: Final = "take it out of layered_runtime, or from where it is set"
_UNASKED: Final = "a request that authz is not asked about reaches the service undecided"


def in_file(envoy: Envoy) -> Iterator[Finding]:
    """No static layer takes back what Envoy does by default."""
    for layer in items(section(envoy.document.root, "layered_runtime"), "layers"):
        values = dict(_flat(section(layer, "static_layer"), ""))
        yield from _features(f"{envoy.document.name}: layered_runtime", values)


def running(envoy: Running) -> Iterator[Finding]:
    """The same for what is in force; nothing was set by hand, or switches the asking off."""
    values, by_hand = {}, []
    names = [str(name) for name in envoy.runtime.get("layers") or ()]
    admin = {layer.get("name") for layer in _layers(envoy) if "admin_layer" in layer} or {"admin"}
    for key, entry in section(envoy.runtime, "entries").items():
        values[key] = entry.get("final_value")
        told = zip(names, entry.get("layer_values") or (), strict=False)
        if any(name in admin and value != "" for name, value in told):
            by_hand.append(key)
    static = {
        key
        for layer in _layers(envoy)
        for key, _ in _flat(section(layer, "static_layer"), "")
        if key not in by_hand
    }
    others = {key: value for key, value in values.items() if key not in static}
    yield from _features(envoy.name, others)
    if by_hand:
        yield Finding(
            Level.WARN, envoy.name, f"set by hand at run time: {', '.join(sorted(by_hand))}",
            "it is written down nowhere, and whoever reaches the admin interface can do it",
            "set it to nothing (/runtime_modify?KEY=), and take admin_layer out of layered_runtime",
        )  # fmt: skip
    yield from _asking(envoy, values)


def _asking(running: Running, values: Mapping[str, Any]) -> Iterator[Finding]:
    """What the runtime says of the keys by which ext_authz can be switched off."""
    for node in running.envoy.of(ANY_EXT_AUTHZ):
        enabled = str(section(node.value, "filter_enabled").get("runtime_key", ""))
        if enabled in values and (percent := _percent(str(values[enabled]))) < 100:
            seen = f"{enabled} is {percent:g} % at run time: so many requests are asked about"
            yield Finding(Level.FAIL, running.name, seen, _UNASKED, f"{_MEND}; use no runtime_key")
        denies = str(section(node.value, "deny_at_disable").get("runtime_key", ""))
        if denies in values and not documents.is_true(values[denies]):
            why = "while ext_authz is switched off, every request is allowed, undecided"
            seen = f"{denies} is off at run time"
            yield Finding(Level.FAIL, running.name, seen, why, _MEND)


def _features(part: str, values: Mapping[str, Any]) -> Iterator[Finding]:
    for key, value in sorted(values.items()):
        if not _FEATURE.match(key):
            continue
        why = _OPENS.get(key)
        if why and not documents.is_true(value):
            yield Finding(Level.FAIL, part, f"{key} is off", why, _MEND)
        else:
            yield Finding(
                Level.WARN, part, f"{key} is set to {value}",
                "Envoy does other than by default; a later Envoy knows the key no more",
                _MEND,
            )  # fmt: skip


def _layers(running: Running) -> list[documents.Mapping]:
    return items(section(running.envoy.document.root, "layered_runtime"), "layers")


def _flat(value: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    """Each key by its whole name: a dot is the same as a level."""
    for key, item in value.items():
        name = f"{before}.{key}" if before else str(key)
        if isinstance(item, dict) and not {"numerator", "denominator"} & item.keys():
            yield from _flat(item, name)
        else:
            yield name, item


def _percent(text: str) -> float:
    """Of what the runtime holds: a number, or a fraction as Envoy prints it."""
    try:
        return float(text)
    except ValueError:
        number = re.search(r'"numerator"\s*value\s*\{\s*number_value:\s*([\d.]+)', text)
        whole = re.search(r'string_value:\s*"(HUNDRED|TEN_THOUSAND|MILLION)"', text)
        of = {"TEN_THOUSAND": 10_000, "MILLION": 1_000_000}.get(whole[1] if whole else "", 100)
        return 100 * float(number[1]) / of if number else 0
