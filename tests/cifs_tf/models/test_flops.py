import keras
import pytest

from cifs_tf.config import ModelConfig
from cifs_tf.models import Classifier, build_classifier
from cifs_tf.models.flops import Flops, count_flops


def build(defense, **config):
    return build_classifier(ModelConfig(defense=defense, **config), (32, 32, 3), 10)


def test_resnet18_by_hand():
    """Multiply-accumulates of ResNet-18, width 64, on 32x32 images, positions * kernel * inputs * outputs.

    stem      32*32 * 9*3*64                                                             =   1,769,472
    stage 1   4 * 32*32 * 9*64*64                                                        = 150,994,944
    stage 2   16*16 * (9*64*128 + 3 * 9*128*128 + 64*128): first, three more, shortcut   = 134,217,728
    stage 3   8*8 * (9*128*256 + 3 * 9*256*256 + 128*256)                                = 134,217,728
    stage 4   4*4 * (9*256*512 + 3 * 9*512*512 + 256*512)                                = 134,217,728
    logits    512*10                                                                     =       5,120
    sum                                                                                  = 555,422,720
    """
    flops = count_flops(build("vanilla", arch="resnet18"))
    assert flops == Flops(forward=2 * 555_422_720, first_layer=2 * 1_769_472)


def test_training_step_of_resnet18_batch_64():
    """PGD-10 and the update: 64 * ((2*10 + 3) * 1,110,845,440 - 3,538,944) = 1.6349... TFLOP."""
    step = 64 * count_flops(build("vanilla", arch="resnet18")).training_step(num_steps=10)
    assert step == 64 * (23 * 1_110_845_440 - 3_538_944)
    assert round(step / 1e12, 2) == 1.63


def test_attack_update_and_evaluation_by_hand():
    """F = 100, of which 10 in the first layer; 3 steps: 2*3*100; update: 3*100 - 10; prediction: 100."""
    flops = Flops(forward=100, first_layer=10)
    assert flops.attack(3) == 600
    assert flops.update() == 290
    assert flops.training_step(3) == 890
    assert flops.evaluation(3) == 700


def test_probes_add_their_dense_layers():
    """P2 reads 512 channels with an MLP (512*128 + 128*10), P1 with a linear probe (512*10): 71,936 more."""
    vanilla = count_flops(build("vanilla", arch="resnet18"))
    cifs = count_flops(build("cifs", arch="resnet18"))
    assert cifs.forward - vanilla.forward == 2 * 71_936
    assert cifs.first_layer == vanilla.first_layer


def test_strides_and_groups():
    """8x8x4 images: conv 3x3, 6 filters, 2 groups, stride 2, 4*4 * 9*(4/2)*6 = 1,728; dense on 4*4*6, 96*10."""
    images = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(6, 3, strides=2, groups=2, padding="same")(images)
    backbone = keras.Model(images, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    assert count_flops(Classifier(backbone)) == Flops(forward=2 * (1_728 + 960), first_layer=2 * 1_728)


@pytest.mark.parametrize(
    ("layer", "shape", "products"),
    [
        (keras.layers.Conv1D(5, 3), (10, 2), 8 * 3 * 2 * 5),
        (keras.layers.Conv3D(5, 3), (4, 4, 4, 2), 2 * 2 * 2 * 27 * 2 * 5),
        (keras.layers.Conv2D(8, 1), (4, 4, 1), 4 * 4 * 8),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 4), 4 * 4 * 9 * 4 * 2),
        (keras.layers.DepthwiseConv1D(3), (6, 4), 4 * 3 * 4),
        (keras.layers.SeparableConv2D(7, 3), (6, 6, 4), 4 * 4 * (9 * 4 + 4 * 7)),
        (keras.layers.Conv2DTranspose(5, 2, strides=2), (3, 3, 4), 3 * 3 * 4 * 4 * 5),
        (keras.layers.Dense(5), (6, 6, 4), 36 * 4 * 5),
        (keras.layers.SpectralNormalization(keras.layers.Conv2D(5, 3)), (6, 6, 4), 16 * 9 * 4 * 5),
        (keras.Sequential([keras.layers.Conv2D(5, 3)]), (6, 6, 4), 16 * 9 * 4 * 5),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_layers_by_hand(layer, shape, products):
    """Output positions (of a transposed convolution input positions) times the elements of the kernels."""
    image = keras.Input(shape)
    features = layer(image)
    backbone = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(features)))
    head = 3 * backbone.layers[-2].output.shape[-1]
    assert count_flops(Classifier(backbone)) == Flops(forward=2 * (products + head), first_layer=2 * products)


def test_a_layer_that_is_used_twice_counts_twice():
    """8x8 then 8x8 positions of a 1x1 convolution on 3 channels, and a dense layer on 192."""
    shared = keras.layers.Conv2D(3, 1)
    image = keras.Input((8, 8, 3))
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(shared(shared(image))))
    assert count_flops(Classifier(keras.Model(image, logits))).forward == 2 * (2 * 64 * 9 + 192 * 2)
