"""Purposes of use (HL7 v3-ActReason) in words, and which of them an accounting does not list.

45 CFR 164.528(a)(1) leaves out treatment, payment and health-care operations, and what the patients
themselves got. HL7 has some purposes under operations and payment for which the rule wants an
accounting (164.512: courts, the military, donation, decedents, government): these are listed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

LeftOut = Literal["treatment", "payment", "operations", "patient"]

LEFT_OUT: Final[Mapping[str, LeftOut]] = MappingProxyType({
    **dict.fromkeys(
        "TREAT BTG CAREMGT CLINTRL COC ERTREAT ETREAT POPHLTH".split(), "treatment"
    ),
    **dict.fromkeys(
        "HPAYMT CLMATTCH COVAUTH COVERAGE ELIGDTRM ELIGVER ENROLLM REMITADV".split(), "payment"
    ),
    **dict.fromkeys(
        "HOPERAT FRAUD HACCRED HCOMPL HDIRECT HDM HOUTCOMS HPRGRP HQUALIMP HSYSADMIN HTEST LABELING"
        " MEMADMIN METAMGT PATADMIN PATSFTY PERFMSR RECORDMGT SYSDEV TRAIN".split(), "operations"
    ),
    "PATRQT": "patient",
})  # fmt: skip
"""What an accounting leaves out, and as what."""

WORDS: Final[Mapping[str, str]] = MappingProxyType({
    "BIORCH": "biomedical research", "BTG": "break the glass", "CAREMGT": "care management",
    "CLINTRCH": "clinical trial research", "CLMATTCH": "claim attachment",
    "COC": "coordination of care", "COVAUTH": "coverage authorization", "DISASTER": "disaster",
    "DONAT": "donation of organs or tissue", "DSRCH": "disease-specific research",
    "ERTREAT": "emergency room treatment", "ETREAT": "emergency treatment",
    "FAMRQT": "requested by the family", "FRAUD": "detection of fraud", "GOV": "government",
    "HACCRED": "accreditation", "HCOMPL": "compliance", "HDECD": "decedents", "HLEGAL": "legal",
    "HMARKT": "marketing", "HOPERAT": "health-care operations", "HPAYMT": "payment",
    "HQUALIMP": "quality improvement", "HRESCH": "research", "MILCDM": "military command",
    "MILDCRG": "military discharge", "PATADMIN": "patient administration",
    "PATRQT": "requested by the patient", "PATSFTY": "patient safety",
    "PUBHLTH": "public health", "PWATRNY": "requested by power of attorney",
    "RECORDMGT": "records management", "SUPNWK": "support network",
    "THREAT": "threat to health or safety", "TRAIN": "training",
    "TRANSRCH": "translational research", "TREAT": "treatment",
})  # fmt: skip


def left_out(purpose: str) -> LeftOut | None:
    """As what an accounting leaves a disclosure for `purpose` out; None if it lists it."""
    return LEFT_OUT.get(purpose.strip().upper())


def in_words(purpose: str) -> str:
    """A code with its meaning; other text as it is."""
    words = WORDS.get(purpose.strip().upper())
    return f"{words} ({purpose.strip().upper()})" if words else purpose.strip()
