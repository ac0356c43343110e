"""Where a run computes: on one device, on all GPUs of a machine, on several machines.

Several machines are told of each other by TF_CONFIG. One worker, the chief, writes all files. When
a worker dies the others end too, and all are started again: they resume from the checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfjoint.config import Config, ConfigError
from tfjoint.errors import UserError

# What a collective operation raises when a process on its other side is gone.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


class WorkerError(UserError):
    """A worker is lost, cannot be joined, or does something else than the others."""


def select_strategy() -> tf.distribute.Strategy:
    """Return the strategy for what there is: machines of TF_CONFIG, GPUs, or one device.

    Raises:
      ConfigError: TF_CONFIG does not describe a cluster.
      WorkerError: its workers cannot be joined.
    """
    if _processes(os.environ.get("TF_CONFIG") or "{}") > 1:
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.OpError, RuntimeError) as error:
            raise WorkerError(
                f"the workers of TF_CONFIG cannot be joined ({_reason(error)}): every host "
                "must be reachable and every port free"
            ) from error
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process writes the run's files: one of all workers does."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    return resolver.task_type == "chief" or (
        resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs
    )


@contextlib.contextmanager
def all_needed(strategy: tf.distribute.Strategy, run: Path) -> Iterator[None]:
    """Turn what TensorFlow raises when another worker is gone into a `WorkerError`."""
    try:
        yield
    except _LOST as error:
        if not _several(strategy):
            raise
        raise WorkerError(
            f"a worker was lost ({_reason(error)}): start all workers again with the same "
            f"command; they resume from the newest checkpoint in {run}"
        ) from error


def require_agreement(
    strategy: tf.distribute.Strategy, config: Config, data_sha256: str, step: int
) -> None:
    """Raise `WorkerError` unless all workers go on from the same step with the same settings."""
    if not _several(strategy):
        return
    settings = {**config.to_json(), "data_sha256": data_sha256}
    for own in ("data", "run_dir"):  # a directory may have another name on another machine
        settings.pop(own)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
    steps, digests = _gather(strategy, [step, int.from_bytes(digest[:4], "big")]).T.tolist()
    if len(set(digests)) > 1:
        raise WorkerError("the workers have different settings or data: give all the same flags")
    if len(set(steps)) > 1:
        raise WorkerError(
            f"the workers found checkpoints of different steps ({', '.join(map(str, steps))}): "
            "--run_dir must be one directory that all of them share"
        )


def wait_for_all(strategy: tf.distribute.Strategy, run: Path) -> None:
    """Return when all workers of `run` have come here; to the others, one that ends is lost.

    Raises `WorkerError`.
    """
    if _several(strategy):
        with all_needed(strategy, run):
            _gather(strategy, [0])


def _several(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _gather(strategy: tf.distribute.Strategy, values: list[int]) -> np.ndarray:
    """Return the `values` of every replica as [replicas, values]."""
    own = tf.function(lambda: strategy.run(lambda: tf.constant([values], tf.int64)))
    return strategy.gather(own(), axis=0).numpy()


def _processes(tf_config: str) -> int:
    """Return the number of processes in TF_CONFIG's cluster."""
    try:
        description = json.loads(tf_config)
        cluster, task = description.get("cluster", {}), description.get("task", {})
        addresses = [address for job in cluster.values() for address in job]
        if not all(":" in address for address in addresses):
            raise ValueError("an address is not host:port")
        if len(addresses) > 1 and not 0 <= task["index"] < len(cluster[task["type"]]):
            raise ValueError(f"task {task} is not in the cluster")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"TF_CONFIG does not describe a cluster ({error!r}): "
            'it looks like {"cluster": {"worker": ["host:port", ...]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from error
    return len(addresses)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TensorFlow's sentence stands between a stack of the graph and the names of its nodes.
    said = [line for line in lines if line.startswith("Collective ops is aborted by")]
    return (said or lines or [type(error).__name__])[0][:200]
