"""``authz envoy-config``."""

import os
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from authz.cli.app import app
from authz.config import is_local
from authz.demo.stack import deploy_dir
from authz.errors import UsageError
from authz.files import replace_file


class Hop(StrEnum):
    """Where Envoy speaks over a network, and the value that says with whom."""

    LISTENER = "listener"
    AUTHZ = "authz"
    RECEIVER = "receiver"


_ADDRESS = {
    Hop.LISTENER: "LISTEN_ADDRESS",
    Hop.AUTHZ: "AUTHZ_HOST",
    Hop.RECEIVER: "RECEIVER_HOST",
}


@app.command("envoy-config")
def envoy_config(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The bootstrap's file; TLS has more beside it.")
    ],
    template: Annotated[
        Path | None, typer.Option(help="Another template than the one of deploy/envoy.")
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option(
            envvar="ENVOY_TLS",
            help="Directory of tls.crt, tls.key and ca.crt, for each hop to another host.",
        ),
    ] = None,
    plaintext: Annotated[
        list[Hop] | None,
        typer.Option(envvar="ENVOY_PLAINTEXT", help="A hop that has no TLS. May be repeated."),
    ] = None,
    client_certificates: Annotated[
        bool,
        typer.Option(
            "--client-certificates",
            envvar="ENVOY_CLIENT_CERTIFICATES",
            help="Clients of the listener must show a certificate of ca.crt.",
        ),
    ] = False,
) -> None:
    """Fill Envoy's bootstrap with the environment's values (LISTEN_PORT, JWT_ISSUER, ...).

    What other hosts reach gets TLS: the listener, ext-authz, the receiver, where they are not on
    this one.
    """
    import yaml

    from authz.envoy.bootstrap import render
    from authz.envoy.transport import secrets, secure

    text = _read(template or deploy_dir() / "envoy" / "envoy.yaml")
    names = Template(text).get_identifiers()
    values = {name: os.environ[name] for name in names if name in os.environ}
    document = yaml.safe_load(render(text, values))
    hops = {
        hop.value: values[name]
        for hop, name in _ADDRESS.items()
        if hop not in (plaintext or ()) and not is_local(f"{values[name]}:0")
    }
    files = {}
    if hops:
        if tls is None:
            raise UsageError(
                f"other hosts can reach these: {', '.join(hops)}; give --tls DIR with tls.crt,"
                " tls.key and ca.crt, or say --plaintext where the network is private"
            )
        directory = output.resolve().parent
        secure(document, hops, directory, client_certificates=client_certificates)
        files = secrets(tls.resolve())
    elif client_certificates:
        raise UsageError("--client-certificates: the listener has no TLS")
    try:
        for name, content in files.items():
            replace_file(output.with_name(name), content.encode())
        replace_file(output, yaml.safe_dump(document, sort_keys=False).encode())
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--template {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--template {path}: not YAML; it holds bytes that are no text") from None
