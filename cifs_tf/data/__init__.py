"""Sources of images: named datasets, TFDS, folders; splits in memory and their batches."""

from cifs_tf.data.dataset import ImageDataset, load_dataset
from cifs_tf.data.split import Split, to_float

__all__ = ["ImageDataset", "Split", "load_dataset", "to_float"]
