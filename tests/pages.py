"""The documentation's pages, their blocks of commands, and where each block is run."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from programs import AUTHZ, CHECKOUT

README = CHECKOUT / "README.md"
DOCS = [README, *sorted((CHECKOUT / "docs").glob("*.md"))]
PAGES = [README, *sorted((CHECKOUT / "docs").rglob("*.md"))]
PAGES += sorted((CHECKOUT / "deploy").rglob("*.md"))

SHELLS = {"sh", "bash", "shell", "console"}
_DATA = {"yaml", "json", "rego"}
_PROGRAMS = (
    "apt|apt-get|authz|buildah|cat|cd|clickhouse|clickhouse-client|cp|curl|docker|echo|envoy|"
    "envsubst|export|git|go|gpg|head|helm|install|istioctl|journalctl|jq|kubectl|kustomize|ln|make|"
    "mkdir|mv|opa|openssl|pip|podman|printf|promtool|psql|python3?|regal|rm|scp|sed|set|sha256sum|"
    "ssh|ssh-keygen|sudo|systemctl|systemd-[a-z-]+|tar|tee|umask|uv|wget"
)
_STATEMENTS = (
    "ALTER|ATTACH|BACKUP|CREATE|DELETE|DETACH|DROP|GRANT|INSERT|OPTIMIZE|RESTORE|REVOKE|SELECT|"
    "SYSTEM|TRUNCATE"
)
_COMMAND = re.compile(
    rf"^\(?(?:\w+=\S* +)*(?:/\S+/)?(?:{_PROGRAMS}|{_STATEMENTS})[ \n]", re.MULTILINE
)
_PICTURE = re.compile("[\u2500-\u257f]")

# Blocks that tests/e2e/test_documentation.py does not run as they stand, by how they begin: the
# test that does, or does what they mean (file::function under tests), or why none can.
ELSEWHERE = {
    "docs/bare-hosts.md: python3 -m venv /opt/authz": "e2e/test_systemd.py::test_all_are_up",
    "docs/bare-hosts.md: install -D -m 644 deploy": "e2e/test_systemd.py::test_keys_are_kept_apart",
    "docs/bare-hosts.md: (umask 077 && echo": "e2e/test_systemd.py::test_requests",
    "docs/bare-hosts.md: systemctl daemon-reload": "e2e/test_systemd.py::test_all_are_up",
    "docs/bare-hosts.md: curl -i": "e2e/test_systemd.py::test_requests",
    "docs/bare-hosts.md: install -m 644 /var/lib": "e2e/test_systemd.py::test_verified",
    "docs/bare-hosts.md: systemctl enable --now": "e2e/test_systemd.py::test_verified",
    "docs/clickhouse.md: BACKUP DATABASE": "unit/test_clickhouse_backup.py::test_restored_whole",
    "docs/clickhouse.md: systemctl stop": "unit/test_clickhouse_backup.py::test_restored_whole",
    "docs/detection.md: authz feeds load 'https:": (
        "e2e/test_feeds_command.py::test_the_documented_sources"
    ),
    "docs/init.md: authz init": "unit/test_init.py::test_answers_on_standard_input",
    "docs/envoy-gateway.md: kubectl apply": (
        "interop/kubernetes/apiserver.py::test_what_init_writes_is_taken"
    ),
    "docs/envoy-gateway.md: curl -i": "wants Envoy Gateway; on Istio: e2e/test_istio.py",
    "docs/istio.md: kubectl label": "wants Istio",
    "docs/istio.md: authz serve ext-authz": "e2e/test_istio.py::test_a_valid_token",
    "docs/istio.md: kubectl apply": "interop/kubernetes/apiserver.py::test_a_mesh_is_taken",
    "docs/istio.md: curl -i": "e2e/test_istio.py::test_a_valid_token",
    "docs/kubernetes.md: make image": "unit/test_image.py::test_the_image_has_one_place",
    "docs/kubernetes.md: kubectl apply": "interop/kubernetes/running.py::test_the_quickstart",
    "docs/kubernetes.md: token()": "interop/kubernetes/running.py::test_the_quickstart",
    "docs/kubernetes.md: curl -i": "interop/kubernetes/running.py::test_the_quickstart",
    "docs/kubernetes.md: ask=": "interop/kubernetes/running.py::test_the_quickstart",
    "docs/kubernetes.md: $ask verify": "interop/kubernetes/running.py::test_the_quickstart",
    "docs/operating.md: authz block --finding": (
        "e2e/test_findings_command.py::test_a_block_from_a_finding"
    ),
    "docs/operating.md: set -a;": "unit/test_envoy_transport.py::test_the_documented_command",
    "docs/operating.md: ALTER TABLE": "unit/test_verify_rows.py::test_unsealed_rows_are_deleted",
    "docs/operating.md: authz doctor": "e2e/test_doctor.py::test_the_documented_commands",
    "docs/policies.md: BUNDLE_SERVICE=": "e2e/test_signed_bundles.py::test_another_key",
    "docs/policies.md: authz policy replay": "e2e/test_replay.py::test_one_flipped_rule",
    "docs/releasing.md: pip install": "unit/test_supply.py::test_the_lock_installs",
    "docs/releasing.md: cd dist": "unit/test_supply.py::test_a_release_is_verified",
    "docs/reports.md: authz report correct": (
        "e2e/test_report_command.py::test_corrected_as_documented"
    ),
    "docs/scaling.md: authz migrate": "unit/test_store_cluster.py::test_command",
    "docs/scaling.md: ALTER TABLE": "unit/test_store_cluster.py::test_a_time_to_live",
    "deploy/ci/README.md: mkdir": "e2e/test_pipelines.py::test_the_page_shows_a_command_that_runs",
    "deploy/clickhouse/README.md: head -c 24": (
        "e2e/test_clickhouse_sql.py::test_the_pages_commands"
    ),
    "deploy/clickhouse/README.md: sed": "e2e/test_clickhouse_sql.py::test_a_tenants_commands",
    "deploy/clickhouse/README.md: SELECT": "e2e/test_clickhouse_rights.py::test_the_pages_queries",
    "deploy/envoy/README.md: set -a;": "unit/test_envoy_bootstrap.py::test_the_readmes_commands",
    "deploy/envoy/README.md: deploy/envoy/drain.sh": "e2e/test_drain.py::test_a_stop_that_drains",
    "deploy/image/README.md: docker": "interop/kubernetes/running.py::test_the_image",
    "deploy/image/README.md: cd deploy": "unit/test_image.py::test_the_image_has_one_place",
    "deploy/kubernetes/README.md: kubectl": "unit/test_kubernetes.py::test_what_a_site_brings",
    "deploy/prometheus/README.md: sed": "unit/test_alerts.py::test_prometheus_takes_them",
}

# For scripts that run a page's blocks: its `authz` is this checkout's.
FUNCTION = f'authz() {{ {shlex.join(AUTHZ)} "$@"; }}\n'


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}: {self.text.splitlines()[0]}"

    @property
    def is_commands(self) -> bool:
        """Whether it is typed somewhere; a picture, an output or a file is not."""
        if self.language in SHELLS | {"sql"}:
            return True
        if self.language in _DATA or _PICTURE.search(self.text):
            return False
        return bool(_COMMAND.search(self.text.replace("\\\n", " ")))


def blocks(pages: list[Path], *languages: str) -> list[Block]:
    """Of these languages, or of all."""
    fences = r"^```(\w*)\n(.*?)^```$"
    return [
        Block(page, language, text)
        for page in pages
        for language, text in re.findall(fences, page.read_text(), re.DOTALL | re.MULTILINE)
        if not languages or language in languages
    ]


def block(page: str, begins: str) -> str:
    """The text of the one block of `page` that begins so."""
    [found] = [b.text for b in blocks([CHECKOUT / page]) if b.text.startswith(begins)]
    return found


def named_in(path: str) -> set[str]:
    """The tests of a module in tests, as pytest would collect them."""
    tree = ast.parse((CHECKOUT / "tests" / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {one.name for one in tree.body if isinstance(one, functions)}
