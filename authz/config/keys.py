"""Every key of the configuration, with its meaning beside it."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from authz.errors import UsageError
from authz.identity.config import IdentityConfig
from authz.trust import witness_key


def _form(pattern: str, wanted: str) -> AfterValidator:
    """Text of this form; the error says what is wanted, with an example."""
    form = re.compile(pattern)

    def check(value: str) -> str:
        if not form.fullmatch(value):
            raise ValueError(f"want {wanted}, not {value!r}")
        return value

    return AfterValidator(check)


_PORT = "([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST_PORT = rf"(\[[0-9a-fA-F:.]+\]|[^:/\s\[\]]+):{_PORT}"
_EXAMPLES = "host:port (127.0.0.1:9191, [::1]:9191)"

HostPort = Annotated[str, _form(_HOST_PORT, _EXAMPLES)]
Address = Annotated[str, _form(rf"unix:///.+|{_HOST_PORT}", f"{_EXAMPLES} or unix:///path")]
Admin = Annotated[
    str,
    _form(
        rf"unix:///.+|http://{_HOST_PORT}",
        "http://host:port (http://127.0.0.1:9901) or unix:///path",
    ),
]
Decision = Annotated[
    str, _form(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)+", "package and rule, such as envoy/authz/allow")
]
Retention = Annotated[str, _form("[0-9]{1,6}[yd]", "years or days such as 6y or 90d")]
Origin = Annotated[
    str, _form(r"[^\s+]{1,200}", "a name without spaces or '+', such as <cluster>/<receiver>")
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Served(_Section):
    """What every server has."""

    listen: Address
    metrics: HostPort | None = Field(None, description="host:port of Prometheus metrics")
    tls_cert: Path | None = Field(None, description="our certificate chain, PEM")
    tls_key: Path | None = Field(None, description="its key, PEM")
    tls_client_ca: Path | None = Field(
        None, description="authority whose certificate each client must show, PEM"
    )
    plaintext: bool = Field(
        False, description="listen without TLS even where other hosts can reach it"
    )


class Decided(_Section):
    """Whoever asks a policy."""

    policy: str = Field(
        "", description="directory, .rego file, bundle .tar.gz, or http(s)://, unix:// of an OPA"
    )
    opa_token: str | None = Field(None, description="bearer token for the OPA server")
    opa_ca: Path | None = Field(None, description="authority of the OPA server's certificate, PEM")
    opa_cert: Path | None = Field(None, description="our certificate for the OPA server, PEM")
    opa_key: Path | None = Field(None, description="its key, PEM")


class ExtAuthz(Decided, Served):
    """The Check server."""

    listen: Address = Field("127.0.0.1:9191", description="host:port or unix:///path to listen on")
    decision: Decision = Field("envoy/authz/allow", description="package and rule, with / for .")
    receiver: Address | None = Field(None, description="where decisions are sent")
    receiver_ca: Path | None = Field(
        None, description="authority of the receiver's certificate, PEM; without it, plain text"
    )
    receiver_cert: Path | None = Field(None, description="our certificate for the receiver, PEM")
    receiver_key: Path | None = Field(None, description="its key, PEM")
    reflection: bool = Field(False, description="let gRPC tools list the services")
    workers: int = Field(1, ge=1, le=64, description="processes, each on a port of its own")
    worker: int = Field(0, ge=0, description="which of them this is; set by authz itself")
    tracing: str | None = Field(
        None, pattern="^https?://", description="OTLP collector over HTTP: http://host:4318"
    )
    max_concurrent: int = Field(
        1024, ge=1, description="Checks under way at once; more are denied with 503"
    )
    timeout_ms: int = Field(
        250,
        ge=60,
        le=60_000,
        description="Envoy's ext_authz timeout; answers come 50 ms before it at the latest",
    )
    max_request_bytes: int = Field(
        1 << 20, ge=1024, description="a larger Check is denied with 413"
    )
    unsafe_paths: Literal["deny", "allow"] = Field(
        "deny", description="paths that still hold '..', '//', '%2f', ';' and the like"
    )
    client_address: Literal["peer", "envoy"] = Field(
        "peer",
        description="source_ip of decisions: the connection's peer, or what an Envoy with"
        " use_remote_address says (x-envoy-external-address)",
    )
    tcp: bool = Field(False, description="let the policy decide on TCP connections too")
    dry_run: bool = Field(False, description="answer allow, record the real decision")
    head_seconds: float = Field(10, gt=0, description="how often the writer signs its chain head")


def _witness_key(text: str) -> str:
    return str(witness_key(text))


class Witness(_Section):
    """Somebody who cosigns the log's checkpoints (C2SP tlog-witness)."""

    url: str = Field(
        pattern=r"^https?://[^\s@]+$", description="its submission prefix, before /add-checkpoint"
    )
    key: Annotated[str, AfterValidator(_witness_key)] = Field(
        description="its verifier key (type 0x04)"
    )


