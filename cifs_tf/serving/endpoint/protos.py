"""Messages of protobuf that no installed package brings, made from tables of their fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

Fields = Sequence[tuple[int, str, str]]
_FIELD = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
    "float": _FIELD.TYPE_FLOAT,
    "double": _FIELD.TYPE_DOUBLE,
    "bool": _FIELD.TYPE_BOOL,
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
}


def make_messages(package: str, messages: Mapping[str, Fields]) -> dict[str, Any]:
    """Make classes of messages, in a pool of their own, where no others can clash.

    Args:
        package: of the messages.
        messages: by name, the number, name and kind of each field: a scalar, another of the messages, one of
            `google.protobuf`'s wrappers such as `Int64Value`, each with or without `repeated` in front.

    Returns:
        the classes by name.

    Example:
        >>> make_messages("example", {"Point": ((1, "x", "int64"),)})["Point"](x=3).x
        3
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"cifs_tf/{package}.proto",
        package=package,
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, field_name, kind in fields:
            field = message.field.add(name=field_name, number=number, label=_FIELD.LABEL_OPTIONAL)
            if kind.startswith("repeated "):
                field.label, kind = _FIELD.LABEL_REPEATED, kind.removeprefix("repeated ")
            if kind in SCALARS:
                field.type = SCALARS[kind]
            else:
                where = "google.protobuf" if kind.endswith("Value") else package
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{where}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}
