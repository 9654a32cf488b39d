"""Small trained networks that come with the package, each with a card: data, recipe, measured accuracy.

A preset is a folder with `model.keras` and `card.json`; `Classifier.save_to_preset` writes one. Nothing is fetched.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifs_tf.errors import UserError
from cifs_tf.files import read_json

if TYPE_CHECKING:
    from cifs_tf.models import Classifier

__all__ = ["from_preset", "preset_card", "preset_names"]

FOLDER = Path(__file__).resolve().parent


def preset_names() -> list[str]:
    """Return the names of the networks that come with the package.

    Example:
        >>> from cifs_tf.presets import preset_names
        >>> preset_names()
        ['digits_cifs', 'digits_vanilla', 'fashion_mnist_cifs', 'fashion_mnist_vanilla']
    """
    return sorted(file.parent.name for file in FOLDER.glob("*/card.json"))


def from_preset(preset: str | os.PathLike[str]) -> "Classifier":
    """Load a small trained network.

    Args:
        preset: one of `preset_names()`, or a folder that `Classifier.save_to_preset` wrote.

    Returns:
        the classifier, in float32.

    Raises:
        UserError: for an unknown name, or a folder that holds no preset.

    Example:
        >>> model = from_preset("digits_cifs")
        >>> model(tf.zeros((1, *model.image_shape))).shape
        TensorShape([1, 3, 10])
    """
    file = preset_folder(preset) / "model.keras"
    from cifs_tf.models.build import load_classifier

    return load_classifier(file, "preset", preset)


def preset_card(preset: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the card of a preset: `name`, `network`, and of one from a run `data`, `recipe`, `measured`, `commands`.

    Args:
        preset: as for `from_preset`.

    Returns:
        the card, in plain types.

    Raises:
        UserError: for an unknown name, or a damaged card.

    Example:
        >>> from cifs_tf.presets import preset_card
        >>> preset_card("digits_cifs")["data"]["dataset"]
        'digits'
    """
    return read_json(preset_folder(preset) / "card.json")


def preset_folder(preset: str | os.PathLike[str]) -> Path:
    """Find the folder of a preset; raise `UserError` if there is none."""
    names = preset_names()
    folder = FOLDER / preset if isinstance(preset, str) and preset in names else Path(os.path.expanduser(preset))
    if not os.path.isfile(folder / "model.keras"):
        raise UserError("preset", preset, f"give one of {', '.join(names)}, or a folder that save_to_preset wrote")
    return folder
