"""Every setting of a training run: one frozen, range-checked object, and where each value is from.

`resolve` layers the sources from left to right: defaults, the system's own, the profile's widths,
then what the user gave (flagfile, command line). Only entry points know about flags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfjoint.errors import UserError

BACKGROUNDS = ("black", "white", "random")
PRECISIONS = ("float32", "mixed_bfloat16")
OPTIMIZERS = ("adam", "adamw", "lamb")

DOWNSAMPLING = 16
"""Pixels of an image per code position of the codec, in each direction."""
RAW_BITS = 24
"""Bits of a raw pixel."""
FLOAT_BITS = 32
"""Bits of a code value without binarizer."""
MOST_COUNTED = 255
"""Views of an object, or iterations: a .tfj file has a byte for the number of each."""

CODECS = ("small_a", "small_b", "original")
UNPOOLINGS = ("nearest", "zeros")

# The settings that each part of a system reads; the others have no effect on a system without it.
_CODEC = frozenset({
    "codec", "recompute", "iterations_min", "iterations_max", "binarizer", "gamma",
    "code_channels", "encoder_channels", "decoder_channels",
})  # fmt: skip
_IMAGE_ENCODER = frozenset({"feature_channels", "pool_padding"})
_GRID = frozenset({
    "grid_size", "grid_channels", "voxel_channels", "shared_bias", "output_gate", "unpooling",
})  # fmt: skip
_RECONSTRUCTION = _IMAGE_ENCODER | _GRID | {"features"}

USES: dict[str, frozenset[str]] = {
    "compression": _CODEC,
    "reconstruction": _RECONSTRUCTION,
    "jpeg2000": _RECONSTRUCTION | {"rates"},
    "separate": (_CODEC | _RECONSTRUCTION | {"codec_run"}) - {"recompute"},
    "sequential": _CODEC | _RECONSTRUCTION | {"loss_weight", "original_views_steps"},
    "direct": _CODEC | _GRID | {"loss_weight"},
    "implicit": _IMAGE_ENCODER | _GRID | {"binarizer", "code_bits"},
}
"""By system: which of the settings that not all systems share it uses."""
_PARTIAL = frozenset().union(*USES.values())

# What the public code trains its 3D networks with; the codec's rate is the default.
_RATE_3D = {"learning_rate": 1e-4}
MODELS: dict[str, dict[str, Any]] = {
    **{name: {} for name in USES},
    **{name: _RATE_3D for name in ("reconstruction", "jpeg2000", "separate", "implicit")},
}
"""By system: its defaults where they differ."""

# The widths of every network; a profile changes numbers only, never the topology.
PROFILES: dict[str, dict[str, Any]] = {
    "paper": {
        "image_size": 128,
        "feature_channels": (96, 128, 256, 256, 256, 256),
        "features": 1024,
        "code_bits": 1024,
        "grid_channels": 128,
        "voxel_channels": (128, 128, 64, 32),
    },
    "mini": {
        "image_size": 64,
        "feature_channels": (32, 64, 96, 128, 64),
        "features": 256,
        "code_bits": 256,
        "grid_channels": 48,
        "voxel_channels": (48, 32, 24, 16),
    },
    "smoke": {
        "image_size": 32,
        "feature_channels": (8, 16, 16, 16),
        "features": 64,
        "code_bits": 64,
        "grid_channels": 8,
        "voxel_channels": (8, 8, 8, 8),
    },
}

# The widths of the codec, by variant and profile.
_CODEC_FIELDS = ("code_channels", "encoder_channels", "decoder_channels")
CODEC_WIDTHS: dict[tuple[str, str], dict[str, Any]] = {
    key: dict(zip(_CODEC_FIELDS, widths))
    for key, widths in {
        ("small_a", "paper"): (16, (64, 256, 512), (256, 256, 128, 64)),
        ("small_a", "mini"): (16, (16, 48, 96), (64, 64, 32, 16)),
        ("small_a", "smoke"): (16, (8, 16, 16), (16, 16, 16, 8)),
        ("small_b", "paper"): (16, (64, 256, 512), (256, 256, 256, 128)),
        ("small_b", "mini"): (16, (16, 48, 96), (64, 64, 64, 32)),
        ("small_b", "smoke"): (16, (8, 16, 16), (16, 16, 16, 8)),
        ("original", "paper"): (32, (64, 256, 512, 512), (512, 512, 512, 256, 128)),
        ("original", "mini"): (32, (16, 48, 96, 96), (96, 96, 96, 64, 32)),
        ("original", "smoke"): (32, (8, 16, 16, 16), (16, 16, 16, 16, 8)),
    }.items()
}


class ConfigError(UserError):
    """A setting that is unknown, of the wrong type, or out of range."""


def _setting(default: Any, text: str, *, low: float | None = None, high: float | None = None,
             choices: tuple[str, ...] = (), free: bool = False, item: type | None = None
             ) -> Any:  # fmt: skip
    # `item` is the type of a tuple's items where the default has none.
    limits = {
        "help": text, "low": low, "high": high, "choices": choices, "free": free,
        "type": item or type(default[0] if isinstance(default, tuple) else default),
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=limits)


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one training run. A `free` one may change when a run is resumed."""

    model: str = _setting("direct", "system to train", choices=tuple(USES))
    profile: str = _setting("paper", "set of network widths", choices=tuple(PROFILES))
    data: str = _setting("demo", 'record directory, or "demo" for the embedded set', free=True)
    run_dir: str = _setting("", 'output directory; "" is runs/<model>', free=True)

    seed: int = _setting(0, "of weights, order, views, iterations and binarizer", low=0,
                         high=2**31 - 1)  # fmt: skip
    epochs: int = _setting(20, "passes over the training objects", low=1, free=True)
    steps: int = _setting(0, "minibatches to train; 0 takes them from epochs", low=0, free=True)
    batch_size: int = _setting(6, "objects per minibatch, over all replicas", low=1)
    views_min: int = _setting(1, "least views per object, drawn per minibatch", low=1)
    views_max: int = _setting(5, "most views per object", low=1)
    iterations_min: int = _setting(1, "least compression iterations, per minibatch", low=1)
    iterations_max: int = _setting(8, "most compression iterations", low=1, high=64)
    rates: tuple[float, ...] = _setting(
        (), "JPEG 2000 rates to draw from, one per minibatch; none is all that the data has",
        low=1.0, item=float,
    )  # fmt: skip
    background: str = _setting("black", "colour behind the object", choices=BACKGROUNDS)
    photos: str = _setting("", "folder of photos to put behind the objects, instead of a colour")

    loss_weight: float = _setting(1.0, "weight of L_3D beside L_comp (Eq. 16)", low=0.0)
    original_views_steps: int = _setting(
        0, "first minibatches, in which the grid is shown the original views", low=0
    )
    optimizer: str = _setting("adam", "optimizer", choices=OPTIMIZERS)
    learning_rate: float = _setting(
        5e-4, "learning rate at the start; 1e-4 where only a 3D network learns", low=1e-8, high=1.0
    )
    halve_at_epochs: tuple[int, ...] = _setting(
        (3, 10, 20, 50), "epochs at which the learning rate is halved", low=1
    )
    precision: str = _setting("float32", "arithmetic of the networks", choices=PRECISIONS)
    deterministic: bool = _setting(True, "same seed, same machine: bit-identical weights")
    recompute: bool = _setting(
        False, "compute a codec iteration again in the backward pass: less memory, more time",
        free=True,
    )  # fmt: skip

    image_size: int = _setting(128, "side of the square images in pixels", low=16)
    binarizer: bool = _setting(True, "codes are bits; without it 32-bit floats (12:1 and 6:1)")
    codec: str = _setting("small_a", "compression network", choices=CODECS)
    codec_run: str = _setting(
        "runs/compression", "compression run whose trained codec the separate model uses, frozen"
    )
    code_channels: int = _setting(16, "M: values per 16x16 pixels and iteration", low=1)
    encoder_channels: tuple[int, ...] = _setting(
        (64, 256, 512), "compression encoder: convolution, then RNNs", low=1
    )
    decoder_channels: tuple[int, ...] = _setting(
        (256, 256, 128, 64), "compression decoder: 1x1 convolution, then RNNs", low=4
    )
    gamma: float = _setting(1.0, "1: iterations add up; 0: one-shot", low=0.0, high=1.0)
    feature_channels: tuple[int, ...] = _setting(
        (96, 128, 256, 256, 256, 256), "3D image encoder: its convolutions", low=1
    )
    features: int = _setting(1024, "values per view that the 3D image encoder hands on", low=1)
    code_bits: int = _setting(1024, "K: values of the implicit model's code per view", low=4)
    pool_padding: bool = _setting(False, "pad the image encoder's poolings (Choy)")
    grid_size: int = _setting(4, "side of the LSTM grid in cells", low=1)
    grid_channels: int = _setting(128, "channels per cell of the LSTM grid", low=1)
    shared_bias: bool = _setting(False, "all cells of the grid share one bias per gate (Choy)")
    output_gate: bool = _setting(False, "give the grid an output gate (paper, Eqs. 5 and 8)")
    voxel_channels: tuple[int, ...] = _setting(
        (128, 128, 64, 32), "voxel decoder: its four hidden convolutions", low=1
    )
    unpooling: str = _setting(
        "nearest", "upsampling of the voxel decoder; zeros is Choy's", choices=UNPOOLINGS
    )

    log_every: int = _setting(20, "steps between progress lines", low=1, free=True)
    checkpoint_every: int = _setting(200, "steps between checkpoints", low=1, free=True)
    picture_every: int = _setting(500, "steps between TensorBoard pictures", low=1, free=True)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        for low, high in (("views_min", "views_max"), ("iterations_min", "iterations_max")):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f"{low}={getattr(self, low)} is above {high}={getattr(self, high)}: "
                    f"raise {high} or lower {low}"
                )
        self._check_widths()
        if list(self.halve_at_epochs) != sorted(set(self.halve_at_epochs)):
            raise ConfigError(
                f"halve_at_epochs must ascend. Received: {_show(self.halve_at_epochs)}"
            )

    def _check_widths(self) -> None:
        rnns = {"small_a": (3, 4), "small_b": (3, 4), "original": (4, 5)}[self.codec]
        lengths = {"encoder_channels": rnns[0], "decoder_channels": rnns[1], "voxel_channels": 4}
        for name, length in lengths.items():
            if self.uses(name) and len(getattr(self, name)) != length:
                raise ConfigError(f"{name} needs {length} numbers. Received: {getattr(self, name)}")
        if self.uses("codec") and self.image_size % DOWNSAMPLING:
            raise ConfigError(f"image_size must be a multiple of 16. Received: {self.image_size}")
        if self.uses("codec") and any(channels % 4 for channels in self.decoder_channels):
            raise ConfigError(
                "decoder_channels must be multiples of 4, depth-to-space needs them. "
                f"Received: {self.decoder_channels}"
            )
        if self.uses("feature_channels") and not self.feature_channels:
            raise ConfigError("feature_channels needs at least 1 number. Received: ()")
        halvings = 2 ** len(self.feature_channels)
        if self.uses("pool_padding") and not self.pool_padding and self.image_size % halvings:
            raise ConfigError(
                f"image_size must be a multiple of {halvings}, as feature_channels asks for "
                f"{len(self.feature_channels)} poolings. Received: {self.image_size}; use another "
                "size, other feature_channels, or pool_padding"
            )
        if self.uses("code_bits") and self.code_bits % 4:
            raise ConfigError(f"code_bits must be a multiple of 4. Received: {self.code_bits}")

    def uses(self, name: str) -> bool:
        """Return whether the setting `name` has an effect on the config's system."""
        return name not in _PARTIAL or name in USES[self.model]

    @property
    def code_size(self) -> int:
        """Values per view and iteration; of the implicit model, per view (K). 0: no code."""
        if self.uses("code_bits"):
            return self.code_bits
        return self.uses("codec") * (self.image_size // DOWNSAMPLING) ** 2 * self.code_channels

    def bits_per_view(self, iterations: int = 1) -> int:
        """Return the nominal size of a view's code; a float counts 32 bits (Sec. IV-C)."""
        return iterations * self.code_size * (1 if self.binarizer else FLOAT_BITS)

    def rate(self, iterations: int = 1) -> float:
        """Return raw bits over code bits of a view (Eq. 12)."""
        return RAW_BITS * self.image_size**2 / self.bits_per_view(iterations)

    @property
    def voxel_size(self) -> int:
        """Side D of the occupancy grid: the voxel decoder doubles the LSTM grid three times."""
        return 8 * self.grid_size

    @property
    def run_directory(self) -> str:
        """Where the run's files go: `run_dir`, or runs/<model>."""
        return self.run_dir or f"runs/{self.model}"

    def to_json(self) -> dict[str, Any]:
        """Return all settings as JSON values; `from_json` inverts it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Config:
        """Return the config that `to_json` described. Raises `ConfigError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)


def resolve(
    given: Mapping[str, Any], origins: Mapping[str, str] | None = None
) -> tuple[Config, dict[str, str]]:
    """Return the config of the `given` values and the origin of every value.

    Args:
      given: settings by name; the rest comes from the profile, then from the defaults.
      origins: where each given value is from; "given" where it is not said.

    Raises:
      ConfigError: a name is unknown, or a value is of the wrong type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if unknown := set(given) - set(fields):
        raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
    names = {name: given.get(name, fields[name].default) for name in ("model", "profile", "codec")}
    for name, value in names.items():
        _check(fields[name], value)
    model, profile, codec = names.values()
    layers = {
        f"model {model}": MODELS[model],
        f"profile {profile}": {**PROFILES[profile], **CODEC_WIDTHS[codec, profile]},
    }
    values: dict[str, Any] = {}
    origin_of = {name: "default" for name in fields}
    for origin, layer in layers.items():
        values |= layer
        origin_of |= {name: origin for name in layer}
    origin_of |= {name: (origins or {}).get(name, "given") for name in given}
    config = Config(**{**values, **given})
    for name, value in given.items():
        if not config.uses(name):
            raise ConfigError(
                f"{name}={_show(value)} ({origin_of[name]}) has no effect on model {model}: "
                "leave it out"
            )
    if "epochs" in given and config.steps:
        raise ConfigError(
            f"epochs={config.epochs} ({origin_of['epochs']}) has no effect beside "
            f"steps={config.steps} ({origin_of['steps']}): give one of them, --steps=0 for epochs"
        )
    if "background" in given and config.photos:
        raise ConfigError(
            f"background={config.background} ({origin_of['background']}) has no effect beside "
            f"photos={config.photos} ({origin_of['photos']}): give one of them"
        )
    return config, origin_of


def describe(config: Config, origins: Mapping[str, str]) -> str:
    """Return the table `name  value  origin`, one line per setting that has an effect."""
    rows = [
        (name, _show(value), origins[name])
        for name, value in config.to_json().items()
        if config.uses(name)
    ]
    name_width, value_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"  {n:<{name_width}}  {v:<{value_width}}  {o}" for n, v, o in rows)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return "name: old -> new" for every setting that a resumed run must not change but did.

    A setting that one of them lacks is of a later revision, and had its default.
    """
    defaults = Config().to_json()
    old, new = {**defaults, **old}, {**defaults, **new}
    free = {field.name for field in dataclasses.fields(Config) if field.metadata["free"]}
    names = [name for name in {**old, **new} if name not in free]
    return [
        f"{name}: {_show(old.get(name))} -> {_show(new.get(name))}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _check(field: dataclasses.Field, value: Any) -> None:
    values = value if isinstance(field.default, tuple) else (value,)
    wanted = field.metadata["type"]
    if isinstance(field.default, tuple) and not isinstance(value, tuple):
        raise ConfigError(f"{field.name} must be a tuple of {wanted.__name__}. Received: {value!r}")
    for item in values:
        fits = type(item) is wanted or (wanted is float and type(item) is int)
        if not fits:
            raise ConfigError(f"{field.name} must be {wanted.__name__}. Received: {item!r}")
        low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
        if choices and item not in choices:
            raise ConfigError(
                f"{field.name} must be one of {', '.join(choices)}. Received: {item!r}"
            )
        # Written so that NaN fails too.
        if (low is not None and not item >= low) or (high is not None and not item <= high):
            bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
            raise ConfigError(f"{field.name} must be {bounds}. Received: {item!r}")
        if wanted is float and item == float("inf"):
            raise ConfigError(f"{field.name} must be finite. Received: {item!r}")


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
