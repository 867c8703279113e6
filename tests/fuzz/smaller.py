"""A finding made small: what of a request it takes, and no more."""

from collections.abc import Callable, Iterator

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.message import DecodeError, Message

_TRIES = 400


def smaller(wire: bytes, still: Callable[[bytes], bool]) -> bytes:
    """The smallest request found for which `still` holds."""
    left = [_TRIES]
    while left[0] > 0:
        for candidate in _candidates(wire):
            left[0] -= 1
            if left[0] <= 0 or (len(candidate) < len(wire) and still(candidate)):
                break
        else:
            return wire
        if left[0] > 0:
            wire = candidate
    return wire


def _candidates(wire: bytes) -> Iterator[bytes]:
    try:
        message = CheckRequest.FromString(wire)
    except DecodeError:
        pass
    else:
        message.DiscardUnknownFields()
        yield message.SerializeToString()
        yield from _without(message, message)
    size = len(wire) // 2
    while size:
        for at in range(0, len(wire), size):
            yield wire[:at] + wire[at + size :]
        size //= 4


def _without(whole: Message, message: Message) -> Iterator[bytes]:
    """`whole` with one field, item or half of a text of `message` left out."""
    for field, value in message.ListFields():
        kept = type(message)()
        kept.CopyFrom(message)
        message.ClearField(field.name)
        yield whole.SerializeToString()
        if isinstance(value, str | bytes) and len(value) > 1:
            for half in (value[: len(value) // 2], value[len(value) // 2 :]):
                setattr(message, field.name, half)
                yield whole.SerializeToString()
        elif field.message_type and field.message_type.GetOptions().map_entry:
            for key in list(getattr(kept, field.name)):
                message.CopyFrom(kept)
                del getattr(message, field.name)[key]
                yield whole.SerializeToString()
        message.CopyFrom(kept)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if not field.is_repeated:
            yield from _without(whole, value)
        elif field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type:
                for key in list(value):
                    yield from _without(whole, value[key])
        else:
            for item in value:
                yield from _without(whole, item)
