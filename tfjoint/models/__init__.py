"""One file per system of the paper; `MODELS` maps the value of `--model` to its class."""

from tfjoint.models.compression import Compression
from tfjoint.models.direct import Direct, DirectOutput
from tfjoint.models.voxel_decoder import VoxelDecoder

MODELS = {"direct": Direct}

__all__ = ["MODELS", "Compression", "Direct", "DirectOutput", "VoxelDecoder"]
