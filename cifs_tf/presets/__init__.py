"""Small trained networks that come with the package, each with a card: data, recipe, measured accuracy.

A preset is a folder with `model.keras` and `card.json`; `Classifier.save_to_preset` writes one. Nothing is fetched.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifs_tf.errors import UserError

if TYPE_CHECKING:
    from cifs_tf.models import Classifier

__all__ = ["from_preset", "preset_card", "preset_names"]

FOLDER = Path(__file__).resolve().parent


def preset_names() -> list[str]:
    """Return the names of the networks that come with the package.

    Example:
        >>> from cifs_tf.presets import preset_names
        >>> preset_names()
        ['digits_cifs', 'digits_vanilla']
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
    import keras

    from cifs_tf.models import Classifier

    try:
        classifier = keras.models.load_model(file, compile=False)
    except Exception as error:  # whatever a damaged file makes Keras raise
        reason = str(error).strip().partition("\n")[0]
        raise UserError("preset", preset, f"Keras cannot load {file} ({reason})") from error
    if not isinstance(classifier, Classifier):
        raise UserError("preset", preset, f"{file} is no network of this project")
    return classifier


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
    file = preset_folder(preset) / "card.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError("preset", preset, f"{file} is damaged, save the network anew") from error


def preset_folder(preset: str | os.PathLike[str]) -> Path:
    """Find the folder of a preset; raise `UserError` if there is none."""
    names = preset_names()
    folder = FOLDER / preset if isinstance(preset, str) and preset in names else Path(preset).expanduser()
    if not (folder / "model.keras").is_file():
        raise UserError("preset", preset, f"give one of {', '.join(names)}, or a folder that save_to_preset wrote")
    return folder
