"""The ground station's end of every system: a sequence of vectors becomes an occupancy grid."""

from __future__ import annotations

import tensorflow as tf

from tfjoint.config import Config
from tfjoint.layers import GridLSTM, GridState
from tfjoint.models.voxel_decoder import VoxelDecoder


class Volume(tf.keras.Model):
    """GridLSTM over the sequence, VoxelDecoder of its last state, as the config describes them."""

    def __init__(self, config: Config, **kwargs) -> None:
        super().__init__(autocast=False, **kwargs)
        self.grid = GridLSTM(
            config.grid_size, config.grid_channels, config.output_gate, config.shared_bias
        )
        self.voxel_decoder = VoxelDecoder(config.voxel_channels, config.unpooling)

    def build(self, input_shape) -> None:
        """Make all weights for sequences [B, S, input_shape[-1]]."""
        self.grid.build((None, None, input_shape[-1]))
        self.voxel_decoder.build((None, None, None, None, self.grid.channels))
        self.built = True

    def call(self, sequence: tf.Tensor) -> tf.Tensor:
        """Return occupancy logits [B, D, D, D] of a sequence [B, S, K]."""
        return self.voxel_decoder(self.grid(tf.cast(sequence, self.compute_dtype)))

    def refine(self, sequence: tf.Tensor, state: GridState) -> tuple[tf.Tensor, GridState]:
        """Return what `call` would of the whole sequence up to here, and the state, after a part.

        Args:
          sequence: [B, S, K], S at least 1.
          state: before this part, float32; zeros before the first.

        Returns:
          occupancy logits [B, D, D, D], and the state after this part, float32.
        """
        state = GridState(*(tf.cast(part, self.compute_dtype) for part in state))
        state = self.grid.advance(tf.cast(sequence, self.compute_dtype), state)
        logits = self.voxel_decoder(state.hidden)
        return logits, GridState(*(tf.cast(part, tf.float32) for part in state))
