"""What a SavedModel does besides computing, read from its protobuf before TensorFlow loads it.

A SavedModel is a program: its operations may read and write files, open connections and call Python.
"""

from collections.abc import Iterable
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from cifs_tf.errors import UserError

# Beginnings of the names of operations, without "Experimental" in front.
_FILES = (
    *("ReadFile", "WriteFile", "MatchingFiles", "Save", "Restore", "MergeV2Checkpoints", "DistributedSave"),
    *("TextLine", "TFRecord", "FixedLengthRecord", "WholeFile", "LMDB", "SqlDataset", "CSVDataset", "LoadDataset"),
    *("SnapshotDataset", "SnapshotChunk", "SnapshotNested", "CacheDataset", "DatasetToTFRecord", "ListSnapshot"),
    *("InitializeTableFromTextFile", "LoadAndRemapMatrix", "GenerateVocabRemapping", "DecodeProto", "EncodeProto"),
    *("CreateSummary", "ImportEvent", "Debug", "InitializeTRTResource", "FileSystem"),
)
_NETWORK = (
    *("DataService", "RegisterDataset", "Rpc", "TryRpc", "Grpc", "BigQuery", "Bigtable", "Kafka", "PubSub"),
    *("RemoteCall", "RemoteFusedGraph", "Send", "Recv", "HostSend", "HostRecv", "Collective", "ConfigureDistributed"),
)
_CODE = (
    *("PyFunc", "EagerPyFunc", "XlaCustomCall", "XlaHostCompute", "XlaSendToHost", "XlaRecvFromHost"),
    *("DatasetFromGraph", "MlirPassthrough", "TfLite"),  # a graph within a string
)
# The loader saves and restores variables with these, in nodes and functions that nothing else calls.
_SAVING, _RESTORING = ("SaveV2", "MergeV2Checkpoints"), ("RestoreV2",)


def side_effects(folder: Path) -> list[str]:
    """List the operations of a SavedModel that reach files, the network or Python, those of its functions too.

    Args:
        folder: with `saved_model.pb`.

    Returns:
        names of operations, sorted; none for a model that only computes.

    Raises:
        UserError: if the file is damaged.

    Example:
        >>> classifier.export("exported")
        >>> side_effects(Path("exported"))
        []
    """
    saved = SavedModel()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except DecodeError as error:
        advice = "TensorFlow cannot load it (saved_model.pb is damaged), export it again"
        raise UserError("model", folder, advice) from error
    found: set[str] = set()
    for meta in saved.meta_graphs:
        saver = meta.saver_def
        found |= _of_graph(meta.graph_def, saver.save_tensor_name, saver.restore_op_name)
    return sorted(found)


def check_side_effects(folder: Path, trust: bool) -> None:
    """Refuse a SavedModel that does more than compute.

    Args:
        folder: with `saved_model.pb`.
        trust: whether that is known and wanted.

    Raises:
        UserError: naming the operations, unless it is trusted.
    """
    found = [] if trust else side_effects(folder)
    if found:
        advice = (
            "these operations reach files, the network or Python code: give --trust (trust=True) if you know where the "
            "model comes from"
        )
        raise UserError("model", f"{folder} with {', '.join(found)}", advice)


def _of_graph(graph: GraphDef, save: str, restore: str) -> set[str]:
    functions = {function.signature.name: list(function.node_def) for function in graph.library.function}
    saving, restoring = (_behind(graph, name.split(":")[0]) for name in (save, restore))
    # What the loader alone calls, by the operations that it may use for it.
    groups = [
        (_SAVING, [node for node in graph.node if node.name in saving - restoring]),
        (_RESTORING, [node for node in graph.node if node.name in restoring - saving]),
        ((), [node for node in graph.node if node.name not in saving ^ restoring]),
    ]
    called = [_called(nodes, functions) for _, nodes in groups]
    others = set(functions) - called[0] - called[1]
    called[2] |= _called([node for name in others for node in functions[name]], functions) | others
    found = set()
    for index, (allowed, nodes) in enumerate(groups):
        inside = (node for name in called[index] for node in functions[name])
        found |= {node.op for node in (*nodes, *inside) if _acts(node) and node.op not in allowed}
    return found


def _behind(graph: GraphDef, name: str) -> set[str]:
    """Return the names of the nodes that a node needs, variables and other inputs of the model among them."""
    nodes = {node.name: node for node in graph.node}
    found, waiting = set(), [name]
    while waiting:
        each = waiting.pop()
        if each in nodes and each not in found:
            found.add(each)
            waiting += [source.removeprefix("^").split(":")[0] for source in nodes[each].input]
    return found


def _called(nodes: Iterable[NodeDef], functions: dict[str, list[NodeDef]]) -> set[str]:
    """Return the names of the functions that nodes call, and those in turn."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        names = {node.op, *(value.func.name for value in node.attr.values())}
        names |= {function.name for value in node.attr.values() for function in value.list.func}
        new = (names & set(functions)) - found
        found |= new
        waiting += [inner for name in new for inner in functions[name]]
    return found


def _acts(node: NodeDef) -> bool:
    name = node.op.lstrip("_").removeprefix("Experimental")
    prints_to_file = name == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:")
    return prints_to_file or name.startswith((*_FILES, *_NETWORK, *_CODE))
