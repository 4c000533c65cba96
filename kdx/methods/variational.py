"""Sparse Variational Dropout and Variational Bayesian Dropout: the same layers, two KL divergences (VS sec. 3.1)."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdx.config.ranges import Factor, LogVariance
from kdx.methods.modifier import Context, Hyperparameter
from kdx.methods.warm_up import WarmUp
from kdx.models.layers import NoisyLayer
from kdx.models.surgery import Geometry, replace_layers
from kdx.training.objective import LossInputs, Term

VARIANCE_FLOOR = 1e-8
LOG_ALPHA_LIMIT = 8.0
# Molchanov et al. 2017, eq. 14: a fit to the KL divergence from the log-uniform prior.
K1, K2, K3 = 0.63576, 1.87320, 1.48695


def log_dropout_rate(mean: Tensor, log_sigma2: Tensor) -> Tensor:
    """The log dropout rate log alpha = log(sigma^2 / mean^2), elementwise (Molchanov et al. 2017)."""
    return log_sigma2 - torch.log(mean.square() + VARIANCE_FLOOR)


def log_alpha(weight: Tensor, log_sigma2: Tensor) -> Tensor:
    """The log dropout rate of every weight, clipped to [-8, 8] as in the public code of Molchanov et al. 2017."""
    return log_dropout_rate(weight, log_sigma2).clamp(-LOG_ALPHA_LIMIT, LOG_ALPHA_LIMIT)


def kl_svd(log_alpha: Tensor) -> Tensor:
    """KL(q||log-uniform) of each weight up to a constant, approximated; 0 as alpha grows (Molchanov et al. eq. 14).

    VS eq. 6 prints its negative, which is unbounded below as alpha goes to 0 and so never favours sparse weights.
    """
    return 0.5 * F.softplus(-log_alpha) + K1 - K1 * torch.sigmoid(K2 + K3 * log_alpha)


def kl_vbd(log_alpha: Tensor) -> Tensor:
    """KL(q||N(0, gamma)) of each weight at the best gamma, 0.5 log(1 + 1/alpha) (VS eq. 7)."""
    return 0.5 * F.softplus(-log_alpha)


KL = {"svd": kl_svd, "vbd": kl_vbd}


class VariationalLayer(NoisyLayer):
    """A layer with weights N(weight, exp(log_sigma2)), sampled by local reparametrisation; the bias is certain."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.Linear | nn.Conv2d, log_sigma2: float) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.log_sigma2 = nn.Parameter(torch.full_like(plain.weight, log_sigma2))

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean of the output, plus `noise` times its standard deviation if noise is set."""
        mean = self.linear(inputs, self.weight, self.bias)
        if self.noise is None:
            return mean
        variance = self.linear(inputs.square(), self.log_sigma2.exp(), None)
        return mean + self.noise * torch.sqrt(variance + VARIANCE_FLOOR)

    def new_noise(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """An empty float32 buffer in the shape of the outputs: one number for every output, example and position."""
        return torch.empty_like(outputs, dtype=torch.float32, memory_format=torch.contiguous_format)

    def draw(self, noise: Tensor, generator: torch.Generator) -> None:
        """Fill `noise` with standard normal numbers."""
        noise.normal_(generator=generator)

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's linear map with the given weight and bias."""
        raise TypeError(f"{type(self).__name__} has no linear map")

    def plain(self, threshold: float) -> nn.Linear | nn.Conv2d:
        """The plain layer; weights whose log alpha is at least `threshold` are exactly zero."""
        raise TypeError(f"{type(self).__name__} has no plain layer")

    def masked_weight(self, threshold: float) -> Tensor:
        """The mean weights, zero where log alpha reaches `threshold`."""
        kept = log_alpha(self.weight, self.log_sigma2) < threshold
        return torch.where(kept, self.weight, 0.0).detach()


