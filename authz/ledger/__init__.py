"""The Merkle log, for anyone to lift out: it imports nothing of ours."""

from authz.ledger.merkle import (
    HASH_BYTES,
    ProofError,
    leaf_hash,
    leaf_hashes,
    node_hash,
    tree_hash,
    verify_consistency,
    verify_inclusion,
)
from authz.ledger.note import (
    Checkpoint,
    NoteError,
    Signer,
    UnsignedError,
    Verifier,
    add_signatures,
    open_note,
    sign_note,
    signers,
)
from authz.ledger.proofs import edge_of, prove_consistency, prove_inclusion, root_at
from authz.ledger.tiles import Place
from authz.ledger.tlog_proof import TlogProof
from authz.ledger.tree import TILE_WIDTH, Tile, Tree

__all__ = [
    "HASH_BYTES",
    "TILE_WIDTH",
    "Checkpoint",
    "NoteError",
    "Place",
    "ProofError",
    "Signer",
    "Tile",
    "TlogProof",
    "Tree",
    "UnsignedError",
    "Verifier",
    "add_signatures",
    "edge_of",
    "leaf_hash",
    "leaf_hashes",
    "node_hash",
    "open_note",
    "prove_consistency",
    "prove_inclusion",
    "root_at",
    "sign_note",
    "signers",
    "tree_hash",
    "verify_consistency",
    "verify_inclusion",
]
