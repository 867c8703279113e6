"""TLS for the hops of Envoy's bootstrap that other hosts can reach.

Envoy is given certificates by the names of files, in small files beside the bootstrap (secret
discovery by path): when the directory that holds them is replaced, as Kubernetes does with a
secret, new connections use the new ones. In a bootstrap itself they would be read once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

Json: TypeAlias = dict[str, Any]

LISTENER: Final = "listener"
_TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_CERTIFICATE: Final = "certificate"
_AUTHORITY: Final = "authority"


def secrets(tls: Path) -> dict[str, str]:
    """The files to put beside the bootstrap, for ``tls.crt``, ``tls.key`` and ``ca.crt`` in `tls`
    (as a Kubernetes secret of cert-manager names them)."""
    watched = {"watched_directory": {"path": str(tls)}}
    certificate = {
        "certificate_chain": {"filename": str(tls / "tls.crt")},
        "private_key": {"filename": str(tls / "tls.key")},
    }
    authority = {"trusted_ca": {"filename": str(tls / "ca.crt")}}
    return {
        f"{_CERTIFICATE}.yaml": _secret(_CERTIFICATE, {"tls_certificate": certificate | watched}),
        f"{_AUTHORITY}.yaml": _secret(_AUTHORITY, {"validation_context": authority | watched}),
    }


def secure(
    document: Json, hops: Mapping[str, str], directory: Path, *, client_certificates: bool
) -> None:
    """Give each of `hops` in the filled bootstrap `document` its TLS: clusters by the name in their
    server's certificate, and `LISTENER`, whose clients must show a certificate if
    `client_certificates`. The files of `secrets` are in `directory`."""
    resources = document["static_resources"]
    for cluster in resources["clusters"]:
        if cluster["name"] in hops:
            cluster["transport_socket"] = _upstream(hops[cluster["name"]], directory)
    if LISTENER in hops:
        [listener] = resources["listeners"]
        for chain in listener["filter_chains"]:
            chain["transport_socket"] = _downstream(
                directory, client_certificates=client_certificates
            )


def _secret(name: str, content: Json) -> str:
    resource = {"@type": f"{_TLS}.Secret", "name": name, **content}
    return yaml.safe_dump({"resources": [resource]}, sort_keys=False)


def _reference(name: str, directory: Path) -> Json:
    source = {"path": str(directory / f"{name}.yaml")}
    return {
        "name": name,
        "sds_config": {"path_config_source": source, "resource_api_version": "V3"},
    }


def _socket(context: str, common: Json, **more: object) -> Json:
    config = {"@type": f"{_TLS}.{context}", **more, "common_tls_context": common}
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _upstream(host: str, directory: Path) -> Json:
    """Without the name, any certificate of the authority would be believed."""
    name = {"san_type": "DNS", "matcher": {"exact": host}}
    common = {
        "tls_certificate_sds_secret_configs": [_reference(_CERTIFICATE, directory)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [name]},
            "validation_context_sds_secret_config": _reference(_AUTHORITY, directory),
        },
    }
    return _socket("UpstreamTlsContext", common, sni=host)


def _downstream(directory: Path, *, client_certificates: bool) -> Json:
    common: Json = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [_reference(_CERTIFICATE, directory)],
    }
    if client_certificates:
        common["validation_context_sds_secret_config"] = _reference(_AUTHORITY, directory)
    return _socket("DownstreamTlsContext", common, require_client_certificate=client_certificates)