class Receiver(Served):
    """The access log and writers' streams in, ClickHouse out."""

    listen: Address = Field("127.0.0.1:9292", description="host:port or unix:///path to listen on")
    origin: Origin | None = Field(None, description="the log's name, <cluster>/<receiver>")
    follows: Origin | None = Field(
        None, description="a log whose key or disk is lost, from which a new one goes on"
    )
    batch_rows: int = Field(10_000, ge=1, le=1_000_000, description="rows of one insert, at most")
    batch_seconds: float = Field(1.0, gt=0, le=60, description="age at which a batch is sealed")
    interval_seconds: float = Field(
        60, gt=0, le=86_400, description="how long an interval of the log's own account is"
    )
    grace_seconds: float = Field(
        60, gt=0, le=86_400, description="how long a decision and its access may be apart"
    )
    writer_patience_seconds: float = Field(
        600, gt=0, description="how long a writer may be away until it is told as lost"
    )
    risk_hours: float = Field(
        24, ge=0, le=168, description="how long policies are told of a finding; 0: never"
    )
    envoy_admins: tuple[Admin, ...] = Field(
        (),
        description="admin interfaces (http://host:port, unix:///path) of Envoys whose whole access"
        " log comes to this receiver: what they lose is told",
    )
    anchors: tuple[Path, ...] = Field(
        (), description="directories, best write-once, that checkpoints are also put into"
    )
    witnesses: tuple[Witness, ...] = Field((), description="who cosigns checkpoints")
    anchor_seconds: float = Field(
        10, gt=0, le=86_400, description="how often a checkpoint goes to anchors and witnesses"
    )


class Oidc(_Section):
    """Where people sign in (OpenID Connect, the authorization code flow with PKCE)."""

    issuer: str = Field(pattern=r"^https?://[^\s@]+$", description="its URL")
    client_id: str = Field(min_length=1, description="what this console is called there")
    client_secret_file: Path | None = Field(None, description="file with its secret, if it has one")
    scope: str = Field("openid", pattern=r"\bopenid\b", description="what is asked for")


class Console(Decided, Served):
    """The web console, and the logs' own read API."""

    listen: Address = Field("127.0.0.1:9393", description="host:port or unix:///path to listen on")
    decision: Decision = Field(
        "authz/console/allow", description="who may see what: package and rule, with / for ."
    )
    url: str | None = Field(
        None, pattern=r"^https?://[^\s@/]+$", description="where people's browsers find it"
    )
    oidc: Oidc | None = Field(None, description="where people sign in")
    everyone: str = Field(
        "", description="who everybody is that reaches it, without signing in: on this host only"
    )
    everyone_roles: tuple[str, ...] = Field((), description="and in which roles")
    session_hours: float = Field(8, gt=0, le=24, description="how long a sign-in is good for")
    trust: Path | None = Field(None, description="trust file, for verifying from the console")
    directory: Path | None = Field(
        None,
        description="directory with names: people.csv (subject, name), patients.csv"
        " (patient, name)",
    )
    entries_token_file: Path | None = Field(
        None, description="file with the token for log entries (records); without it, nobody's"
    )


class Webhook(_Section):
    """Somebody who is told of findings over HTTP."""

    name: str = Field(
        pattern="^[a-z0-9-]{1,64}$",
        description="what logs and metrics call it; what was sent is kept under it",
    )
    url: str = Field(
        pattern=r"^https?://[^\s@]+$",
        description="where findings are posted; for alertmanager its address, before /api/v2",
    )
    form: Literal["generic", "alertmanager", "slack"] = Field("generic", description="of a message")
    lanes: tuple[Literal["act", "review"], ...] = Field(
        ("act", "review"), description="which findings"
    )
    phi: bool = Field(
        False, description="send evidence too: paths, stated reasons, what patients are known by"
    )
    subjects: bool = Field(
        True, description="send whom it is about, or from what address; false where that is PHI"
    )
    secret: Path | None = Field(
        None, description="file with the key that signs messages (Standard Webhooks), one a line"
    )
    ca: Path | None = Field(None, description="authority of its certificate, PEM")
    plaintext: bool = Field(False, description="send without TLS even to another host")
    timeout_seconds: float = Field(10, gt=0, le=300, description="of one attempt")
    link: str = Field(
        "", pattern=r"^(https?://\S+)?$", description="where people see it; {id} is the finding's"
    )