class VariationalLinear(VariationalLayer):
    """Variational substitute of `nn.Linear`: (batch, in) to (batch, out)."""

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`inputs @ weight.T + bias`."""
        return F.linear(inputs, weight, bias)

    def plain(self, threshold: float) -> nn.Linear:
        """The `nn.Linear` with the pruned mean weights."""
        outputs, inputs = self.weight.shape
        layer = nn.Linear(inputs, outputs, bias=self.bias is not None, device="meta")
        return _filled(layer, self, threshold)


class VariationalConv2d(VariationalLayer):
    """Variational substitute of `nn.Conv2d`; the noise is drawn for every position of the output."""

    def __init__(self, plain: nn.Conv2d, log_sigma2: float) -> None:
        super().__init__(plain, log_sigma2)
        self.geometry = Geometry(plain)

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with the given filters and bias."""
        return self.geometry.convolve(inputs, weight, bias)

    def plain(self, threshold: float) -> nn.Conv2d:
        """The `nn.Conv2d` with the pruned mean weights."""
        layer = nn.Conv2d(**self.geometry.arguments, bias=self.bias is not None, device="meta")
        return _filled(layer, self, threshold)


class Variational(WarmUp):
    """Variational weights, their KL with a linear warm-up, and pruning at a `threshold` on log alpha (VS sec. 3.1)."""

    variational: Literal["svd", "vbd"]
    log_sigma2_init: LogVariance
    log_sigma2_lr: Hyperparameter[Factor]
    threshold: Annotated[float, Field(ge=-LOG_ALPHA_LIMIT, le=LOG_ALPHA_LIMIT)]

    @property
    def prunes_at_start(self) -> bool:
        """True: weights that are small beside the initial variance are beyond the threshold from the start."""
        return True

    @property
    def batchable(self) -> frozenset[str]:
        """All settings but `variational`, the kind of prior."""
        return frozenset({*type(self).model_fields} - {"variational"})

    def replace_layers(self, student: nn.Module) -> nn.Module:
        """Make every linear and convolutional layer variational; raises ValueError where there is none."""
        if not replace_layers(student, self._variational):
            raise ValueError("the student has no nn.Linear and no nn.Conv2d to make variational")
        return student

    def _variational(self, layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.Linear):
            return VariationalLinear(layer, self.log_sigma2_init)
        if isinstance(layer, nn.Conv2d):
            return VariationalConv2d(layer, self.log_sigma2_init)
        return None

    def terms(self, context: Context) -> dict[str, Term]:
        """`kl`: the sum of the KL over all weights, divided by the number of training examples (here and nowhere else).

        The data terms are means over examples, so lambda_V = 1 gives the evidence lower bound (Molchanov et al. 2017).
        """
        divergence = KL[self.variational]
        names = [name for name, layer in context.student.named_modules() if isinstance(layer, VariationalLayer)]

        def kl(step: LossInputs) -> Tensor:
            parameters = step.parameters
            sums = [
                divergence(log_alpha(parameters[f"{name}.weight"], parameters[f"{name}.log_sigma2"])).sum()
                for name in names
            ]
            return torch.stack(sums).sum() / context.examples

        return {"kl": Term(kl, weight="lambda_V")}

    def lr_multipliers(self, student: nn.Module) -> dict[str, str]:
        """The log variances learn at `log_sigma2_lr` times the learning rate of the weights."""
        names = (name for name, _ in student.named_parameters())
        return {name: "log_sigma2_lr" for name in names if name.endswith("log_sigma2")}

    def finalize(self, student: nn.Module) -> nn.Module:
        """Plain layers again, with exact zeros where log alpha reaches the threshold."""
        replace_layers(
            student, lambda layer: layer.plain(self.threshold) if isinstance(layer, VariationalLayer) else None
        )
        return student


def _filled(layer, source: VariationalLayer, threshold: float):
    layer.weight = nn.Parameter(source.masked_weight(threshold))
    layer.bias = None if source.bias is None else nn.Parameter(source.bias.detach().clone())
    return layer
