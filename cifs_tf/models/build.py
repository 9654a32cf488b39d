"""From a `ModelConfig` to a classifier."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras

from cifs_tf.config import Arch, ModelConfig
from cifs_tf.errors import UserError
from cifs_tf.layers import CAS, CIFS, EWAS, FSR, MLPProbe, SqueezeExcitation, get_importance
from cifs_tf.models.classifier import Classifier
from cifs_tf.models.resnets import BLOCKS_PER_STAGE, resnet
from cifs_tf.models.saving import load_model
from cifs_tf.models.wide_resnets import DEPTH_AND_FACTOR, wide_resnet

MINIMUM_SIDE = 8
AUTO_DEEPER_FROM_SIDE = 32
# Defenses that fix their probe and importance.
OTHER_LAYERS = {"cas": CAS, "ewas": EWAS, "fsr": FSR, "se": SqueezeExcitation}
# The official wide network's MLP probe is wider than the ResNet's.
MLP_HIDDEN_UNITS = {**dict.fromkeys(BLOCKS_PER_STAGE, 128), **dict.fromkeys(DEPTH_AND_FACTOR, 240)}


def resolve_arch(arch: Arch, image_shape: tuple[int, int, int]) -> Arch:
    """Replace `"auto"` by the backbone for the image size: ResNet-18 from 32 pixels a side, ResNet-10 below."""
    if arch != "auto":
        return arch
    return "resnet18" if min(image_shape[:2]) >= AUTO_DEEPER_FROM_SIDE else "resnet10"


def default_cuts(arch: str) -> tuple[str, str]:
    """Return where the paper puts selection layers: P2 and P1, in the last two residual blocks.

    The ResNets are cut after a block's last ReLU. A pre-activation block ends in a sum, so the wide networks are cut,
    as in the official code, at the ReLU that opens the last block and at the one before the final pooling.

    Args:
        arch: name of a backbone.

    Returns:
        the two layer names, in the order of the network.

    Example:
        >>> default_cuts("resnet18")
        ('stage4_block1_out', 'stage4_block2_out')
    """
    if arch in DEPTH_AND_FACTOR:
        return f"stage3_block{(DEPTH_AND_FACTOR[arch][0] - 4) // 6}_relu1", "final_out"
    blocks = [
        f"stage{stage}_block{block}_out"
        for stage, num_blocks in enumerate(BLOCKS_PER_STAGE[arch], start=1)
        for block in range(1, num_blocks + 1)
    ]
    return blocks[-2], blocks[-1]


def build_classifier(
    config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int, precision: str = "float32"
) -> Classifier:
    """Build the network that a config describes, under a dtype policy of its own.

    Args:
        config: architecture and defense.
        image_shape: (height, width, channels), sides of at least 8 pixels.
        num_classes: number of classes, >= 2.
        precision: dtype policy, `"float32"` (default), `"mixed_bfloat16"` or `"float64"`.

    Returns:
        a `Classifier` with freshly initialised weights (seed them with `keras.utils.set_random_seed`).

    Raises:
        UserError: if images are too small, `top_k` exceeds the classes, or cuts and probes do not pair up.

    Example:
        >>> build_classifier(ModelConfig(arch="resnet10", width=16), (8, 8, 1), 10).num_probes
        2
    """
    if min(image_shape[:2]) < MINIMUM_SIDE:
        raise UserError("image_size", image_shape[:2], f"give images of at least {MINIMUM_SIDE} pixels a side")
    config = dataclasses.replace(config, arch=resolve_arch(config.arch, image_shape))
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        options: dict[str, Any] = {} if config.width is None else {"width": config.width}
        if config.arch in DEPTH_AND_FACTOR:
            if config.stem != "3x3":
                raise UserError("stem", config.stem, f"{config.arch} has but one; give 3x3, or a resnet")
            if config.activation != "relu":
                raise UserError("activation", config.activation, f"{config.arch} has but one; give relu, or a resnet")
            backbone = wide_resnet(config.arch, image_shape, num_classes, **options)
        else:
            options |= {"stem": config.stem, "activation": config.activation}
            backbone = resnet(config.arch, image_shape, num_classes, **options)
        return Classifier(backbone, _make_cuts(config, num_classes), name=f"{config.arch}_{config.defense}")
    finally:
        keras.config.set_dtype_policy(previous)


def _make_cuts(config: ModelConfig, num_classes: int) -> dict[str, keras.layers.Layer]:
    if config.defense == "vanilla":
        return {}
    names = default_cuts(config.arch) if config.cuts is None else config.cuts
    if not names:
        raise UserError("cuts", list(names), "name a layer at least, or leave selection out with the defense vanilla")
    if config.defense in OTHER_LAYERS:
        make = OTHER_LAYERS[config.defense]
        return {
            name: make(name=f"{config.defense}{index}", **_mask_options(config, index))
            for index, name in enumerate(names)
        }
    if len(config.probes) != len(names):
        raise UserError("probes", list(config.probes), f"give {len(names)}, one for each of the cuts {list(names)}")
    return {
        name: CIFS(
            probe=_make_probe(probe, config, num_classes),
            top_k=config.top_k,
            importance=make_importance(config),
            mask_gradient=config.mask_gradient,
            name=f"cifs{index}",
            **_mask_options(config, index),
        )
        for index, (name, probe) in enumerate(zip(names, config.probes, strict=True))
    }


def _mask_options(config: ModelConfig, index: int) -> dict[str, Any]:
    seed = config.mask_permutation
    # Layers of as many channels get different permutations: shortcuts would carry a common one from cut to cut.
    return {"label_in_mask": config.label_in_mask, "mask_permutation": None if seed is None else seed + index}


def _make_probe(probe: str, config: ModelConfig, num_classes: int):
    if probe != "mlp":
        return probe
    dtype = keras.config.dtype_policy().variable_dtype
    return MLPProbe(num_classes, MLP_HIDDEN_UNITS[config.arch], dtype=dtype, name="probe")


def make_importance(config: ModelConfig):
    """Return the importance function of a config, with those of its parameters that it has."""
    if config.importance == "softmax":
        return get_importance("softmax", temperature=config.temperature, scale=config.importance_scale)
    if config.importance == "constant":
        return get_importance("constant", scale=config.importance_scale)
    if config.importance in ("softplus", "sigmoid") and config.alpha is not None:
        return get_importance(config.importance, alpha=config.alpha)
    return get_importance(config.importance)


def load_classifier(file: Path, argument: str, received: Any) -> Classifier:
    """Load a classifier from a `.keras` file that this project wrote.

    Args:
        file: the file.
        argument: what errors name,
        received: and its value.

    Raises:
        UserError: if Keras cannot load it, or it is another model.
    """
    try:
        classifier = load_model(file, compile=False)
    except UserError as error:
        raise UserError(argument, received, f"{file}: {error.advice}") from error
    if not isinstance(classifier, Classifier):
        raise UserError(argument, received, f"{file} is no network of this project")
    return classifier
