"""gRPC server reflection: lets tools such as grpcurl list and call the services."""

from collections.abc import Sequence
from typing import Any

from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import ReflectionServicer

from authz.serve.core_stream import Conversation, Handler

_METHODS = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")  # the same messages under two names
)


def handlers(services: Sequence[str]) -> dict[str, Handler]:
    """Reflection of `services`, whose descriptors are in protobuf's default pool."""
    servicer: Any = ReflectionServicer(services)  # its stubs take it for the abstract one

    def answers(request: bytes) -> list[bytes]:
        message = reflection_pb2.ServerReflectionRequest.FromString(request)
        return [
            answer.SerializeToString()
            for answer in servicer.ServerReflectionInfo(iter([message]), None)
        ]

    return dict.fromkeys(_METHODS, Conversation(answers))
