"""Where a request comes from: the address that a decision's record names.

A Check's `source.address` is the peer of the connection: behind a proxy, the proxy. Envoy's access
log names the hop of x-forwarded-for that `xff_num_trusted_hops` trusts. The header
x-envoy-external-address brings that to the Check, if Envoy sets it. Seen with Envoy 1.40:

| use_remote_address | x-envoy-external-address in the Check                                      |
|--------------------|----------------------------------------------------------------------------|
| true (ours)        | always there, always what the access log says, a client's own is gone:     |
|                    | with 0, 1 and 2 hops, HTTP/1.1 and 2, IPv4 and 6, private addresses, with  |
|                    | and without `internal_address_config`; the peer if x-forwarded-for has too |
|                    | few entries or none there that is a bare address                           |
| false              | never set, and a client's own passes as it is: not to be believed. (The    |
|                    | access log then has an entry of x-forwarded-for, with 0 hops the last: who |
|                    | reaches such an Envoy directly chooses its address there.)                 |

So whoever runs it has to say which Envoy it is; nothing in a Check tells the two apart.
"""

import ipaddress
from collections.abc import Mapping


def client_address(peer: str, headers: Mapping[str, str], *, trust_envoy: bool) -> str:
    """The client's address: `peer`, or with `trust_envoy` what Envoy says the client is.

    `peer` is the Check's `source.address` ("" for a pipe), `headers` are by lowercase name.
    `trust_envoy` is right only for an Envoy with `use_remote_address: true`. What is not one
    address, without port or zone, is nothing that Envoy says: then it is the peer. The text is as
    Envoy writes it, so that it equals the access's.
    """
    if not trust_envoy:
        return peer
    told = headers.get("x-envoy-external-address", "")
    try:
        address = ipaddress.ip_address(told)
    except ValueError:
        return peer
    return peer if getattr(address, "scope_id", None) else told
