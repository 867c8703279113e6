"""Without a cluster: services of systemd, or everything in one directory on this host."""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from authz.demo.people import PEOPLE, Keys
from authz.demo.stack import deploy_dir
from authz.init.answers import SAMPLE, Answers, Durability, host_port, policy_files
from authz.init.plan import Plan, copy, database, privacy_key, shipped
from authz.init.yamls import dump, with_values, with_variables

_TOKEN_SECONDS = 30 * 24 * 3600
_RECEIVER = "127.0.0.1:9292"


def bare_hosts(answers: Answers) -> Plan:
    """The tree of a host's /etc: units, configuration, policy, keys."""
    plan = Plan()
    copy(plan, "systemd/units", "etc/systemd/system")
    copy(plan, "systemd/sysusers.conf", "etc/sysusers.d/authz.conf")
    copy(plan, "envoy/envoy.yaml", "etc/authz/envoy.yaml")
    plan.add("etc/authz/authz.yaml", _configuration(answers, {}))
    plan.add("etc/authz/envoy.env", with_variables(shipped("systemd/envoy.env"), envoy(answers)))
    add_policy(plan, answers, "etc/authz/policy")
    plan.add("etc/authz/jwks.json", keys(answers))
    plan.secret("etc/authz/keys/privacy.key", privacy_key())
    passwords = database(plan, "passwords")
    for name in ("receiver", "reader", "watch"):
        store = answers.store(name, passwords[name])
        plan.secret(f"etc/authz/{name}.env", f"AUTHZ_STORE={store}\n")
    plan.secret("migrator.env", f"AUTHZ_STORE={answers.store('migrator', passwords['migrator'])}\n")
    plan.add(
        "etc/systemd/system/authz-watch.service.d/site.conf",
        "# A user of its own in the database, which reads the log of queries too.\n"
        "[Service]\nEnvironmentFile=\nEnvironmentFile=/etc/authz/watch.env\n",
    )
    if answers.durability == Durability.RECEIVER:
        plan.add(
            "etc/systemd/system/authz-ext-authz.service.d/site.conf",
            "# An answer waits until its decision is on the receiver's disk.\n"
            "[Service]\nEnvironment=AUTHZ_JOURNAL__DURABILITY=receiver\n",
        )
    fetch_keys(plan, answers, "etc/authz/jwks.json")
    plan.step("The programs, as root: docs/bare-hosts.md, its first part")
    users_step(plan, answers, "passwords")
    plan.step("The schema", "(set -a; . ./migrator.env; /opt/authz/bin/authz migrate)")
    plan.step(
        "Put it in place, as root",
        "cp -r --preserve=mode etc/. /etc/ && systemd-sysusers authz.conf &&"
        " systemctl daemon-reload",
    )
    plan.step(
        "Start",
        "systemctl enable --now authz-opa authz-receiver authz-ext-authz authz-envoy",
    )
    plan.step(
        "Verify, every night, and watch",
        "install -m 644 /var/lib/authz/receiver/trust.yaml /etc/authz/trust.yaml &&"
        " systemctl enable --now authz-verify.timer authz-watch",
    )
    plan.step(
        "The console, when etc/authz/authz.yaml says where people sign in (docs/bare-hosts.md)",
        "systemctl enable --now authz-console",
    )
    plan.step("Back up etc/authz/keys/privacy.key and passwords/, and leave neither of them here")
    return plan


