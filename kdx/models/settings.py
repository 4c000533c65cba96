"""The settings of the `student` group, and of the network in the `teacher` group: one schema per family."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from kdx.settings import Settings

# Names become folders.
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$")]
Count = Annotated[int, Field(ge=1)]
DropoutRate = Annotated[float, Field(ge=0, lt=1)]
Multiplier = Annotated[float, Field(gt=0)]
# As the Noisy paper writes them: C5@64 is a convolution with 64 filters of 5x5 and its ReLU, MP3 and AP3 pool the
# maximum or average of 3x3, D0.5 is dropout at rate 0.5.
LayerCode = Annotated[str, StringConstraints(pattern=r"^(C\d*[13579]@[1-9]\d*|[AM]P[23]|D0\.\d+)$")]


class NetworkSettings(Settings):
    """What all networks have; each family adds the sizes of its layers."""

    sized_by: ClassVar[str] = "blocks"
    """The field that decides how small images may be."""

    name: Name

    @property
    def smallest_side(self) -> int:
        """The side, in pixels, of the smallest square images that the network can see."""
        return 1


class PlainSettings(NetworkSettings):
    """A perceptron or Caffe's LeNet, by the widths of its layers (`channels` only where there are convolutions)."""

    sized_by = "channels"

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
        """Each 5x5 convolution without padding takes 4 pixels, each pooling half of the rest."""
        side = 1
        for _ in self.channels:
            side = 2 * side + 4
        return side


class ConvnetSettings(NetworkSettings):
    """A sequence of convolutions and poolings under a classifier: VGG, Network in Network, AlexNet, LeNets."""

    sized_by = "layers"

    family: Literal["convnet"]
    layers: list[LayerCode]
    # `linear`: fully connected layers with `hidden` units; `average`: one 1x1 convolution to the classes, averaged.
    head: Literal["linear", "average"]
    hidden: list[Count]
    hidden_dropout: DropoutRate
    # What is pooled to this side before the fully connected layers; null leaves it as it is.
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


class ResnetSettings(NetworkSettings):
    """ResNet as in torchvision: for each stage its number of blocks and the channels of its bottlenecks."""

    family: Literal["resnet"]
    stem: Count
    blocks: list[Count]
    channels: list[Count]

    @model_validator(mode="after")
    def _one_width_per_stage(self) -> Self:
        _as_many(self.blocks, self.channels)
        return self


class DensenetSettings(NetworkSettings):
    """DenseNet with bottlenecks, as in torchvision: the blocks' layers, each adding `growth` channels to `stem`."""

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
    """ResNet v2 of Keras' CIFAR-10 example: for each stage its number of blocks and of channels that come out."""

    family: Literal["keras-resnet"]
    stem: Count
    blocks: Annotated[list[Count], Field(min_length=1)]
    channels: list[Count]

    @model_validator(mode="after")
    def _one_width_per_stage(self) -> Self:
        _as_many(self.blocks, self.channels)
        return self


class KddpSettings(NetworkSettings):
    """KDDP's student SN_n: the channels of its convolutions, and n as its only hidden layer."""

    sized_by = "channels"

    family: Literal["kddp"]
    channels: Count
    hidden: Annotated[list[Count], Field(min_length=1)]

    @property
    def smallest_side(self) -> int:
        """7x7 with stride 2, 3x3 with stride 2, 2x2: one pixel is left of 9."""
        return 9


class RefinedSettings(NetworkSettings):
    """No network of its own: the teacher's, made smaller by a chain of runs."""

    family: Literal["refined"]


Network = PlainSettings | ConvnetSettings | ResnetSettings | DensenetSettings | KerasResnetSettings | KddpSettings


class Start(Settings):
    """The file of trained weights with which a student starts; null starts with fresh ones."""

    checkpoint: str | None


# The student's group is one level deep, as the teacher's is.
class _Plain(PlainSettings, Start): ...


class _Convnet(ConvnetSettings, Start): ...


class _Resnet(ResnetSettings, Start): ...


class _Densenet(DensenetSettings, Start): ...


class _KerasResnet(KerasResnetSettings, Start): ...


class _Kddp(KddpSettings, Start): ...


class _Refined(RefinedSettings, Start): ...


Student = Annotated[
    _Plain | _Convnet | _Resnet | _Densenet | _KerasResnet | _Kddp | _Refined, Field(discriminator="family")
]


def _as_many(blocks: Sequence[int], channels: Sequence[int]) -> None:
    if len(blocks) != len(channels):
        raise ValueError(f"blocks and channels need one number per stage; blocks is {blocks}, channels is {channels}")
