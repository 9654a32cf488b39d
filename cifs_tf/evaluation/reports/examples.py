"""A few adversarial images for the report."""

from collections.abc import Sequence

import tensorflow as tf

from cifs_tf.data import Split, to_float
from cifs_tf.evaluation.cards.card import Card
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.records import Example


def pick_examples(
    model: AttackedModel, split: Split, card: Card, class_names: Sequence[str], limit: int = 6
) -> list[Example]:
    """Take the first adversarial image of each attack from a card.

    Args:
        model: the attacked model.
        split: the images of the evaluation.
        card: of the evaluation, finished.
        class_names: by label.
        limit: how many at most. Default 6.

    Returns:
        the examples for `write_report`.
    """
    families = {task["name"]: task["family"] for task in card.report["tasks"]} if card.report else {}
    first: dict[str, int] = {}
    for i in sorted(card.shown):
        first.setdefault(families[card.shown[i].task], i)
    names, heads_fn = dict(enumerate(class_names)), next(iter(model.heads_fns.values()))
    examples: list[Example] = []
    for i in list(first.values())[:limit]:
        x_adv, label = card.shown[i].pixels(split.images[i : i + 1][0]), int(split.labels[i])
        predicted = int(tf.argmax(heads_fn(tf.constant(x_adv[None]))[0, 0]))
        title = f"image {i}, {names[label]} taken for {names.get(predicted, predicted)}, {card.shown[i].task}"
        examples.append({"title": title, "image": to_float(split.images[i : i + 1])[0].numpy(), "x_adv": x_adv})
    return examples
