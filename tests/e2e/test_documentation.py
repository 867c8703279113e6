"""The documentation is true: its commands run, its options and keys exist, its links lead on."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
import yaml
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from pages import DOCS, ELSEWHERE, PAGES, README, SHELLS, Block, blocks
from programs import (
    AUTHZ,
    CHECKOUT,
    World,
    free_port,
    listens,
    makes_pdfs,
    program,
    run,
    until,
    world,
)
from typer.testing import CliRunner

from authz import cli
from authz.config import Config
from authz.record import FIELDS
from authz.store.client import connect

INDEX = CHECKOUT / "docs" / "README.md"

_CHECK = "/envoy.service.auth.v3.Authorization/Check"

# Run by a test of their own: `make` targets, and the processes of the README.
_MAKE = re.compile(r"make (\w+)( [A-Z]+=\w+)?")
_PARTS = re.compile(r"\.venv/bin/authz .*")

# A namespace, or a database, may be called authz too.
_NOT_A_NAME = r"(?<!namespace)(?<! -n)(?<!--database)"
# Of other programs: Envoy, clickhouse-client, OPA.
_OTHERS = {"--drain-time-s", "--database", "--set-file", "--authorization"}


def commands(block: Block) -> list[str]:
    """The commands of a block, without comments; a line that ends with a backslash goes on."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def kind(block: Block) -> str:
    """How a block of commands is tested."""
    if "demo-data" in block.text:
        return "kept"
    if str(block).startswith(tuple(ELSEWHERE)):
        return "elsewhere"
    for name, form in (("make", _MAKE), ("parts", _PARTS)):
        if all(form.fullmatch(command) for command in commands(block)):
            return name
    return "script"


SHELL = blocks(DOCS, *SHELLS)
FIRST = [README, *(CHECKOUT / "docs" / name for name in ("operating.md", "verifying.md"))]
"""Whose commands `make test` runs; those of the other pages are `make thorough`'s."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the README's own block has started, and a directory like a checkout's to try more in."""

    directory: Path
    world: World
    store: str
    ext_authz: str
    verify: str


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Iterator[Parts]:
    """The README's "Run the parts yourself", line by line as it stands there (on free ports)."""
    directory = tmp_path_factory.mktemp("checkout")
    (directory / "deploy").symlink_to(CHECKOUT / "deploy")
    _programs(directory)
    [block] = [block for block in SHELL if kind(block) == "parts"]
    assert block.page == README
    text = block.text
    ports = {}
    for port in sorted(set(re.findall(r"127\.0\.0\.1:(\d+)", text))):
        ports[port] = str(free_port())
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ports[port]}")
    *serves, verify = commands(Block(README, "sh", text))
    assert [line.split()[2] for line in serves] == ["clickhouse", "receiver", "ext-authz"]
    with world() as ours:
        ours.environment["XDG_STATE_HOME"] = str(directory / "state")
        ours.environment["PATH"] = f"{directory / 'bin'}{os.pathsep}{ours.environment['PATH']}"
        started = []
        try:
            for line in serves:
                started.append(_start(line, directory, ours))
                if "clickhouse" in line:
                    ours.environment["STORE"] = json.loads(started[-1].stdout.readline())["store"]
                else:
                    address = line.partition("--listen ")[2].split()[0]
                    port = int(address.rpartition(":")[2])
                    assert until(lambda port=port: listens(port), 30), line
                    ours.environment[line.split()[2].upper().replace("-", "_")] = address
            yield Parts(directory, ours, ours.environment["STORE"], address, verify)
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(60)
                process.stdout.close()


def _programs(directory: Path) -> None:
    """The program, where the README and the other pages have it."""
    for place in (directory / ".venv" / "bin", directory / "bin"):
        place.mkdir(parents=True)
        (place / "authz").write_text(f'#!/bin/sh\nexec {shlex.join(AUTHZ)} "$@"\n')
        (place / "authz").chmod(0o755)


def _start(line: str, directory: Path, ours: World) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["sh", "-c", f"exec {line}"],
        cwd=directory,
        env=ours.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


