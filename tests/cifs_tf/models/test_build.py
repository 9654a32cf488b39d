"""From a config to a classifier."""

import keras
import numpy as np
import pytest

from cifs_tf.config import ModelConfig
from cifs_tf.errors import UserError
from cifs_tf.layers import CAS, CIFS, LinearProbe, MLPProbe, get_importance, register_importance
from cifs_tf.models import build_classifier, default_cuts
from cifs_tf.models.build import make_importance, resolve_arch

SMALL = {"arch": "resnet10", "width": 4}


@register_importance("tests_build_absolute")
def absolute(relevance):
    return keras.ops.abs(relevance)


@pytest.mark.parametrize(
    ("arch", "cuts"),
    [
        ("resnet10", ("stage3_block1_out", "stage4_block1_out")),
        ("resnet18", ("stage4_block1_out", "stage4_block2_out")),
        ("resnet34", ("stage4_block2_out", "stage4_block3_out")),
        ("wrn28-10", ("stage3_block4_relu1", "final_out")),
        ("wrn34-10", ("stage3_block5_relu1", "final_out")),
    ],
)
def test_default_cuts_are_in_the_last_two_blocks(arch, cuts):
    assert default_cuts(arch) == cuts


@pytest.mark.parametrize(
    ("arch", "image_shape", "expected"),
    [
        ("auto", (32, 32, 3), "resnet18"),
        ("auto", (64, 48, 1), "resnet18"),
        ("auto", (28, 28, 1), "resnet10"),
        ("auto", (31, 64, 3), "resnet10"),
        ("wrn28-10", (8, 8, 1), "wrn28-10"),
    ],
)
def test_auto_looks_at_the_smaller_side(arch, image_shape, expected):
    assert resolve_arch(arch, image_shape) == expected


@pytest.mark.parametrize(
    ("image_shape", "num_classes", "config"),
    [
        ((8, 12, 3), 5, {}),
        ((13, 9, 1), 2, {}),
        ((12, 12, 1), 37, {"defense": "cas"}),
        ((10, 8, 1), 3, {"arch": "wrn28-10", "width": 1}),
    ],
)
def test_any_image_shape_and_class_count(image_shape, num_classes, config):
    classifier = build_classifier(ModelConfig(**{**SMALL, **config}), image_shape, num_classes)
    images = np.random.default_rng(0).random((2, *image_shape), np.float32)
    heads = classifier(images)
    assert heads.shape == (2, 3, num_classes)
    assert np.all(np.isfinite(heads))
    if classifier.name == "wrn28-10_cifs":
        # The official wide network's MLP probe has 240 hidden units.
        assert classifier.cuts["stage3_block4_relu1"].probe.hidden_units == 240


def test_defaults_are_the_papers():
    """An MLP probe of 128 units, then a linear one; top-2; softmax with T = 1; the mask detached (Section 4.1.1)."""
    classifier = build_classifier(ModelConfig(**SMALL), (8, 8, 3), 5)
    first, second = classifier.cuts.values()
    assert tuple(classifier.cuts) == default_cuts("resnet10")
    assert type(first) is type(second) is CIFS
    assert isinstance(first.probe, MLPProbe)
    assert first.probe.hidden_units == 128
    assert isinstance(second.probe, LinearProbe)
    assert {(cut.top_k, cut.importance, cut.mask_gradient) for cut in (first, second)} == {
        (2, get_importance("softmax"), "detached")
    }


def test_config_reaches_the_layers():
    config = ModelConfig(
        **SMALL,
        cuts=("stage1_block1_out", "stage2_block1_out", "stage4_block1_out"),
        probes=("linear", "mlp", "linear"),
        top_k=3,
        importance="softplus",
        alpha=2.0,
        mask_gradient="full",
    )
    classifier = build_classifier(config, (8, 8, 3), 5)
    assert tuple(classifier.cuts) == config.cuts
    assert [type(cut.probe) for cut in classifier.cuts.values()] == [LinearProbe, MLPProbe, LinearProbe]
    for cut in classifier.cuts.values():
        assert (cut.top_k, cut.mask_gradient) == (3, "full")
        assert cut.importance == get_importance("softplus", alpha=2.0)


