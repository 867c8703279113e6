"""Mistakes that people make on the command line, each with what it is made with."""

import re
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from programs import CHECKOUT, World

from authz.ledger import Verifier
from authz.store import migrations

_POLICY = CHECKOUT / "deploy" / "opa"

USAGE, COULD_NOT_TELL = 2, 3


@dataclass(frozen=True, slots=True)
class Site:
    """What the mistakes are made with: files, ports that are taken, databases."""

    files: Path
    world: World
    store: str
    newer: str
    taken: int
    free: Callable[[], int]
    occupied: dict[str, str]
    """The data directory of each server that runs already, by its command."""

    def ext_authz(self, **options: str | Path) -> list[str]:
        """The command line of an ext-authz that would start, but for `options`."""
        usual = {"policy": _POLICY, "listen": f"127.0.0.1:{self.free()}", "data-dir": self.new()}
        return ["serve", "ext-authz", *_options(usual | _dashed(options))]

    def receiver(self, **options: str | Path) -> list[str]:
        usual = {
            "store": self.store,
            "listen": f"127.0.0.1:{self.free()}",
            "data-dir": self.new(),
        }
        return ["serve", "receiver", *_options(usual | _dashed(options))]

    def clickhouse(self, **options: str | Path) -> list[str]:
        return ["serve", "clickhouse", *_options({"data-dir": self.new()} | _dashed(options))]

    def verify(self, **options: str | Path) -> list[str]:
        usual = {"store": self.store, "trust": self.file("trust.yaml", _TRUST)}
        return ["verify", *_options(usual | _dashed(options))]

    def config(self, text: str | bytes) -> list[str]:
        return ["config", "--config", str(self.file("authz.yaml", text))]

    def new(self) -> Path:
        """A directory that is not there yet."""
        return self.files / f"d{self.free()}"

    def file(self, name: str, text: str | bytes) -> Path:
        path = self.new() / name
        path.parent.mkdir()
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path


def _dashed(options: Mapping[str, str | Path]) -> dict[str, str | Path]:
    return {name.replace("_", "-"): value for name, value in options.items()}


def _options(given: Mapping[str, str | Path]) -> list[str]:
    """Options with a value; those that are empty are left out."""
    return [part for name, value in given.items() if value for part in (f"--{name}", str(value))]


_KEY = str(Verifier("demo/receiver", bytes(32)))
_TRUST = f"logs:\n- origin: demo/receiver\n  keys: [{_KEY}]\n"


@dataclass(frozen=True, slots=True)
class Mistake:
    """A command line with one mistake, its exit code, and words that the line must have."""

    name: str
    command: Callable[[Site], list[str]]
    exit_code: int
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    is_up: bool = False
    """The mistake shows when it is up already, so there are lines of its log too."""


def _bundle(site: Site) -> Path:
    """A bundle whose only module does not compile."""
    source = site.file("broken.rego", "package envoy.authz\n\nallow := {\n")
    path = source.with_name("bundle.tar.gz")
    with tarfile.open(path, "w:gz") as bundle:
        bundle.add(source, "rules/broken.rego")
    return path


def unreachable(site: Site) -> str:
    return f"clickhouse://admin:secret-word@127.0.0.1:{site.free()}/authz"


def _wrong_password(site: Site) -> str:
    parts = urlsplit(site.store)
    return f"clickhouse://admin:secret-word@{parts.hostname}:{parts.port}{parts.path}"