async def _check(address: str) -> CheckResponse:
    """A Check as Envoy sends it: somebody whose token was verified looks at a chart."""
    request = CheckRequest()
    http = request.attributes.request.http
    http.method, http.path, http.host = "GET", "/fhir/Patient/p-0001", "fhir.example"
    person = {"sub": "dr.alder", "roles": ["physician"], "tenant": "lakeside", "purpose": "TREAT"}
    context = request.attributes.metadata_context.filter_metadata["envoy.filters.http.jwt_authn"]
    context.update({"verified_jwt": person})
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(_CHECK, response_deserializer=CheckResponse.FromString)
        return await check(request.SerializeToString(), timeout=10)


@pytest.fixture(scope="module")
def checked(parts) -> CheckResponse:
    """The answer to a Check, once its decision is stored."""
    answer = asyncio.run(_check(parts.ext_authz))
    with connect(parts.store) as client:
        assert until(lambda: client.execute("SELECT count() FROM decisions") != [(0,)], 20)
    return answer


def test_run_the_parts_yourself(parts, checked):
    """The README's processes answer a Check, record it, and its last command says: intact."""
    assert checked.status.code == grpc.StatusCode.OK.value[0], checked
    with connect(parts.store) as client:
        rows = client.execute("SELECT DISTINCT subject, allowed, reason FROM decisions")
    assert rows == [("dr.alder", True, "physician on the care team")]
    done = run(["sh", "-c", parts.verify], parts.world, cwd=parts.directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "intact: nothing changed" in done.stdout
    assert "1 decisions" in done.stdout


def test_the_state_that_verify_leaves(parts, checked):
    """The README's `verify` remembers what it accepted, and accepts it again."""
    for _ in range(2):
        done = run(["sh", "-c", parts.verify], parts.world, cwd=parts.directory)
        assert done.returncode == 0, done.stdout + done.stderr
    [path] = re.findall(r"--state (\S+)", parts.verify)
    [accepted] = json.loads((parts.directory / path).read_bytes()).values()
    assert accepted["size"] > 0


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Iterator[tuple[Path, World]]:
    """What the README leaves running, with fewer requests: (a directory like a checkout's, it)."""
    directory = tmp_path_factory.mktemp("kept")
    _programs(directory)
    first = next(block for block in SHELL if kind(block) == "kept")
    assert first.page == README
    [command] = commands(first)
    with world() as ours:
        ours.environment["XDG_STATE_HOME"] = str(directory / "state")
        ours.environment["COLUMNS"] = "160"
        process = _start(f"{command} --requests 120", directory, ours)
        try:
            assert any("Ctrl-C stops it." in line for line in process.stdout)
            yield directory, ours
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


def test_three_ways_in(kept):
    """The privacy officer's and the auditor's commands of the README say what it says they do."""
    directory, ours = kept
    shown = ""
    for block in [block for block in SHELL if kind(block) == "kept"][1:]:
        assert block.page == README
        done = run(["sh", "-eu", "-c", block.text], ours, cwd=directory)
        assert done.returncode == 0, done.stdout + done.stderr
        shown += done.stdout
    assert "patient on their own record" in shown
    assert "the rules behind it: authz policy show" in shown
    told = ["intact: nothing changed", "NOT intact: 1 finding\n", "exit code 1", "proven: "]
    places = [shown.index(text) for text in told]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b, marks=[] if b.page in FIRST else pytest.mark.thorough)
        for b in SHELL
        if kind(b) == "script"
    ],
    ids=str,
)
def test_commands(parts, checked, tmp_path, block, request):
    """A block of commands runs from its first line to its last, where its files are there."""
    environment = dict(parts.world.environment)
    if "authz policy" in block.text:
        opa = Path(request.getfixturevalue("opa"))
        environment["PATH"] += f"{os.pathsep}{opa.parent}"
    if "--pdf" in block.text:
        makes_pdfs()
    if "go build" in block.text:
        program("go", "golang")
        (tmp_path / "tests").symlink_to(CHECKOUT / "tests")
    shutil.copy(parts.directory / "data" / "receiver" / "trust.yaml", tmp_path / "trust.yaml")
    (tmp_path / "data").symlink_to(parts.directory / "data")
    (tmp_path / "deploy").symlink_to(CHECKOUT / "deploy")
    (tmp_path / "feeds").mkdir()
    (tmp_path / "feeds" / "people.csv").write_text(
        "subject,role,status\ndr.alder,physician,active\n"
    )
    (tmp_path / "records.ndjson").write_text('{"kind":"access","subject":"dr.alder","time":1}\n')
    if "--what-if" in block.text:  # goes by what a watch has learnt
        watched = "authz watch --store $STORE --data-dir data/watch --once"
        assert run(["sh", "-c", watched], parts.world, cwd=tmp_path).returncode == 0
    done = run(["sh", "-eu", "-c", block.text], parts.world, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks(DOCS, "sql"), ids=str)
