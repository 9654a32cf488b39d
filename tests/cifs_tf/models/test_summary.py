"""The summary: what each cut is, what it costs, and what is not counted."""

import keras
import pytest

from cifs_tf.layers import CAS, CIFS
from cifs_tf.models import Classifier, resnet, summary_rows
from cifs_tf.models.flops import count_flops, selection_flops


@pytest.fixture(scope="module")
def classifier():
    """8x8 images, width 4: stage 4 has 32 channels at 1x1, stage 3 16 channels at 2x2."""
    backbone = resnet("resnet10", (8, 8, 3), 5, width=4)
    return Classifier(backbone, {"stage3_block1_relu1": CIFS("mlp"), "stage4_block1_out": CAS()})


def test_rows_by_hand(classifier):
    """MLP probe on 16 channels: 16*128 + 128 + 128*5 + 5 = 2,821 parameters, 16*128 + 128*5 = 2,688 products.

    Extra: twice 2*2,688 (the probe and its gradient), 2*2*16 sums and as many products (2x2 positions): 10,880. Linear
    probe on 32: 32*5 + 5 = 165 parameters, 2*2*160 + 2*32 = 704.
    """
    first, second = summary_rows(classifier)
    assert {key: first[key] for key in ("cut", "only_path", "selection", "probe", "shape", "parameters", "flops")} == {
        "cut": "stage3_block1_relu1",
        "only_path": False,
        "selection": "CIFS",
        "probe": "MLPProbe",
        "shape": (2, 2, 16),
        "parameters": 2_821,
        "flops": 10_880,
    }
    assert (second["only_path"], second["selection"], second["probe"]) == (True, "CAS", "LinearProbe")
    assert (second["shape"], second["parameters"], second["flops"]) == ((1, 1, 32), 165, 704)


def test_share_is_of_the_backbone_alone(classifier):
    backbone = count_flops(Classifier(classifier.backbone)).forward
    for row in summary_rows(classifier):
        assert row["share"] == row["flops"] / backbone


def test_summary_shows_keras_table_then_the_cuts(classifier):
    parts = []
    classifier.summary(print_fn=parts.append)
    assert 'Model: "classifier' in parts[0]
    table = parts[-1]
    for word in ("stage3_block1_relu1", "one of several paths", "2 x 2 x 16", "2,821", "10,880", "all paths", "704"):
        assert word in table
    assert f"{classifier.backbone.count_params():,} parameters" in table


def test_summary_prints(classifier, capsys):
    classifier.summary(80, expand_nested=True)
    printed = capsys.readouterr().out
    assert "stage4_block1_conv2" in printed, "expand_nested shows the backbone's layers"
    assert printed.index("Total params") < printed.index("one of several paths")


def test_vanilla(capsys):
    vanilla = Classifier(resnet("resnet10", (8, 8, 3), 5, width=1))
    assert summary_rows(vanilla) == []
    vanilla.summary()
    assert "No cuts" in capsys.readouterr().out


def test_unknown_size_and_layers_that_are_not_counted():
    """Attention has kernels that are not counted, and says so; of images of any size no operations are known."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(image)
    x = keras.layers.Reshape((-1, 4))(x)
    x = keras.layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    logits = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(x))
    classifier = Classifier(keras.Model(image, logits), {"conv": CIFS()})
    assert count_flops(classifier).left_out == ("conv", "attention")
    (row,) = summary_rows(classifier)
    assert (row["shape"], row["flops"], row["share"]) == ((None, None, 4), None, None)
    parts = []
    classifier.summary(print_fn=parts.append)
    assert "Without the FLOPs of conv, attention" in parts[-1]
    assert "unknown" in parts[-1]


def test_docstrings_number():
    """ResNet-18 at its last cut: 4*4*512 sums and products, 512*10 products twice: 2*(8,192 + 10,240) = 36,864."""
    selection = CIFS(num_classes=10)
    selection.build((None, 4, 4, 512))
    assert selection_flops(selection, (None, 4, 4, 512)) == 36_864
