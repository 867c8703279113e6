"""``authz policy show``."""

import datetime as dt
import json
import re
from typing import Annotated

import typer

from authz import config
from authz.cli.app import ConfigFile, Json, Store, given
from authz.cli.block import place_of
from authz.cli.lookup import printable
from authz.cli.policy import policy_group
from authz.errors import AuthzError, UsageError
from authz.policy.archive import parse_archive, revision
from authz.store import migrations, policies
from authz.store.client import QUERY_ERRORS, Client, connect, explain

_SHOWN = 5  # of the revisions that a prefix fits
_REVISION = re.compile(r"[0-9a-f]{1,64}")
_DECISION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class NoSuchPolicyError(AuthzError):
    """There is no archive of it, or what is there is another's."""

    exit_code = 1


@policy_group.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECORD",
            help="A decision id, or demo/receiver@10: a log and an index. Or a policy_revision, or"
            " how it begins.",
        ),
    ],
    file: ConfigFile = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Print the Rego behind a record: the archived text of the policy that decided."""
    if not _REVISION.fullmatch(name) and not _DECISION.fullmatch(name) and not place_of(name):
        raise UsageError(
            f"RECORD {printable(name)}: want a decision id, a log and an index such as"
            " demo/receiver@10, or up to 64 hexadecimal digits of a policy_revision"
        )
    url = config.load(file, given(store=store)).database
    try:
        with connect(url) as client:
            migrations.check(client)
            if not _REVISION.fullmatch(name):
                name = _behind(client, name)
            found = policies.find(client, name, _SHOWN + 1)
    except QUERY_ERRORS as error:
        raise explain(error, url) from None
    policy = _only(name, found)
    if revision(policy.text) != policy.revision:
        raise NoSuchPolicyError(
            f"the text archived as {policy.revision} is not that policy's: it was changed"
        )
    try:
        archived = parse_archive(policy.text)
    except ValueError as error:
        raise NoSuchPolicyError(f"{policy.revision}: {error}") from None
    seen = dt.datetime.fromtimestamp(policy.first_seen_us / 1e6, dt.UTC).isoformat("T", "seconds")
    if as_json:
        told = {"revision": policy.revision, "first_seen": seen, "data": archived.data}
        print(json.dumps(told | {"modules": archived.modules}))
        return
    print(f"# revision {policy.revision}, first seen {seen}")
    if archived.data:
        print(f"# data (not archived) {archived.data}")
    for path, text in sorted(archived.modules.items()):
        print(f"\n# {path}\n{text}", end="" if text.endswith("\n") else "\n")


def _behind(client: Client, name: str) -> str:
    """The revision that a record or a decision names."""
    place = place_of(name)
    found = policies.of_record(client, *place) if place else policies.of_decision(client, name)
    if not found:
        known = place and found is not None
        raise NoSuchPolicyError(
            f"{printable(name)}: no policy made this record; see its reason_code"
            if known
            else f"{printable(name)}: there is no such record, or no policy made it"
        )
    if len(found) > 1:
        raise UsageError(f"RECORD {name}: its records name {', '.join(found)}; give one of them")
    return found[0]


def _only(name: str, found: list[policies.StoredPolicy]) -> policies.StoredPolicy:
    if not found:
        raise NoSuchPolicyError(f"no policy is archived whose revision begins with {name}")
    if len(found) > 1:
        several = ", ".join(policy.revision[:16] for policy in found[:_SHOWN])
        more = " and more" if len(found) > _SHOWN else ""
        raise UsageError(f"RECORD {name}: fits {several}{more}; give more digits")
    return found[0]
