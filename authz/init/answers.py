"""What a site is asked, and what an answer may be."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from authz.config import is_local
from authz.demo.people import AUDIENCE, ISSUER
from authz.errors import UsageError

SAMPLE = "sample"


class Platform(StrEnum):
    """Where it is to run."""

    KUBERNETES = "kubernetes"
    ISTIO = "istio"
    ENVOY_GATEWAY = "envoy-gateway"
    BARE_HOSTS = "bare-hosts"
    LOCAL = "local"


class Durability(StrEnum):
    """What an answer waits for: its decision on ext-authz's own disk, or on the receiver's."""

    LOCAL = "local"
    RECEIVER = "receiver"


CLUSTERED = (Platform.KUBERNETES, Platform.ISTIO, Platform.ENVOY_GATEWAY)
SITES = (*CLUSTERED, Platform.BARE_HOSTS)
EVERYWHERE = (*SITES, Platform.LOCAL)

_LABEL = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?"
_URL = re.compile(rf"https://{_HOST}(:[0-9]{{1,5}})?(/[A-Za-z0-9._~/-]*)?")
_IMAGE = re.compile(
    r"(?P<name>[a-z0-9]+([.:/_-]+[a-z0-9]+)*?)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))"
)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the site has answered. Each is checked; which of them count depends on the platform."""

    platform: Platform
    name: str = ""
    cluster: str = ""
    namespace: str = ""
    authz_namespace: str = ""
    image: str = ""
    manifests: str = ""
    upstream: str = ""
    listen: str = ""
    issuer: str = ""
    audience: str = ""
    jwks: str = ""
    clickhouse: str = ""
    durability: str = ""
    policy: str = ""
    bundle_key: str = ""
    console_url: str = ""
    oidc_issuer: str = ""
    oidc_client: str = ""
    oidc_secret: str = ""
    hostnames: tuple[str, ...] = ()

    def having(self, name: str, value: str) -> Self:
        """With another answer to the question of this name."""
        changed: dict[str, Any] = {name: value}
        return replace(self, **changed)

    def store(self, user: str, password: str) -> str:
        """The database's URL for one of its users."""
        place, _, query = self.clickhouse.removeprefix("clickhouse://").partition("?")
        return f"clickhouse://{user}:{password}@{place}" + (f"?{query}" if query else "")


@dataclass(frozen=True, slots=True)
class Question:
    """One answer: its option, what a person is asked, its default where there is one.

    `asked` says on which platforms a person is asked; on the others in `on`, only the option or the
    default counts.
    """

    name: str
    text: str
    check: Callable[[str, Answers], str]
    default: Callable[[Answers], str | None]
    on: tuple[Platform, ...] = EVERYWHERE
    asked: tuple[Platform, ...] = ()
    choices: Callable[[Answers], tuple[str, ...]] = field(default=lambda _: ())

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-").removesuffix("s" if self.many else "")

    @property
    def many(self) -> bool:
        return self.name == "hostnames"

    def checked(self, value: str, answers: Answers) -> str:
        """The answer as it is kept. Raises `UsageError` with the option and the mend."""
        text = value.strip()
        choices = self.choices(answers)
        if choices and text not in choices:
            raise self.wrong(f"want one of {', '.join(choices)}, not {value!r}")
        try:
            return self.check(text, answers)
        except ValueError as error:
            raise self.wrong(str(error)) from None

    def wrong(self, text: str) -> UsageError:
        return UsageError(f"{self.option}: {text}")


def _form(pattern: str, wanted: str) -> Callable[[str, Answers], str]:
    form = re.compile(pattern)

    def check(value: str, _: Answers) -> str:
        if not form.fullmatch(value):
            raise ValueError(f"want {wanted}, not {value!r}")
        return value

    return check


def _url(value: str, _: Answers) -> str:
    if not _URL.fullmatch(value):
        raise ValueError(f"want an address such as https://idp.example.org, not {value!r}")
    return value


def host_port(value: str) -> tuple[str, int]:
    """Raises `ValueError`."""
    host, _, port = value.rpartition(":")
    if not re.fullmatch(_HOST, host) or not re.fullmatch("[0-9]{1,5}", port):
        raise ValueError(f"want host:port, such as 127.0.0.1:8000, not {value!r}")
    if not 0 < int(port) < 65536:
        raise ValueError(f"{port} is no port; want 1 to 65535")
    return host, int(port)


def _upstream(value: str, answers: Answers) -> str:
    if value == SAMPLE and answers.platform is Platform.LOCAL:
        return value
    host_port(value)
    if answers.platform is Platform.KUBERNETES and not is_local(value):
        raise ValueError(
            f"Envoy is in the application's pod, so want 127.0.0.1:PORT, not {value!r};"
            " what listens elsewhere could be reached past it"
        )
    return value


def _listen(value: str, _: Answers) -> str:
    host_port(value)
    if not is_local(value):
        raise ValueError(
            f"others would reach {value} without TLS; want 127.0.0.1:PORT, and for other hosts see"
            " `authz envoy-config --tls`"
        )
    return value


