"""Bayesian compression with the group normal-Jeffreys prior, which prunes whole inputs (Louizos et al. 2017)."""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx.config.ranges import Factor, LogAlpha, LogVariance
from kdx.methods.modifier import Context
from kdx.methods.variational import VARIANCE_FLOOR, kl_svd, log_dropout_rate
from kdx.methods.warm_up import WarmUp
from kdx.models.graph import zero_dead_neurons
from kdx.models.layers import NoisyLayer, without_dropout
from kdx.models.surgery import Geometry, replace_layers
from kdx.training.objective import LossInputs, Monitor, Term


def kl_standard_normal(mean: Tensor, log_sigma2: Tensor) -> Tensor:
    """KL(N(mean, exp(log_sigma2)) || N(0, 1)) of every number, in nats (Louizos et al. 2017, eq. 8)."""
    return 0.5 * (log_sigma2.exp() + mean.square() - log_sigma2 - 1)


class GroupLayer(NoisyLayer):
    """A layer that multiplies input i by z_i ~ N(z, exp(z_log_sigma2)), with normal weights and biases given z.

    Biases are uncertain too, unlike those of VS's variational layers.

    An input is a number of a linear layer and a channel of a convolution. z begins at exactly 1, so the layer first
    computes what the plain one did; the authors' public code draws it from N(1, 0.01^2) instead.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.Linear | nn.Conv2d, log_sigma2: float, variance_limit: float | None) -> None:
        super().__init__()
        self.inputs = plain.in_features if isinstance(plain, nn.Linear) else plain.in_channels
        self.weight, self.bias = plain.weight, plain.bias
        self.z = nn.Parameter(plain.weight.new_ones(self.inputs))
        self.z_log_sigma2 = nn.Parameter(torch.full_like(self.z, log_sigma2))
        self.weight_log_sigma2 = nn.Parameter(torch.full_like(plain.weight, log_sigma2))
        biases = None if plain.bias is None else nn.Parameter(torch.full_like(plain.bias, log_sigma2))
        self.bias_log_sigma2 = biases
        self.limit = None if variance_limit is None else log(variance_limit)

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean of the output; if noise is set, a sample of it, with z sampled for every example.

        This is local reparametrisation, applied twice: the output is normal given z (Louizos et al. 2017, sec. 4.1).
        """
        if self.noise is None:
            return self.linear(inputs * self.per_input(self.z), self.weight, self.bias)
        of_inputs, of_outputs = self.noise[:, : self.inputs], self.noise[:, self.inputs :]
        z = self.z + of_inputs * torch.exp(self.z_log_sigma2 / 2)
        scaled = inputs * self.per_input(z)
        mean = self.linear(scaled, self.weight, self.bias)
        of_bias = None if self.bias_log_sigma2 is None else self.bias_log_sigma2.exp()
        variance = self.linear(scaled.square(), self.limited(self.weight_log_sigma2).exp(), of_bias)
        return mean + of_outputs.reshape(mean.shape) * torch.sqrt(variance + VARIANCE_FLOOR)

    def new_noise(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """An empty buffer (batch, inputs + outputs): per example one number for each z, then one for each output."""
        numbers = self.inputs + outputs[0].numel()
        return torch.empty(len(outputs), numbers, dtype=torch.float32, device=outputs.device)

    def draw(self, noise: Tensor, generator) -> None:
        """Fill `noise` with standard normal numbers."""
        noise.normal_(generator=generator)

    def limited(self, weight_log_sigma2: Tensor) -> Tensor:
        """The log variances of the weights, clamped at the limit; a clamped one has no gradient and stays there."""
        return weight_log_sigma2 if self.limit is None else weight_log_sigma2.clamp(max=self.limit)

    def per_input(self, z: Tensor) -> Tensor:
        """z (inputs,) or (batch, inputs), reshaped to be multiplied with the layer's inputs."""
        raise TypeError(f"{type(self).__name__} does not say how its inputs lie")

    def per_weight(self, z: Tensor) -> Tensor:
        """z (inputs,), reshaped to be multiplied with the weights."""
        raise TypeError(f"{type(self).__name__} does not say how its weights lie")

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's linear map with the given weight and bias."""
        raise TypeError(f"{type(self).__name__} has no linear map")

    def empty(self) -> nn.Linear | nn.Conv2d:
        """A plain layer of the same shape on the meta device, without values."""
        raise TypeError(f"{type(self).__name__} has no plain layer")

    def kept(self, threshold: float) -> Tensor:
        """The mask (inputs,) of the inputs that survive: those whose log alpha is below `threshold`."""
        return log_dropout_rate(self.z, self.z_log_sigma2) < threshold

    def plain(self, threshold: float) -> nn.Linear | nn.Conv2d:
        """The plain layer with the mean weights, exactly zero for the inputs that are pruned."""
        layer = self.empty()
        z = torch.where(self.kept(threshold), self.z, 0.0)
        layer.weight = nn.Parameter((self.weight * self.per_weight(z)).detach())
        layer.register_parameter("bias", None if self.bias is None else nn.Parameter(self.bias.detach().clone()))
        return layer


class GroupLinear(GroupLayer):
    """The substitute of `nn.Linear`: (batch, in) to (batch, out); a group is the column of an input."""

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`inputs @ weight.T + bias`."""
        return F.linear(inputs, weight, bias)

    def per_input(self, z: Tensor) -> Tensor:
        """z unchanged: the inputs are (batch, inputs)."""
        return z

    def per_weight(self, z: Tensor) -> Tensor:
        """z unchanged: the weights are (out, in)."""
        return z

    def empty(self) -> nn.Linear:
        """An `nn.Linear` of the same shape without values."""
        return nn.Linear(self.inputs, len(self.weight), bias=self.bias is not None, device="meta")


class GroupConv2d(GroupLayer):
    """The substitute of `nn.Conv2d`; a group is all weights of one input channel.

    The authors' public code groups by filter instead: for all but the first layer that is the next one's input channel.
    """

    def __init__(self, plain: nn.Conv2d, log_sigma2: float, variance_limit: float | None) -> None:
        super().__init__(plain, log_sigma2, variance_limit)
        self.geometry = Geometry(plain)

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with the given filters and bias."""
        return self.geometry.convolve(inputs, weight, bias)

    def per_input(self, z: Tensor) -> Tensor:
        """z as (..., inputs, 1, 1), for images (batch, inputs, H, W)."""
        return z[..., None, None]

    def per_weight(self, z: Tensor) -> Tensor:
        """z as (out, in / groups, 1, 1): a filter sees only the channels of its own group."""
        groups = self.geometry.groups
        return z.reshape(groups, -1).repeat_interleave(len(self.weight) // groups, dim=0)[..., None, None]

    def empty(self) -> nn.Conv2d:
        """An `nn.Conv2d` of the same shape without values."""
        return nn.Conv2d(**self.geometry.arguments, bias=self.bias is not None, device="meta")


class BayesianCompression(WarmUp):
    """Group normal-Jeffreys prior over the inputs of every layer; inputs are pruned at a `threshold` on log alpha.

    The group half-Cauchy prior (BC-GHS) that VS names differs only in the prior over the groups' scale (Louizos et al.
    2017).
    """

    log_sigma2_init: LogVariance
    clip_var: Factor | None
    threshold: LogAlpha | list[LogAlpha]

    @property
    def batchable(self) -> frozenset[str]:
        """All settings but `clip_var`, which decides what the first layer computes."""
        return frozenset({*type(self).model_fields} - {"clip_var"})

    def replace_layers(self, student: nn.Module) -> nn.Module:
        """Group the inputs of every linear and convolutional layer.

        Raises ValueError if there is no such layer, or if the list of thresholds has another length.
        """
        count = 0

        def grouped(layer: nn.Module) -> nn.Module | None:
            nonlocal count
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                return None
            count += 1
            limit = self.clip_var if count == 1 else None
            if isinstance(layer, nn.Linear):
                return GroupLinear(layer, self.log_sigma2_init, limit)
            return GroupConv2d(layer, self.log_sigma2_init, limit)

        if not replace_layers(student, grouped):
            raise ValueError("the student has no nn.Linear and no nn.Conv2d whose inputs can be grouped")
        if isinstance(self.threshold, list) and len(self.threshold) != count:
            raise ValueError(
                f"method.threshold: {self.threshold} is not allowed; allowed: one number, or one for each of the"
                f" student's {count} weight matrices"
            )
        return student

    def terms(self, context: Context) -> dict[str, Term]:
        """`kl`: of the scales z, approximated by Molchanov et al. 2017, eq. 14, and of all weights and biases given z.

        It is divided by the number of training examples here and nowhere else.
        """
        layers = _group_layers(context.student)

        def kl(step: LossInputs) -> Tensor:
            sums = []
            for name, layer in layers.items():
                own = {key: step.parameters[f"{name}.{key}"] for key, _ in layer.named_parameters()}
                weight_log_sigma2 = layer.limited(own["weight_log_sigma2"])
                # Not clipped, as in the public code: it begins at -9, where a clip to [-8, 8] would leave no slope.
                sums += [
                    kl_svd(log_dropout_rate(own["z"], own["z_log_sigma2"])).sum(),
                    kl_standard_normal(own["weight"], weight_log_sigma2).sum(),
                ]
                if layer.bias is not None:
                    sums.append(kl_standard_normal(own["bias"], own["bias_log_sigma2"]).sum())
            return torch.stack(sums).sum() / context.examples

        return {"kl": Term(kl, weight="lambda_V")}

    def monitors(self, context: Context) -> dict[str, Monitor]:
        """`gap_LAYER`: the middle of the widest gap between the sorted log alphas of a layer's inputs.

        The authors' public code recommends this value as the layer's threshold.
        """
        return {
            f"gap_{name}": lambda parameters, name=name: widest_gap(
                log_dropout_rate(parameters[f"{name}.z"], parameters[f"{name}.z_log_sigma2"])
            )
            for name, layer in _group_layers(context.student).items()
            if layer.inputs > 1
        }

    def finalize(self, student: nn.Module) -> nn.Module:
        """Plain layers again, with exact zeros for the inputs whose log alpha reaches the threshold.

        A hidden neuron that the next layer has pruned as an input loses its own weights too (Louizos et al. 2017).
        """
        layers = _group_layers(student).values()
        thresholds = self.threshold if isinstance(self.threshold, list) else [self.threshold] * len(layers)
        plain = {layer: layer.plain(threshold) for layer, threshold in zip(layers, thresholds, strict=True)}
        replace_layers(student, lambda layer: plain[layer] if isinstance(layer, GroupLayer) else None)
        # Dropout between two layers would hide that a neuron has no outgoing weights.
        zero_dead_neurons(without_dropout(student))
        return student


def widest_gap(numbers: Tensor) -> float:
    """The middle of the widest gap between the sorted `numbers` (n,)."""
    ordered = numbers.sort().values
    widest = int(ordered.diff().argmax())
    return ordered[widest : widest + 2].mean().item()


def _group_layers(student: nn.Module) -> dict[str, GroupLayer]:
    return {name: layer for name, layer in student.named_modules() if isinstance(layer, GroupLayer)}
