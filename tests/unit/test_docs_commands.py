"""No command of the documentation is left out of the tests."""

import re

import pytest
from pages import DOCS, ELSEWHERE, PAGES, SHELLS, Block, blocks, named_in

_TEST = re.compile(r"([\w/]+\.py)::(test_\w+)")
COMMANDS = [block for block in blocks(PAGES) if block.is_commands]


def runs_as_it_stands(block: Block) -> bool:
    """Whether test_documentation.py takes it."""
    return block.page in DOCS and block.language in SHELLS | {"sql"}


def test_blocks_are_seen():
    """Every fence begins and ends a block, at the beginning of its line."""
    for page in PAGES:
        fences = re.findall(r"^[ \t>]*(?:```|~~~)", page.read_text(), re.MULTILINE)
        assert fences == ["```"] * 2 * len(blocks([page])), page


def test_each_block_of_commands_is_run():
    """As it stands, or by a test that is named, or there is a reason why not."""
    named = [block for block in COMMANDS if str(block).startswith(tuple(ELSEWHERE))]
    assert [str(b) for b in COMMANDS if b not in named and not runs_as_it_stands(b)] == []
    assert len(COMMANDS) > 120
    assert len(named) > 40


def test_none_is_named_in_vain():
    """Each entry begins some block, and its test is there; a reason says what is wanted."""
    begin = [str(block) for block in COMMANDS]
    for entry, by in ELSEWHERE.items():
        assert any(one.startswith(entry) for one in begin), entry
        if found := _TEST.fullmatch(by):
            assert found[2] in named_in(found[1]), by
        else:
            assert by.startswith("wants "), by


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("authz verify --store X\n", True),
        ("# first\n(umask 077 && make it)\n", True),
        ("A=1 B=2 \\\n  opa run\n", True),
        ("/opt/authz/bin/pip install .\n", True),
        ("DROP DATABASE authz SYNC\n", True),
        ("AUTHZ_STORE=clickhouse://ch-1/authz\n", False),
        ("┃ one ┃\nauthz verify of 100 records: 1 s\n", False),
        ("logs:\n- origin: prod/receiver\n", False),
    ],
)  # fmt: skip
def test_what_a_command_is(text, commands):
    """What begins with a program or a statement; a picture or a file is none."""
    assert Block(PAGES[0], "text", text).is_commands == commands