def local(answers: Answers) -> Plan:
    """A directory that runs out of itself."""
    plan = Plan()
    copy(plan, "local/run.sh", "run.sh")
    copy(plan, "envoy/drain.sh", "drain.sh")
    places = {"ext_authz.policy": "policy", "console.policy": "policy",
              "console.trust": "data/receiver/trust.yaml"}  # fmt: skip
    text = _configuration(answers, places)
    plan.add("authz.yaml", text + dump({"privacy": {"key": "keys/privacy.key"}}))
    values = envoy(answers) | {"JWKS_FILE": "jwks.json"}
    sample = "yes" if answers.upstream == SAMPLE else ""
    more = (
        "ADMIN_SOCKET=data/envoy-admin.sock\n"
        f"# The sample service instead of one of yours: yes, or nothing.\nSAMPLE={sample}\n"
    )
    text = shipped("systemd/envoy.env").replace("/etc/authz/envoy.env", "envoy.env", 1)
    plan.add("envoy.env", with_variables(text, values) + more)
    add_policy(plan, answers, "policy")
    plan.secret("keys/privacy.key", privacy_key())
    _, port = host_port(answers.listen)
    chart = f"http://127.0.0.1:{port}/fhir/Patient/p-0001"
    plan.step("Start, in a terminal of its own; Ctrl-C ends it", f"{_path()}./run.sh")
    if answers.jwks == SAMPLE:
        made = Keys()
        plan.add("jwks.json", json.dumps(made.jwks(), indent=2) + "\n")
        for person in PEOPLE.values():
            plan.secret(f"tokens/{person.name}.jwt", made.token(person, _TOKEN_SECONDS))
        plan.step("Allowed: 200", _curl("alder", chart))
        plan.step("Denied: 403", _curl("hazel", chart))
    else:
        plan.add("jwks.json", keys(answers))
        fetch_keys(plan, answers, "jwks.json")
    authz = f"{_path()}authz"
    more = "--config data/authz.yaml"
    if answers.jwks == SAMPLE:
        plan.step(
            "Who wanted to see that chart, and by which rule?",
            f'{authz} lookup {more} --patient p-0001 --reason "trying it out"',
        )
    plan.step("Verify the log", f"{authz} verify {more} --trust data/receiver/trust.yaml")
    plan.step("Change the policy: policy/data.json and policy/*.rego act within a second")
    return plan


def _curl(name: str, url: str) -> str:
    return f'curl -i -H "authorization: Bearer $(cat tokens/{name}.jwt)" {url}'


def _path() -> str:
    """What to put before a command, so that it finds this very program."""
    here = Path(sys.executable).parent
    if (shutil.which("authz") or "") == str(here / "authz") or not (here / "authz").exists():
        return ""
    return f'PATH={shlex.quote(str(here))}:"$PATH" '


def _configuration(answers: Answers, places: Mapping[str, str]) -> str:
    text = shipped("systemd/authz.yaml")
    first = "# /etc/authz/authz.yaml of one host"
    assert text.startswith(first)
    if places:
        text = text.replace(first, "# authz.yaml of this host", 1)
    return with_values(text, {"receiver.origin": f"{answers.cluster}/receiver-1", **places})


def envoy(answers: Answers) -> dict[str, str]:
    """The values of Envoy's bootstrap that are the site's."""
    host, port = host_port(answers.listen)
    upstream = "127.0.0.1:8000" if answers.upstream == SAMPLE else answers.upstream
    service, service_port = host_port(upstream)
    return {
        "LISTEN_ADDRESS": host,
        "LISTEN_PORT": str(port),
        "SERVICE_HOST": service,
        "SERVICE_PORT": str(service_port),
        "JWT_ISSUER": answers.issuer,
        "JWT_AUDIENCE": answers.audience,
        "NODE_CLUSTER": answers.name,
    }


def policy_source(answers: Answers) -> Path:
    return deploy_dir() / "opa" if answers.policy == SAMPLE else Path(answers.policy)


def add_policy(plan: Plan, answers: Answers, target: str) -> list[str]:
    """A copy that is the site's own, to be changed; its files."""
    root, names = policy_source(answers), []
    for path in policy_files(root):
        names.append(path.relative_to(root).as_posix())
        plan.add(f"{target}/{names[-1]}", path.read_bytes())
    return names


def keys(answers: Answers) -> bytes:
    """The issuer's public keys, or none yet."""
    if answers.jwks.startswith("https://"):
        return b'{"keys": []}\n'
    return Path(answers.jwks).read_bytes()


def fetch_keys(plan: Plan, answers: Answers, target: str) -> None:
    if answers.jwks.startswith("https://"):
        plan.step(
            "Fetch the issuer's keys: without them Envoy does not start",
            f"curl -fsS {answers.jwks} -o {target}",
        )


def users_step(plan: Plan, answers: Answers, passwords: str) -> None:
    place, _, query = answers.clickhouse.removeprefix("clickhouse://").partition("?")
    host, port = host_port(place.partition("/")[0])
    secure = " --secure" if "secure=" in query else ""
    plan.step(
        "The database's users, by its administrator (whose password is CLICKHOUSE_PASSWORD)",
        f"clickhouse/users.sh {passwords} --host {host} --port {port}{secure} --user default",
    )