@pytest.mark.parametrize("defense", ["cifs", "cas"])
def test_options_of_the_mask_reach_the_layers(defense):
    """Each cut has a permutation of its own: the seed of the first is the config's."""
    config = ModelConfig(**SMALL, defense=defense, label_in_mask=False, mask_permutation=7)
    cuts = build_classifier(config, (8, 8, 3), 5).cuts.values()
    assert [(cut.label_in_mask, cut.mask_permutation) for cut in cuts] == [(False, 7), (False, 8)]


@pytest.mark.parametrize(("defense", "kind", "count"), [("cas", CAS, 2), ("cifs", CIFS, 2), ("vanilla", None, 0)])
def test_defense(defense, kind, count):
    classifier = build_classifier(ModelConfig(**SMALL, defense=defense), (8, 8, 3), 5)
    assert [type(cut) for cut in classifier.cuts.values()] == [kind] * count
    assert classifier.name == f"resnet10_{defense}"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, get_importance("softmax")),
        (
            {"temperature": 0.5, "importance_scale": "mean_one"},
            get_importance("softmax", temperature=0.5, scale="mean_one"),
        ),
        ({"importance": "constant"}, get_importance("constant")),
        ({"importance": "constant", "importance_scale": "mean_one"}, get_importance("constant", scale="mean_one")),
        ({"importance": "softplus"}, get_importance("softplus", alpha=5.0)),
        ({"importance": "sigmoid"}, get_importance("sigmoid", alpha=10.0)),
        ({"importance": "sigmoid", "alpha": 1.0}, get_importance("sigmoid", alpha=1.0)),
        ({"importance": "tests_build_absolute"}, absolute),
    ],
)
def test_importance_of_a_config(config, expected):
    assert make_importance(ModelConfig(**config)) == expected


@pytest.mark.parametrize("precision", ["float32", "float64", "mixed_bfloat16"])
def test_precision_is_the_classifiers_own(precision):
    """Another policy while building, the old one behind it; probes and logits keep full precision."""
    classifier = build_classifier(ModelConfig(**SMALL), (8, 8, 3), 5, precision)
    assert classifier.dtype_policy.name == precision
    assert keras.config.dtype_policy().name == "float32"
    full = "float64" if precision == "float64" else "float32"
    assert classifier.backbone.get_layer("logits").compute_dtype == full
    assert {cut.probe.compute_dtype for cut in classifier.cuts.values()} == {full}
    assert classifier(np.zeros((2, 8, 8, 3), np.float32)).dtype == full


@pytest.mark.parametrize(
    ("config", "image_shape", "num_classes", "argument", "received"),
    [
        ({}, (7, 8, 3), 5, "image_size", r"\(7, 8\)"),
        ({}, (32, 4, 3), 5, "image_size", r"\(32, 4\)"),
        ({"probes": ("linear",)}, (8, 8, 3), 5, "probes", r"\['linear'\]"),
        ({"cuts": ("stage1_block1_out",)}, (8, 8, 3), 5, "probes", r"\['mlp', 'linear'\]"),
        ({"cuts": ("stage9_block1_out", "stage4_block1_out")}, (8, 8, 3), 5, "cuts", "stage9_block1_out"),
        ({"top_k": 6}, (8, 8, 3), 5, "top_k", 6),
        ({"importance": "no_such_importance"}, (8, 8, 3), 5, "importance", "no_such_importance"),
    ],
)
def test_errors_name_the_argument_and_the_value(config, image_shape, num_classes, argument, received):
    with pytest.raises(UserError, match=rf"^{argument}: received {received};"):
        build_classifier(ModelConfig(**{**SMALL, **config}), image_shape, num_classes, "float64")
    assert keras.config.dtype_policy().name == "float32", "the policy outlives the error"
