"""What the paper draws as one box; these modules need Keras and TensorFlow alone."""

from tfjoint.layers.binarizer import Binarizer, BinarizerNoise, binarize
from tfjoint.layers.conv_lstm import ConvLSTMCell, ConvLSTMState
from tfjoint.layers.convolution import Conv3D, convolve
from tfjoint.layers.grid_lstm import GridLSTM, GridState
from tfjoint.layers.recurrence import repeat
from tfjoint.layers.resampling import UpConv3D

__all__ = [
    "Binarizer",
    "BinarizerNoise",
    "Conv3D",
    "ConvLSTMCell",
    "ConvLSTMState",
    "GridLSTM",
    "GridState",
    "UpConv3D",
    "binarize",
    "convolve",
    "repeat",
]
