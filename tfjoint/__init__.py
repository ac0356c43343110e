"""tfjoint: task-driven image compression for 3D reconstruction."""

__version__ = "0.1.0"