def test_queries(parts, checked, block):
    """Each query of the documentation is one that this schema answers."""
    with connect(parts.store) as client:
        client.execute(block.text)


def test_configurations(tmp_path):
    """Each configuration shown is one that the program takes."""
    for block in blocks(DOCS, "yaml"):
        path = tmp_path / "authz.yaml"
        path.write_text(block.text)
        done = CliRunner().invoke(cli.program(), ["config", "--config", str(path)])
        assert done.exit_code == 0, done.exception or done.output


@pytest.mark.parametrize("block", [b for b in SHELL if kind(b) == "make"], ids=str)
def test_make_targets(block):
    """Each `make` command is a target that make can reach."""
    for command in commands(block):
        assert _MAKE.fullmatch(command)
        with world() as ours:
            done = run([*command.split(), "--dry-run"], ours, cwd=CHECKOUT)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_the_readme_tells_both_targets():
    """The README shows how to see it and how to test it, each in one command."""
    told = [line for block in SHELL if kind(block) == "make" for line in commands(block)]
    assert {"make demo", "make test"} <= set(told)


def test_the_index_leads_to_every_page():
    """No page of the documentation is left out of its index, which the README leads to."""
    text = INDEX.read_text()
    pages = [os.path.relpath(page, INDEX.parent) for page in PAGES if page not in {README, INDEX}]
    assert [page for page in pages if f"]({page})" not in text] == []
    assert "](docs/README.md)" in README.read_text()


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What ``--help`` says, by command: ``""``, ``"serve"``, ``"serve receiver"``..."""
    found: dict[str, str] = {}
    wide = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    every = cli.program()
    level = [""]
    while level:
        command = level.pop()
        done = CliRunner().invoke(every, [*command.split(), "--help"], env=wide)
        assert done.exit_code == 0, done.output
        found[command] = text = done.stdout
        if "COMMAND" in text.partition("\n\n")[0] + text.partition("Usage")[2][:100]:
            level += [f"{command} {name}".strip() for name in _commands(text)]
    return found


def _commands(text: str) -> list[str]:
    """The names in the box "Commands" of a help text."""
    box = re.search(r"─ Commands ─.*?\n(.*?)╰", text, re.DOTALL)
    return re.findall(r"^│ ([a-z][a-z-]*)", box[1], re.MULTILINE) if box else []


def spoken() -> list[tuple[Path, str]]:
    """Each ``authz ...`` in code: in a fenced block, or between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text()
        fenced = [block.text.replace("\\\n", " ") for block in blocks([page])]
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        inline = re.findall(r"`([^`]+)`", prose)
        for code in [line for block in fenced for line in block.splitlines()] + inline:
            told = re.findall(rf"(?:^|{_NOT_A_NAME}[ /])authz( [^│┃>#|\s\[][^│┃>#|]*)", code)
            found += [(page, said) for said in told]
    return found


def test_commands_exist(helps):
    """Every command that the documentation names is there, with the options it is given."""
    assert len(helps) > 5, helps
    wrong = []
    for page, said in spoken():
        command = ""
        for word in said.split():
            if f"{command} {word}".strip() not in helps:
                break
            command = f"{command} {word}".strip()
        options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", said)
        if not command and options != ["--help"]:
            wrong.append(f"{page.relative_to(CHECKOUT)}: authz{said}: no such command")
        wrong += [
            f"{page.relative_to(CHECKOUT)}: authz{said}: no option {option}"
            for option in options
            if not re.search(rf"{option}\b(?!-)", helps[command])
        ]
    assert not wrong
    assert len(spoken()) > 8


