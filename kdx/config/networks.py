"""The settings of the `student` group and of the network in the `teacher` group: one class per architecture family."""

# Settings are frozen, which pyright does not see: a field may have a narrower type than in the base.
# pyright: reportIncompatibleVariableOverride=false

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, create_model, model_validator

from kdx.config.base import Count, DropoutRate, Name, Settings
from kdx.config.registry import Registry
from kdx.config.validation import settings_from
from kdx.errors import UserError

Multiplier = Annotated[float, Field(gt=0, le=100)]
# As the Noisy paper writes them: C5@64 is a convolution with 64 filters of 5x5 and its ReLU, MP3 and AP3 pool the
# maximum or average of 3x3, D0.5 is dropout at rate 0.5.
LayerCode = Annotated[str, StringConstraints(pattern=r"^(C\d*[13579]@[1-9]\d*|[AM]P[23]|D0\.\d+)$")]
Operator = Literal["filters", "growth", "planes", "blocks", "blocks_ceil"]
"""The refinement operators of IKD; `kdx.models.refine` describes each."""


class NetworkSettings(Settings):
    """The settings of all networks; each family's class adds the sizes of its layers.

    `family` is the name under which the registry has the class.
    """

    sized_by: ClassVar[str] = "blocks"
    """The field that decides how small images may be."""
    halved: ClassVar[Mapping[Operator, tuple[str, ...]]] = {}
    """The fields that each refinement halves; a refinement that is absent is not possible."""

    name: Name
    family: str

    @property
    def smallest_side(self) -> int:
        """The side, in pixels, of the smallest square images that the network accepts."""
        return 1

    def smallest_widths(self, fields: Sequence[str]) -> dict[str, float]:
        """The smallest width in each of these fields of `halved`; empty fields are left out."""
        values = {name: getattr(self, name) for name in fields}
        widths = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
        return {name: min(found) for name, found in widths.items() if found}

    def build(self, image_shape: tuple[int, int, int], classes: int) -> Any:
        """The `torch.nn.Sequential` of a package's family, with fresh weights; kdx's own are built by `kdx.models`.

        It maps images (batch, *image_shape) to logits (batch, classes).
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it is built")


_BLOCKS: Mapping[Operator, tuple[str, ...]] = {"blocks": ("blocks",), "blocks_ceil": ("blocks",)}


class PlainSettings(NetworkSettings):
    """A multilayer perceptron or Caffe's LeNet, by the widths of its layers (`channels` only for convolutions)."""

    sized_by = "channels"
    halved: ClassVar = {"filters": ("channels", "hidden")}

    family: Literal["mlp", "lenet"]
    hidden: list[Count]
    channels: list[Count]

    @model_validator(mode="after")
    def _channels_fit_family(self) -> Self:
        if (self.family == "lenet") != bool(self.channels):
            needs = "needs at least one number of channels" if self.family == "lenet" else "has no channels"
            raise ValueError(f"family {self.family} {needs}; channels is {self.channels}")
        return self

    @property
    def smallest_side(self) -> int:
        """Each unpadded 5x5 convolution takes off 4 pixels, each pooling halves the side."""
        side = 1
        for _ in self.channels:
            side = 2 * side + 4
        return side


class ConvnetSettings(NetworkSettings):
    """A sequence of convolutions and poolings and a classifier: VGG, Network in Network, AlexNet, LeNets."""

    sized_by = "layers"
    halved: ClassVar = {"filters": ("width",)}

    family: Literal["convnet"]
    layers: list[LayerCode]
    # `linear`: fully connected layers with `hidden` units; `average`: one 1x1 convolution to the classes, averaged.
    head: Literal["linear", "average"]
    hidden: list[Count]
    hidden_dropout: DropoutRate
    # Feature maps are pooled to this side before the fully connected layers; null means no pooling.
    spread: Count | None
    # Smaller images are padded with zeros to this side.
    pad_to: Count
    # Multiplies every width, rounded down.
    width: Multiplier

    @model_validator(mode="after")
    def _layers_fit_head(self) -> Self:
        if self.head == "average" and (self.hidden or self.spread):
            raise ValueError(
                f"head average has no hidden layers and nothing to spread;"
                f" hidden is {self.hidden}, spread is {self.spread}"
            )
        return self

    @property
    def smallest_side(self) -> int:
        """Poolings have stride 2 and round up."""
        windows = [int(code[2:]) for code in self.layers if code[1] == "P"]
        side = 1
        for window in reversed(windows):
            side = max(1, 2 * side + window - 3)
        return 1 if side <= self.pad_to else side

    def smallest_widths(self, fields: Sequence[str]) -> dict[str, float]:
        """The smallest widths of the layers, multiplied by `width`."""
        filters = [int(code.partition("@")[2]) for code in self.layers if code[0] == "C"]
        widths = {"layers": filters, "hidden": self.hidden}
        return {name: min(found) * self.width for name, found in widths.items() if found}


