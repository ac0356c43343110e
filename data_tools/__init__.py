"""Makes records: from meshes over the 3D-R2N2 layout to sharded TFRecords, and nothing else."""