def test_options_exist(helps):
    """Every option that the documentation mentions is one of some command's."""
    known = set(re.findall(r"--[a-z][a-z-]*", " ".join(helps.values())))
    wrong = [
        f"{page.relative_to(CHECKOUT)}: {option}"
        for page in PAGES
        for option in re.findall(r"`(--[a-z][a-z-]*)", page.read_text())
        if option not in known | _OTHERS
    ]
    assert not wrong


def test_every_command_is_told(helps):
    """No command and no server is left out of the documentation."""
    text = "\n".join(page.read_text() for page in DOCS)
    groups = {command.rpartition(" ")[0] for command in helps}
    assert [c for c in helps if c and c not in groups and f"authz {c}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links(page):
    """Every relative link leads to a file that is there, and to a heading that is in it; every
    other one is well-formed."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            address = urlsplit(target)
            if address.scheme != "https" or "." not in (address.hostname or ""):
                wrong.append(target)
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            wrong.append(target)
    assert not wrong


def _anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_config_is_accepted_back(tmp_path):
    """What `authz config` prints has every key, and is accepted as it is, meaning the defaults."""
    with world() as ours:
        printed = run([*AUTHZ, "config"], ours).stdout
        path = tmp_path / "authz.yaml"
        path.write_text(printed)
        done = run([*AUTHZ, "config", "--config", path], ours)
    assert done.returncode == 0, done.stderr
    told = yaml.safe_load(printed)
    assert Config.model_validate(told) == Config()
    assert set(told) == set(Config.model_fields)
    for name, section in told.items():
        if isinstance(section, dict):
            assert set(section) == set(type(Config.model_fields[name].default).model_fields)
    assert all(" # " in line for line in printed.splitlines()[1:] if line.startswith("  "))


def test_keys_exist():
    """Every configuration key and variable that the documentation names is one, or a template's."""
    sections = {
        name: set(type(field.default).model_fields)
        for name, field in Config.model_fields.items()
        if hasattr(type(field.default), "model_fields")
    }
    templates = (CHECKOUT / "deploy").rglob("*.yaml")
    filled = {
        name for path in templates for name in re.findall(r"\bAUTHZ_[A-Z_]+", path.read_text())
    }
    wrong = []
    for page in PAGES:
        text = page.read_text()
        for section, key in re.findall(r"`(\w+)\.(?!(?:json|rego)`)(\w+)`", text):
            if section in sections and key not in sections[section]:
                wrong.append(f"{page.relative_to(CHECKOUT)}: {section}.{key}")
        for name in re.findall(r"\bAUTHZ_([A-Z_]+[A-Z])\b", text):
            section, _, key = name.lower().rpartition("__")
            known = sections.get(section, set()) if section else set(Config.model_fields)
            if key not in known and f"AUTHZ_{name}" not in filled:
                wrong.append(f"{page.relative_to(CHECKOUT)}: AUTHZ_{name}")
    assert not wrong


def test_fields_are_told():
    """The record's page names every field of the record, and no other, in its table."""
    text = (CHECKOUT / "docs" / "record.md").read_text()
    table = re.search(r"^\| Fields .*?\n\n", text, re.DOTALL | re.MULTILINE)
    first = [line.split("|")[1] for line in table[0].splitlines()[2:] if line.count("|") > 2]
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == {
        field.name for field in FIELDS
    }


def test_metrics_exist():
    """Every metric that the documentation names is one that a process serves, and of those that
    are served none is left out."""
    lines = "import authz.serve.ext_authz, authz.serve.receiver, authz.serve.console;"
    lines += "import authz.serve.watch, authz.serve.webhooks;"
    lines += "import prometheus_client as p;"
    lines += "print(p.generate_latest().decode())"
    with world() as ours:
        served = run([sys.executable, "-c", lines], ours).stdout
    told = [name for page in DOCS for name in re.findall(r"`(authz_[a-z_]+)", page.read_text())]
    assert told
    names = re.findall(r"^# TYPE (authz_\w+) ", served, re.MULTILINE)
    assert [name for name in told if name not in names] == []
    left_out = [name for name in names if name not in told and not name.endswith("_created")]
    assert left_out == []
