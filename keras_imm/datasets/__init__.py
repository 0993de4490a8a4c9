"""Training data from every source, in one endless, repeatable stream of batches."""

from keras_imm.datasets.decoding import CorruptRecordError, center_crop
from keras_imm.datasets.fashion_mnist import FASHION_MNIST_CLASSES, fashion_mnist
from keras_imm.datasets.image_dataset import ImageDataset
from keras_imm.datasets.latent_shards import LatentShards
from keras_imm.datasets.loading import load

__all__ = [
    "FASHION_MNIST_CLASSES",
    "CorruptRecordError",
    "ImageDataset",
    "LatentShards",
    "center_crop",
    "fashion_mnist",
    "load",
]