MISTAKES = [
    # The policy.
    Mistake("no policy", lambda site: site.ext_authz(policy=""), USAGE, ("--policy", "directory")),
    Mistake(
        "no such policy",
        lambda site: site.ext_authz(policy="/no/such/policy"),
        USAGE,
        ("--policy /no/such/policy", "No such file"),
    ),
    Mistake(
        "an empty policy directory",
        lambda site: site.ext_authz(policy=site.file("readme.txt", "nothing").parent),
        USAGE,
        ("--policy", "no .rego files"),
    ),
    Mistake(
        "a policy that does not compile",
        lambda site: site.ext_authz(
            policy=site.file("broken.rego", "package envoy.authz\n\nallow := {\n").parent
        ),
        USAGE,
        ("--policy", "broken.rego line 3"),
    ),
    Mistake(
        "a bundle that does not compile",
        lambda site: site.ext_authz(policy=_bundle(site)),
        USAGE,
        ("--policy", "rules/broken.rego line 3"),
    ),
    Mistake(
        "a bundle that is none",
        lambda site: site.ext_authz(policy=site.file("bundle.tar.gz", "not at all")),
        USAGE,
        ("--policy", "bundle.tar.gz", "gzip"),
    ),
    Mistake(
        "a policy with data that is no JSON",
        lambda site: site.ext_authz(
            policy=site.file("data.json", "{").parent,
        ),
        USAGE,
        ("--policy", "data.json"),
    ),
    Mistake(
        "a decision without a rule",
        lambda site: site.ext_authz(decision="envoy/authz/permit"),
        USAGE,
        ("--decision envoy/authz/permit", "no rule", "envoy.authz"),
    ),
    Mistake(
        "a decision that is none",
        lambda site: site.ext_authz(decision="data.envoy.authz"),
        USAGE,
        ("ext_authz.decision", "envoy/authz/allow"),
    ),
    # The data directory. (These tests may be root's, so permissions would stop nobody.)
    *(
        Mistake(
            f"the data directory of {name} is a file",
            lambda site, name=name: getattr(site, name)(data_dir=site.file("file", "")),
            USAGE,
            ("--data-dir", "/file", "choose a directory"),
        )
        for name in ("ext_authz", "receiver", "clickhouse")
    ),
    *(
        Mistake(
            f"the data directory of {name} is in use",
            lambda site, name=name: getattr(site, name)(data_dir=site.occupied[name]),
            USAGE,
            ("in use by another process", "--data-dir"),
        )
        for name in ("ext_authz", "receiver", "clickhouse")
    ),
    # Addresses.
    *(
        Mistake(
            f"the {option} address of {name} is taken",
            lambda site, name=name, option=option: getattr(site, name)(
                **{option: f"127.0.0.1:{site.taken}"}
            ),
            USAGE,
            (f"--{option} 127.0.0.1:", "in use", "choose another"),
        )
        for name in ("ext_authz", "receiver")
        for option in ("listen", "metrics")
    ),
    *(
        Mistake(
            f"the {option} port of clickhouse is taken",
            lambda site, option=option: site.clickhouse(**{option: str(site.taken)}),
            USAGE,
            (f"--{option}", "in use", "choose another"),
        )
        for option in ("tcp", "http")
    ),
    Mistake(
        "clickhouse has one port for two protocols",
        lambda site: site.clickhouse(**dict.fromkeys(("tcp", "http"), str(site.free()))),
        USAGE,
        ("--http", "choose another"),
    ),
    Mistake(
        "a unix socket is in use",
        lambda site: site.ext_authz(listen=f"unix://{site.occupied['socket']}"),
        USAGE,
        ("--listen unix:///", "in use", "choose another"),
    ),
    Mistake(
        "a unix socket's path is a file",
        lambda site: site.ext_authz(listen=f"unix://{site.file('precious', 'data')}"),
        USAGE,
        ("--listen unix:///", "precious", "not a socket"),
    ),
    Mistake(
        "a port that there is not",
        lambda site: site.receiver(listen="127.0.0.1:99999"),
        USAGE,
        ("receiver.listen", "host:port"),
    ),
    Mistake(
        "metrics on a unix socket",
        lambda site: site.ext_authz(metrics="unix:///tmp/metrics"),
        USAGE,
        ("ext_authz.metrics", "host:port"),
    ),
    # The store.
    *(
        Mistake(
            f"{name} without a store",
            lambda site, name=name: getattr(site, name)(store=""),
            USAGE,
            ("--store is missing", "clickhouse://user:password@host:9000/database"),
        )
        for name in ("receiver", "verify")
    ),
    *(
        Mistake(
            f"clickhouse is not there for {name}",
            lambda site, name=name: getattr(site, name)(store=unreachable(site)),
            COULD_NOT_TELL,
            ("ClickHouse at 127.0.0.1:", "does not answer", "is it running?"),
        )
        for name in ("receiver", "verify")
    ),
    *(
        Mistake(
            f"{name} has a wrong password",
            lambda site, name=name: getattr(site, name)(store=_wrong_password(site)),
            USAGE,
            ("ClickHouse at 127.0.0.1:", "refuses the user or password"),
        )
        for name in ("receiver", "verify")
    ),
    *(
        Mistake(
            f"the schema is newer than {name}",
            lambda site, name=name: getattr(site, name)(store=site.newer),
            USAGE,
            (f"schema {migrations.VERSION + 1}", "newer", "upgrade authz"),
        )
        for name in ("receiver", "verify")
    ),
    Mistake(
        "the schema got newer since the receiver's last start",
        lambda site: site.receiver(
            store=site.newer, data_dir=shutil.copytree(site.occupied["stopped"], site.new())
        ),
        USAGE,
        (f"schema {migrations.VERSION + 1}", "newer", "upgrade authz"),
        is_up=True,
    ),
    Mistake(
        "no schema to verify",
        lambda site: site.verify(store=site.store.rpartition("/")[0] + "/default"),
        USAGE,
        ("schema 0", "authz migrate"),
    ),
    *(
        Mistake(
            f"the store's URL is {url}",
            lambda site, url=url: site.verify(store=url),
            USAGE,
            ("--store", "clickhouse://user:password@host:9000/database"),
        )
        for url in (
            "localhost:9000",
            "http://localhost:8123",
            "clickhouse://admin:secret-word@host:port/authz",
            "clickhouse://admin:secret-word@[::1/authz",
            "clickhouse://admin:secret-word@host/authz?connect_timeout=soon",
        )
    ),
    # What verify reads.
    Mistake(
        "no trust file",
        lambda site: site.verify(trust=site.new() / "trust.yaml"),
        USAGE,
        ("--trust", "trust.yaml", "No such file"),
    ),
    *(
        Mistake(
            f"the trust file is {name}",
            lambda site, text=text: site.verify(trust=site.file("trust.yaml", text)),
            USAGE,
            ("--trust", "trust.yaml", word),
        )
        for name, text, word in (
            ("binary", b"\xff\xfe\x00", "logs:"),
            ("a list", "- a\n", "logs:"),
            ("without logs", "logs: []\n", "no log"),
            ("with half a key", "logs:\n- {origin: a, keys: [a+b]}\n", "<name>+<key id>+<base64>"),
            ("with a number for a key", "logs:\n- {origin: a, keys: [5]}\n", "C2SP"),
            ("with another key's id", re.sub(r"\+[0-9a-f]{8}\+", "+00000000+", _TRUST), "id"),
        )
    ),
    *(
        Mistake(
            f"the state file is {name}",
            lambda site, text=text: site.verify(state=site.file("verified.json", text)),
            USAGE,
            ("--state", "verified.json", "not a state file"),
        )
        for name, text in (
            ("binary", b"\xff\xfe\x00"),
            ("of something else", '{"demo/receiver": 5}'),
            ("without a root", '{"demo/receiver": {"size": 5}}'),
            ("with half a root", '{"demo/receiver": {"size": 5, "root": "x"}}'),
        )
    ),
    Mistake(
        "the state file is a directory",
        lambda site: site.verify(state=site.file("x", "").parent),
        USAGE,
        ("--state", "Is a directory"),
    ),
    Mistake(
        "the state file's directory is not there",
        lambda site: site.verify(state=site.new() / "verified.json"),
        USAGE,
        ("--state", "verified.json", "No such file"),
    ),
    # The configuration.
    *(
        Mistake(
            f"the configuration has {name}",
            lambda site, text=text: site.config(text),
            USAGE,
            ("authz.yaml", *words),
        )
        for name, text, words in (
            (
                "a wrong key",
                "receiver:\n  listen: 127.0.0.1:9292\n  lissten: 127.0.0.1:9292\n",
                ("line 3", "receiver.lissten", "known: ", "listen"),
            ),
            ("a wrong value", "journal:\n  max_bytes: 1\n", ("line 2", "journal.max_bytes")),
            ("a number for a key", "data_dir: x\n1: 2\n", ("line 2", "1 is no key")),
            ("a list for a key", "{[a]: b}\n", ("line 1",)),
            ("a key twice", "data_dir: x\nstore: y\ndata_dir: z\n", ("line 3", "data_dir")),
            ("an open bracket", "data_dir: x\nreceiver: {\n", ("line 3", "not YAML")),
            ("bytes that are no text", b"\xff\xfe\x00", ("not YAML",)),
        )
    ),
    Mistake(
        "no such configuration",
        lambda site: ["config", "--config", "/no/such/authz.yaml"],
        USAGE,
        ("--config /no/such/authz.yaml", "No such file"),
    ),
    *(
        Mistake(
            f"the environment has {name}={value}",
            lambda site: site.ext_authz(),
            USAGE,
            words,
            {name: value},
        )
        for name, value, words in (
            ("AUTHZ_EXT_AUTHZ__METRIX", "x", ("ext_authz.metrix", "known: ")),
            ("AUTHZ_EXT_AUTHZ", "nonsense", ("AUTHZ_EXT_AUTHZ",)),
            ("AUTHZ_PRIVACY__TEMPLATES", "/a/{b}", ("AUTHZ_PRIVACY", "TEMPLATES", "JSON")),
        )
    ),
]