class Watch(_Section):
    """Detection: what is unusual, and how much of it is told."""

    feeds: Path | None = Field(
        None, description="directory of people.csv, patients.csv, care_team.csv, ..."
    )
    geo: Path | None = Field(
        None, description="another file than `geo` that tells where addresses are"
    )
    shared: tuple[str, ...] = Field(
        (), description="networks that many people share, such as a VPN's: 198.51.100.0/24"
    )
    act: float = Field(1.0, gt=0, description="findings to act on now, per 1,000 user-days")
    review: float = Field(5.0, gt=0, description="findings to review, per 1,000 user-days")
    zone: str = Field("UTC", description="time zone of the people's days: Europe/Berlin")
    history_days: int = Field(45, ge=0, le=3650, description="learnt from at the first start")
    metrics: HostPort | None = Field(None, description="host:port of Prometheus metrics")
    webhooks: tuple[Webhook, ...] = Field((), description="who is told of findings")
    own_users: tuple[str, ...] = Field(
        ("receiver", "migrator"),
        description="the database's users whom only authz's processes have: no person's look",
    )
    break_glass_hours: float = Field(
        72, gt=0, le=8760, description="when a use of break-glass without a review is a finding"
    )


class Journal(_Section):
    """Records on this machine's disk, until they are further along."""

    max_bytes: int = Field(
        4 << 30, ge=1 << 20, description="at this size requests are denied (503)"
    )
    durability: Literal["fsync", "receiver", "os"] = Field(
        "fsync",
        description="what an answer waits for: this disk, the receiver's (ext-authz only), or no"
        " disk",
    )


class Privacy(_Section):
    """What keeps patients out of the records in clear."""

    key: Path | None = Field(None, description="privacy key file (default: DATA_DIR/privacy.key)")
    old_keys: tuple[Path, ...] = Field(
        (), description="files of privacy keys used before: look-ups search under these too"
    )
    seal_inputs: bool = Field(
        False, description="keep what policies decided on, without credentials, sealed"
    )
    seal_bodies: bool = Field(False, description="bodies too")
    sealing_key: Path | None = Field(
        None, description="sealing key file (default: DATA_DIR/sealing.key)"
    )
    sealed_retention: Retention | None = Field(
        None,
        description="how long `retention apply` keeps sealed inputs (90d); else like records",
    )
    fhir_bases: tuple[str, ...] = Field(
        ("/fhir",), description="paths under which FHIR R4 is served"
    )
    templates: tuple[str, ...] = Field(
        (), description="other paths: /api/charts/{patient}/notes/{id}"
    )


class DisclosureRule(_Section):
    """Where the answers of other JSON APIs name their patients."""

    path: str = Field(description="a path template of privacy.templates, or the beginning of one")
    patients: tuple[str, ...] = Field(description="JSONPath of the identifiers: $.items[*].mrn")
    resource_type: str = Field("", description="what each of them stands for in the counts")


class Disclosure(_Section):
    """Whose data answers hold, as Envoy's ext_proc filter shows them to the Check server."""

    routes: tuple[str, ...] = Field(
        (),
        description="paths below which Envoy shows answers: each access there must have its"
        " disclosure (/fhir)",
    )
    rules: tuple[DisclosureRule, ...] = Field((), description="for JSON that is no FHIR")
    header: str = Field(
        "x-audit-patients",
        pattern="^[a-z0-9-]+$",
        description="response header in which a service names the patients itself; Envoy strips it",
    )
    max_bytes: int = Field(
        64 << 20, ge=1024, description="of an answer, unpacked; a longer one is unresolved"
    )
    hold_bytes: int = Field(
        16 << 20, ge=1024, description="a longer answer that waits for its record gets 503"
    )
    max_patients: int = Field(100_000, ge=1, description="of one answer")
    max_concurrent: int = Field(
        1024, ge=0, description="answers read at once; what is more is unresolved, or gets 503"
    )


class Config(BaseSettings):
    """All of authz's configuration."""

    model_config = SettingsConfigDict(
        env_prefix="AUTHZ_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    data_dir: Path = Field(
        Path("authz-data"), description="journal, keys and state of this process"
    )
    store: str | None = Field(None, description="clickhouse://user:password@host:9000/database")
    geo: Path | None = Field(
        None,
        description="file in MaxMind's format: the country of each record's address, and what"
        " `watch` knows of places",
    )
    ext_authz: ExtAuthz = ExtAuthz()
    identity: IdentityConfig = IdentityConfig()
    receiver: Receiver = Receiver()
    console: Console = Console()
    watch: Watch = Watch()
    journal: Journal = Journal()
    privacy: Privacy = Privacy()
    disclosure: Disclosure = Disclosure()

    @property
    def database(self) -> str:
        """The store's URL, where one is needed. Raises `UsageError`."""
        if self.store is None:
            raise UsageError(
                "--store is missing: clickhouse://user:password@host:9000/database;"
                " or --config FILE, with store: in it"
            )
        return self.store

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is the library's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        given = init_settings()
        file = InitSettingsSource(settings_cls, given.pop("_file", {}))
        return InitSettingsSource(settings_cls, given), env_settings, file