def _clickhouse(value: str, _: Answers) -> str:
    """As a URL without a user. TLS, but where only this host can reach it."""
    if "://" not in value:
        host_port(value)
        secure = "" if is_local(value) else "?secure=true"
        return f"clickhouse://{value}/authz{secure}"
    parts = urlsplit(value)
    if parts.scheme != "clickhouse":
        raise ValueError(f"want host:port or clickhouse://host:port/database, not {value!r}")
    if "@" in parts.netloc:
        raise ValueError("want it without user and password: these are made for each process")
    host_port(parts.netloc)
    if parts.path not in ("", "/", "/authz"):
        raise ValueError(f"the database is called authz, not {parts.path[1:]!r}")
    if not re.fullmatch(r"[A-Za-z0-9_=&./-]*", parts.query) or not all(
        parse_qs(parts.query, keep_blank_values=True).values()
    ):
        raise ValueError(f"want parameters such as secure=true, not {parts.query!r}")
    return f"clickhouse://{parts.netloc}/authz" + (f"?{parts.query}" if parts.query else "")


def image(value: str) -> dict[str, str]:
    """As kustomize has it. Raises `ValueError`."""
    found = _IMAGE.fullmatch(value)
    if not found:
        raise ValueError(
            f"want a place with a tag or digest, such as registry.example.org/authz:0.1.0,"
            f" not {value!r}"
        )
    told = {"newName": found["name"]}
    return told | ({"newTag": found["tag"]} if found["tag"] else {"digest": found["digest"]})


def _image(value: str, _: Answers) -> str:
    image(value)
    return value


def _jwks(value: str, answers: Answers) -> str:
    if value == SAMPLE and answers.platform is Platform.LOCAL:
        return value
    if value.startswith("https://"):
        return _url(value, answers)
    if answers.platform in (Platform.ISTIO, Platform.ENVOY_GATEWAY):
        raise ValueError(f"want the address of the keys, which authz fetches, not {value!r}")
    try:
        keys = json.loads(Path(value).read_bytes())["keys"]
        private = [key for key in keys if not isinstance(key, dict) or "d" in key or "k" in key]
    except OSError as error:
        raise ValueError(f"{value}: {error.strerror}; want a JWK set, or its https://") from None
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{value} is no JWK set; want JSON with `keys` (RFC 7517)") from None
    if not keys or private:
        raise ValueError(f"{value}: want public keys, one at least, and no private one")
    return value


def _policy(value: str, answers: Answers) -> str:
    if value == SAMPLE:
        return value
    if value.startswith("https://"):
        if answers.platform not in CLUSTERED:
            raise ValueError(f"want `sample` or a directory, not {value!r}")
        if not re.fullmatch(r".+/.+\.tar\.gz", _url(value, answers)[8:]):
            raise ValueError(f"want a bundle, https://HOST/PATH.tar.gz, not {value!r}")
        if not answers.bundle_key:
            raise ValueError("a bundle is signed; give its public key with --bundle-key")
        return value
    directory = Path(value)
    if not directory.is_dir():
        raise ValueError(f"{value} is no directory; want `sample` or a directory with .rego files")
    if not any(directory.rglob("*.rego")):
        raise ValueError(f"{value} has no .rego file")
    inner = [path for path in policy_files(directory) if path.parent != directory]
    if inner and answers.platform in CLUSTERED:
        raise ValueError(
            f"{inner[0]} is in a directory of its own, which a ConfigMap has no place for; build a"
            " bundle (`authz policy build`) and give its address"
        )
    return value


def policy_files(directory: Path) -> list[Path]:
    """What OPA reads of a policy, without its tests."""
    return sorted(
        path
        for path in directory.rglob("*")
        if path.is_file()
        and (path.suffix == ".rego" or path.name in ("data.json", "data.yaml"))
        and not path.name.endswith("_test.rego")
    )


def _manifests(value: str, answers: Answers) -> str:
    if value == SAMPLE:
        if answers.platform is Platform.ISTIO:
            raise ValueError(
                "the sample listens for an Envoy of ours alone; want your own manifests"
            )
        return value
    if not manifest_files(Path(value)):
        raise ValueError(f"{value}: want `sample`, or a YAML file or a directory of them")
    return value


def manifest_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [*path.glob("*.yaml"), *path.glob("*.yml")]
    return sorted(each for each in found if each.stem != "kustomization")


def _file(value: str, _: Answers) -> str:
    if value and not Path(value).is_file():
        raise ValueError(f"{value} is no file")
    return value


def _public_key(value: str, answers: Answers) -> str:
    _file(value, answers)
    if value and "BEGIN PUBLIC KEY" not in Path(value).read_text(errors="replace"):
        raise ValueError(f"{value}: want a public key, PEM")
    return value


def _hostname(value: str, _: Answers) -> str:
    if not re.fullmatch(_HOST, value):
        raise ValueError(f"want a name such as fhir.example.org, not {value!r}")
    return value


