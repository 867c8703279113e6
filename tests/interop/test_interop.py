"""Our logs and proofs, checked by code that is not ours, and the other way around.

The Go program beside this file uses golang.org/x/mod/sumdb and filippo.io/torchwood.
"""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from logs import SIGNER
from served import console, fill, record, token_file

from authz.ledger import (
    Checkpoint,
    TlogProof,
    edge_of,
    leaf_hash,
    open_note,
    prove_consistency,
    tree_hash,
    verify_consistency,
)
from authz.proof import check_proof, make_proof
from authz.store.client import connect
from authz.store.logs import StoredLogs
from authz.store.tiles import Tiles, best_checkpoint
from authz.trust import TrustedLog
from authz.verify.folder import write_log

SIZES = (1, 2, 254, 300, 65_200)  # beyond 65,536: there are tiles of a third level
VKEY = str(SIGNER.verifier)
RFC_LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
    "606162636465666768696a6b6c6d6e6f")]  # fmt: skip


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> Path:
    """The Go program, built. Without Go its tests are skipped, and in CI that is a failure."""
    go = shutil.which("go")
    if go is None:
        reason = "needs Go 1.25 or later: https://go.dev/doc/install"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    built = tmp_path_factory.mktemp("interop") / "interop"
    done = subprocess.run(
        [go, "build", "-o", str(built), "."], cwd=Path(__file__).parent, capture_output=True,
        text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(scope="module")
def site(clickhouse, tmp_path_factory):
    """A log of ours, served: (its URL, leaves, notes of its checkpoints, token file, store)."""
    directory = tmp_path_factory.mktemp("interop")
    with connect(clickhouse.store) as admin:
        admin.execute("CREATE DATABASE interop")
        store = clickhouse.store.rpartition("/")[0] + "/interop"
        first = [sum(SIZES[:number]) for number in range(len(SIZES))]
        batches = [
            [record(number) for number in range(begin, begin + size)]
            for begin, size in zip(first, SIZES, strict=True)
        ]
        leaves = fill(directory, store, batches)
        with connect(store) as client:
            notes = [note for (note,) in client.execute("SELECT note FROM checkpoints")]
        assert len(notes) >= len(SIZES)
        path, _ = token_file(directory)
        environment = {"AUTHZ_CONSOLE__ENTRIES_TOKEN_FILE": str(path)}
        with console(directory, store, environment=environment) as part:
            yield f"http://{part.address}/{SIGNER.name}", leaves, notes, path, store
        admin.execute("DROP DATABASE interop")


def ask(program, *arguments, code=0, given=None):
    """What the Go program prints, as JSON; or its error."""
    done = subprocess.run(
        [program, *map(str, arguments)], input=given and json.dumps(given), capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr if code else json.loads(done.stdout)


def encoded(data):
    return base64.b64encode(data).decode()


def places(size):
    """Indexes at the edges of tiles and of the tree, and some between."""
    edges = {0, 1, 255, 256, 257, 65_535, 65_536, size - 2, size - 1, *range(7, size, 9973)}
    return sorted(index for index in edges if 0 <= index < size)


def test_go_accepts_our_log(program, site):
    """golang.org/x/mod's note and tlog open our checkpoint, and prove out of our tiles that it has
    our records, and that it only ever appended to each checkpoint before."""
    url, leaves, notes, _, _ = site
    given = {
        "leaves": {str(index): encoded(leaves[index]) for index in places(len(leaves))},
        "checkpoints": notes,
    }
    told = ask(program, "check", "-url", url, "-vkey", VKEY, given=given)
    assert told == {"size": len(leaves), "records": len(given["leaves"]), "trees": len(notes)}


def test_go_refuses_what_our_log_has_not(program, site):
    """And they refuse a record that was changed, and another key: the tests before could fail."""
    url, leaves, _, _, _ = site
    wrong = {"leaves": {"9": encoded(leaves[9] + b" ")}, "checkpoints": []}
    assert "record 9" in ask(program, "check", "-url", url, "-vkey", VKEY, given=wrong, code=1)
    other = VKEY.replace("+", "x+", 1)
    assert ask(program, "check", "-url", url, "-vkey", other, given=wrong, code=1)


def test_torchwood_reads_our_entries(program, site):
    """torchwood's client fetches all entry bundles, hashes each entry, and finds every one in the
    tree: they are the leaves, and rebuilt from the rows."""
    url, leaves, _, path, _ = site
    told = ask(program, "tree", "-url", url, "-vkey", VKEY, "-token", path)
    assert told["size"] == len(leaves)
    assert [base64.b64decode(entry) for entry in told["entries"]] == leaves


def test_torchwood_reads_an_exported_folder(program, site, tmp_path):
    """The log's folder of an export is one that torchwood reads: every entry is found in the tree,
    and one that was changed in the folder is not."""
    _, leaves, _, _, store = site
    with connect(store) as client:
        write_log(StoredLogs(client), SIGNER.name, tmp_path, lambda _done, _all: None)
    [directory] = (tmp_path / "logs").iterdir()
    told = ask(program, "tree", "-directory", directory, "-vkey", VKEY)
    assert [base64.b64decode(entry) for entry in told["entries"]] == leaves
    bundle = directory / "tile" / "entries" / "001"
    bundle.write_bytes(bundle.read_bytes().replace(b'"index":300', b'"index":301', 1))
    assert "hash" in ask(program, "tree", "-directory", directory, "-vkey", VKEY, code=1)


def test_torchwood_accepts_our_proofs(program, site, tmp_path):
    """torchwood verifies the files that `authz prove` makes, and finds the record in them."""
    _, leaves, _, _, store = site
    paths = {}
    with connect(store) as client:
        for index in places(len(leaves)):
            _, note = best_checkpoint(client, SIGNER.name, index)
            proof = make_proof(leaves[index], index, note, Tiles(client, SIGNER.name))
            paths[tmp_path / f"{index}.tlog-proof"] = leaves[index]
            (tmp_path / f"{index}.tlog-proof").write_text(str(proof))
    told = ask(program, "proof", "-vkey", VKEY, *paths)
    assert {Path(path): base64.b64decode(leaf) for path, leaf in told.items()} == paths
    moved = tmp_path / "moved"
    moved.write_text((tmp_path / "7.tlog-proof").read_text().replace("index 7", "index 6"))
    assert "moved" in ask(program, "proof", "-vkey", VKEY, moved, code=1)


def made(program, tmp_path, leaves):
    """Proof files and consistency proofs that torchwood and tlog make of `leaves`."""
    key = tmp_path / "key"
    key.write_text(SIGNER.private_text())
    given = [encoded(leaf) for leaf in leaves]
    told = ask(program, "make", "-key", key, "-directory", tmp_path, given=given)
    files = [(tmp_path / f"{index}.tlog-proof").read_text() for index in range(len(leaves))]
    roots = [base64.b64decode(root) for root in told["roots"]]
    trees = [[base64.b64decode(line) for line in tree] for tree in told["trees"]]
    return files, roots, trees


def test_we_accept_torchwoods_proofs(program, site, tmp_path):
    """A log that Go's code made of our records, signed with our key: its roots are ours, and each
    of its proofs is accepted, and is the very file that we would have made."""
    leaves = site[1][:300]
    files, roots, trees = made(program, tmp_path, leaves)
    hashes = [*map(leaf_hash, leaves)]
    assert roots == [tree_hash(hashes[: size + 1]) for size in range(len(hashes))]
    for index, text in enumerate(files):
        proven = check_proof(text, [TrustedLog(SIGNER.name, (SIGNER.verifier,))])
        assert (proven.proof.index, proven.proof.leaf) == (index, leaves[index])
        assert str(TlogProof.parse(text)) == text
    for old, proof in enumerate(trees, 1):
        verify_consistency(old, len(leaves), proof, roots[old - 1], roots[-1])
    with connect(site[4]) as client:
        tiles = Tiles(client, SIGNER.name)
        for index in (0, 99, 299):
            note = TlogProof.parse(files[index]).checkpoint
            assert str(make_proof(leaves[index], index, note, tiles)) == files[index]
        for old in (1, 17, 256, 300):
            assert prove_consistency(old, 300, tiles) == trees[old - 1]


def test_rfc_leaves(program, tmp_path):
    """RFC 6962's example leaves, the empty one among them, in a log by Go's code."""
    files, roots, _ = made(program, tmp_path, RFC_LEAVES)
    assert roots[7].hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    for leaf, text in zip(RFC_LEAVES, files, strict=True):
        proof = TlogProof.parse(text)
        assert proof.leaf == leaf
        proof.verify(leaf, [SIGNER.verifier])


def test_our_tree_goes_on_from_its_tiles(site):
    """The tree restored from the tiles in ClickHouse, at each checkpoint, has the signed root."""
    _, _, notes, _, store = site
    with connect(store) as client:
        for note in notes:
            checkpoint = Checkpoint.parse(open_note(note, [SIGNER.verifier])[0])
            tree = edge_of(checkpoint.size, Tiles(client, SIGNER.name))
            assert tree.root() == checkpoint.root
