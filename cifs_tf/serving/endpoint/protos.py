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


def make_messages(
    package: str, messages: Mapping[str, Fields], services: Mapping[str, Mapping[str, tuple[str, str]]] | None = None
) -> dict[str, Any]:
    """Make classes of messages, in a pool of their own, where no others can clash.

    Args:
        package: of the messages.
        messages: by name, `Outer.Inner` after `Outer`, the number, name and kind of each field: a scalar, another of
            the messages, one of `google.protobuf`'s wrappers such as `Int64Value`; in front of it nothing, `repeated`,
            `map` (from strings), or `oneof NAME`.
        services: by name, the messages that each method takes and returns, for those who ask for a description.
            Default none.

    Returns:
        the classes by name; `CLASS.DESCRIPTOR.file.pool` is the pool.

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
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name, fields in messages.items():
        outer, _, inner = name.rpartition(".")
        made[name] = (made[outer].nested_type if outer else file.message_type).add(name=inner)
        for number, field_name, kind in fields:
            _add_field(made[name], f"{package}.{name}", package, number, field_name, kind)
    for name, methods in (services or {}).items():
        service = file.service.add(name=name)
        for method, (given, answer) in methods.items():
            service.method.add(name=method, input_type=f".{package}.{given}", output_type=f".{package}.{answer}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def _add_field(
    message: descriptor_pb2.DescriptorProto, full_name: str, package: str, number: int, name: str, kind: str
) -> None:
    *how, kind = kind.split()
    field = message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
    if how[:1] == ["oneof"]:
        if how[1] not in [oneof.name for oneof in message.oneof_decl]:
            message.oneof_decl.add(name=how[1])
        field.oneof_index = [oneof.name for oneof in message.oneof_decl].index(how[1])
    elif how:
        field.label = _FIELD.LABEL_REPEATED
    if how == ["map"]:
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, full_name, package, 1, "key", "string")
        _add_field(entry, full_name, package, 2, "value", kind)
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{full_name}.{entry.name}"
    elif kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        where = "google.protobuf" if kind.endswith("Value") else package
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{where}.{kind}"


def add_file(pool: descriptor_pool.DescriptorPool, file: Any) -> None:
    """Copy a file of descriptors, with those that it needs, into a pool."""
    for needed in file.dependencies:
        add_file(pool, needed)
    pool.AddSerializedFile(file.serialized_pb)
