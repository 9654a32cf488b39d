"""The cuts of a classifier and their costs, as rows and as a table."""

import io

import keras
from rich.console import Console

from cifs_tf.models.flops import count_flops, probe_flops, selection_flops
from cifs_tf.models.graph import is_only_path, output_shape
from cifs_tf.tables import Table

WIDTH = 160  # nothing is wrapped


def summary_rows(classifier: keras.Model) -> list[dict]:
    """Make one row for each cut, in the order of the network; `pandas.DataFrame` takes them as they are.

    Args:
        classifier: any `Classifier`.

    Returns:
        dicts of `cut` (name of the layer), `only_path` (False: there is a way around the cut, and only what passes
        through it is selected), `selection` and `probe` (names of their classes), `shape` (of the features,
        (..., channels)), `parameters` (of the selection layer, so of its probe), `flops` (per image and forward pass,
        see `selection_flops`), and `share` (of the backbone's FLOPs); the last two None where a size is unknown.

    Example:
        >>> pandas.DataFrame(summary_rows(classifier))[["cut", "parameters", "flops"]]
    """
    backbone = classifier.backbone
    in_backbone = count_flops(classifier).forward - sum(map(probe_flops, classifier.cuts.values()))
    rows = []
    for name, selection in classifier.cuts.items():
        shape = output_shape(backbone, name)
        flops = selection_flops(selection, shape)
        rows.append(
            {
                "cut": name,
                "only_path": is_only_path(backbone, name),
                "selection": type(selection).__name__,
                "probe": type(getattr(selection, "probe", None)).__name__,
                "shape": tuple(shape[1:]),
                "parameters": selection.count_params(),
                "flops": flops,
                "share": flops / in_backbone if flops and in_backbone else None,
            }
        )
    return rows


def cuts_table(classifier: keras.Model) -> str:
    """Lay the rows out as a table, with what the backbone costs and what was not counted below it.

    Args:
        classifier: any `Classifier`.

    Returns:
        lines of text.
    """
    flops = count_flops(classifier)
    in_backbone = flops.forward - sum(map(probe_flops, classifier.cuts.values()))
    rows = summary_rows(classifier)
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, highlight=False)
    if rows:
        header = ["cut", "selects on", "selection", "features", "parameters", "extra FLOPs", "of backbone"]
        cells = [
            [
                row["cut"],
                "all paths" if row["only_path"] else "one of several paths",
                f"{row['selection']}, {row['probe']}",
                " x ".join(map(str, row["shape"])),
                f"{row['parameters']:,}",
                "unknown" if row["flops"] is None else f"{row['flops']:,}",
                "unknown" if row["share"] is None else f"{row['share']:.3%}",
            ]
            for row in rows
        ]
        console.print(Table(header, cells, num_names=4).screen("Cuts"))
    else:
        console.print("No cuts: a vanilla network.")
    backbone = classifier.backbone
    console.print(f"Backbone {backbone.name}: {backbone.count_params():,} parameters, {in_backbone:,} FLOPs an image.")
    if flops.left_out:
        console.print(f"Without the FLOPs of {', '.join(flops.left_out)}, which are not counted.")
    return text.getvalue().rstrip()