def _domain(answers: Answers) -> str:
    labels = str(urlsplit(answers.issuer).hostname).split(".")
    return ".".join(labels[1:] if len(labels) > 2 else labels)


def _local(value: str) -> Callable[[Answers], str | None]:
    return lambda answers: value if answers.platform is Platform.LOCAL else None


def _named(answers: Answers) -> str:
    return AUDIENCE if answers.jwks == SAMPLE else answers.name


_NAME = _form(_LABEL, "a name of lowercase letters, digits and '-', such as fhir")
_TEXT = _form(r"[A-Za-z0-9._~:/@-]{1,200}", "letters, digits and . _ ~ : / @ -")

PLATFORM = Question(
    "platform", "Where is it to run?", lambda value, _: value, lambda _: None,
    asked=EVERYWHERE, choices=lambda _: tuple(Platform),
)  # fmt: skip

QUESTIONS = (
    Question(
        "name", "What is the service called, in the records?", _NAME, lambda _: "fhir",
        asked=EVERYWHERE,
    ),
    Question(
        "cluster", "What are logs called, for good? (NAME/receiver-...)", _NAME,
        lambda a: "local" if a.platform is Platform.LOCAL else "prod",
    ),
    Question("namespace", "Its namespace?", _NAME, lambda a: a.name, CLUSTERED),
    Question("authz_namespace", "authz's own namespace?", _NAME, lambda _: "authz", CLUSTERED),
    Question(
        "image", "Where is authz's image? (deploy/image builds it)", _image, lambda _: None,
        CLUSTERED, CLUSTERED,
    ),
    Question(
        "manifests", "The service's manifests? (a file or directory; or the sample's)", _manifests,
        lambda a: SAMPLE if a.platform is Platform.KUBERNETES else None,
        (Platform.KUBERNETES, Platform.ISTIO),
        (Platform.KUBERNETES, Platform.ISTIO),
    ),
    Question(
        "upstream", "Where does the service listen?", _upstream,
        lambda a: SAMPLE if a.platform is Platform.LOCAL else "127.0.0.1:8000",
        (Platform.KUBERNETES, Platform.BARE_HOSTS, Platform.LOCAL),
        (Platform.KUBERNETES, Platform.BARE_HOSTS, Platform.LOCAL),
    ),
    Question(
        "listen", "Where is Envoy to listen?", _listen, lambda _: "127.0.0.1:8080",
        (Platform.BARE_HOSTS, Platform.LOCAL), (Platform.BARE_HOSTS, Platform.LOCAL),
    ),
    Question(
        "jwks", "The public keys of the tokens' issuer? (a JWK set: file or https://)", _jwks,
        _local(SAMPLE), asked=EVERYWHERE,
    ),
    Question(
        "issuer", "Who issues them? (`iss` of the tokens)", _url,
        lambda a: ISSUER if a.jwks == SAMPLE else None, asked=SITES,
    ),
    Question("audience", "For whom? (`aud` of the tokens)", _TEXT, _named, asked=SITES),
    Question(
        "clickhouse", "Where is ClickHouse? (host:port; TLS, if it is another host)", _clickhouse,
        lambda a: "127.0.0.1:9000" if a.platform is Platform.BARE_HOSTS else None, SITES, SITES,
    ),
    Question(
        "durability", "What does an answer wait for: the disk of ext-authz, or of the receiver?",
        lambda value, _: value,
        lambda a: "receiver" if a.platform in (Platform.KUBERNETES, Platform.ISTIO) else "local",
        SITES, (Platform.KUBERNETES, Platform.BARE_HOSTS),
        lambda a: {Platform.ISTIO: ("receiver",), Platform.ENVOY_GATEWAY: ("local",)}.get(
            a.platform, tuple(Durability)
        ),
    ),
    Question(
        "bundle_key", "The public key of policy bundles?", _public_key, lambda _: "", CLUSTERED
    ),
    Question(
        "policy", "The policy? (a directory; or the sample's, to begin with)", _policy,
        lambda _: SAMPLE, asked=EVERYWHERE,
    ),
    Question(
        "console_url", "The console's address?", _url, lambda a: f"https://audit.{_domain(a)}",
        CLUSTERED,
    ),
    Question("oidc_issuer", "Where do people sign in?", _url, lambda a: a.issuer, CLUSTERED),
    Question("oidc_client", "As which client?", _TEXT, lambda _: "authz-console", CLUSTERED),
    Question("oidc_secret", "The client's secret, in a file?", _file, lambda _: "", CLUSTERED),
    Question(
        "hostnames", "By what name do clients call it?", _hostname,
        lambda a: f"{a.name}.{_domain(a)}" if a.platform is Platform.ENVOY_GATEWAY else "",
        (Platform.KUBERNETES, Platform.ENVOY_GATEWAY), (Platform.ENVOY_GATEWAY,),
    ),
)  # fmt: skip