class ResnetSettings(NetworkSettings):
    """ResNet as in torchvision: for each stage its number of blocks and the channels of its bottlenecks."""

    halved: ClassVar = {"filters": ("stem", "channels"), "planes": ("channels",), **_BLOCKS}

    family: Literal["resnet"]
    stem: Count
    blocks: list[Count]
    channels: list[Count]

    @model_validator(mode="after")
    def _one_width_per_stage(self) -> Self:
        _as_many(self.blocks, self.channels)
        return self


class DensenetSettings(NetworkSettings):
    """DenseNet with bottlenecks, as in torchvision: `blocks` of layers, each adding `growth` channels to `stem`."""

    halved: ClassVar = {"filters": ("stem", "growth"), "growth": ("growth",), **_BLOCKS}

    family: Literal["densenet"]
    stem: Count
    growth: Count
    bottleneck: Count
    blocks: Annotated[list[Count], Field(min_length=1)]
    # Smaller images are padded with zeros to this side.
    pad_to: Count

    @property
    def smallest_side(self) -> int:
        """The stem quarters the side, rounding up; each transition between blocks halves it, rounding down."""
        side = 4 * (2 ** (len(self.blocks) - 1) - 1) + 1
        return 1 if side <= self.pad_to else side


class KerasResnetSettings(NetworkSettings):
    """ResNet v2 of Keras' CIFAR-10 example: for each stage its number of blocks and its output channels."""

    halved: ClassVar = {"filters": ("stem", "channels"), "planes": ("channels",), **_BLOCKS}

    family: Literal["keras-resnet"]
    stem: Count
    blocks: Annotated[list[Count], Field(min_length=1)]
    channels: list[Count]

    @model_validator(mode="after")
    def _one_width_per_stage(self) -> Self:
        _as_many(self.blocks, self.channels)
        return self


class KddpSettings(NetworkSettings):
    """KDDP's student SN_n: the channels of its convolutions, and n as the width of its only hidden layer."""

    sized_by = "channels"
    halved: ClassVar = {"filters": ("channels", "hidden")}

    family: Literal["kddp"]
    channels: Count
    hidden: Annotated[list[Count], Field(min_length=1)]

    @property
    def smallest_side(self) -> int:
        """Of 9 pixels the 7x7 and 3x3 stages of stride 2 and the 2x2 pooling leave one."""
        return 9


class RefinedSettings(NetworkSettings):
    """The student of a chain of runs: the teacher's network, made smaller from one generation to the next."""

    family: Literal["refined"]


MODELS: Registry[NetworkSettings] = Registry(
    "kdx.models",
    NetworkSettings,
    {
        "mlp": "kdx.config.networks:PlainSettings",
        "lenet": "kdx.config.networks:PlainSettings",
        "convnet": "kdx.config.networks:ConvnetSettings",
        "resnet": "kdx.config.networks:ResnetSettings",
        "densenet": "kdx.config.networks:DensenetSettings",
        "keras-resnet": "kdx.config.networks:KerasResnetSettings",
        "kddp": "kdx.config.networks:KddpSettings",
        "refined": "kdx.config.networks:RefinedSettings",
    },
)
"""The names allowed as `student.family` and `teacher.family`."""


class Student(NetworkSettings):
    """The student's network, and a `checkpoint` of trained weights to start from; null means random weights."""

    checkpoint: str | None = None


Role = TypeVar("Role", bound=NetworkSettings)


def network_of(content: Mapping[str, Any], role: type[Role], key: str) -> Role:
    """Settings with the fields of the family that `content` names and of `role`; `key` is where they stand.

    Raises UserError if they do not fit, and for a package's family whose fields clash with the role's.
    """
    if "family" not in content:
        raise UserError(f"{key}.family: no value is given")
    return settings_from(_in_role(MODELS.find(content["family"], f"{key}.family"), role), content, key)


# Cached, because settings of two classes are never equal, even if their fields are.
@cache
def _in_role(network: type[NetworkSettings], role: type[Role]) -> type[Role]:
    """A class with the fields of both, since the groups of the configuration are one level deep."""
    common = NetworkSettings.model_fields.keys()
    doubled = (network.model_fields.keys() & role.model_fields.keys()) - common
    if doubled:
        raise UserError(
            f"{network.__module__}.{network.__name__}: its field '{min(doubled)}' is one that kdx has for every"
            f" {role.__name__.lower()}; allowed: another name"
        )
    both: type[Any] = create_model(network.__name__, __base__=(network, role), __module__=network.__module__)
    return both


def _as_many(blocks: Sequence[int], channels: Sequence[int]) -> None:
    if len(blocks) != len(channels):
        raise ValueError(f"blocks and channels need one number per stage; blocks is {blocks}, channels is {channels}")
