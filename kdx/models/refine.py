"""Refinement: the same architecture with every second filter, or every second block (rho of IKD, SPEC 2)."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from kdx.errors import UserError
from kdx.models.settings import Network

Operator = Literal["filters", "growth", "planes", "blocks", "blocks_ceil"]

# What each operator halves, by family; a family that is absent has nothing of that kind.
_BLOCKS = {"resnet": ("blocks",), "densenet": ("blocks",), "keras-resnet": ("blocks",)}
_HALVED: dict[Operator, dict[str, tuple[str, ...]]] = {
    "filters": {
        "mlp": ("hidden",),
        "lenet": ("channels", "hidden"),
        "convnet": ("width",),
        "resnet": ("stem", "channels"),
        "densenet": ("stem", "growth"),
        "keras-resnet": ("stem", "channels"),
        "kddp": ("channels", "hidden"),
    },
    "growth": {"densenet": ("growth",)},
    "planes": {"resnet": ("channels",), "keras-resnet": ("channels",)},
    "blocks": _BLOCKS,
    "blocks_ceil": _BLOCKS,
}


def refined(network: Network, operator: Operator, times: int) -> Network:
    """The settings of `network` after `times` refinements; its name says so (vgg19-filters-2).

    `filters` halves the widths of all layers, `growth` and `planes` those of DenseNet's or ResNet's blocks only, both
    rounded down; `blocks` halves the number of blocks of every stage, rounded down but to at least 1, `blocks_ceil`
    rounded up. Raises UserError where the network has nothing to halve or a width would reach 0.
    """
    halved = _HALVED[operator].get(network.family)
    if halved is None:
        allowed = [name for name in get_args(Operator) if network.family in _HALVED[name]]
        raise UserError(
            f"method.refine: '{operator}' is not allowed with {network.name}, of family {network.family};"
            f" allowed: {', '.join(allowed)}"
        )
    if times == 0:
        return network
    content = network.model_dump()
    if not operator.startswith("blocks"):
        _check_widths(network, halved, operator, times)
    fields = {name: _each(content[name], lambda value: _halved(value, operator, times)) for name in halved}
    # Built anew rather than copied, so that it is validated.
    return type(network)(**{**content, **fields, "name": f"{network.name}-{operator}-{times}"})


def _check_widths(network: Network, halved: tuple[str, ...], operator: Operator, times: int) -> None:
    least, width = min(_widths(network.model_dump(), halved).items(), key=lambda item: item[1])
    possible = max(0, int(width).bit_length() - 1)
    if times > possible:
        allowed = f"1 to {possible}" if possible else "none"
        raise UserError(
            f"method.generations: {times} is not allowed with method.refine={operator} and {network.name}, where"
            f" {least}={int(width)} can be halved {possible} times; allowed: {allowed}"
        )


def _widths(content: Mapping[str, Any], halved: tuple[str, ...]) -> dict[str, float]:
    """The smallest width of each field; a multiplier's are those of the layers that it multiplies."""
    if "width" in halved:
        filters = [int(code.partition("@")[2]) for code in content["layers"] if code[0] == "C"]
        layers = {"layers": filters, "hidden": content["hidden"]}
        return {name: min(widths) * content["width"] for name, widths in layers.items() if widths}
    values = {name: content[name] if isinstance(content[name], list) else [content[name]] for name in halved}
    return {name: min(widths) for name, widths in values.items() if widths}


def _each(value: Any, change: Callable[[float], float]) -> Any:
    return [change(one) for one in value] if isinstance(value, list) else change(value)


def _halved(value: float, operator: Operator, times: int) -> float:
    if isinstance(value, float):
        return value / 2**times
    if operator == "blocks_ceil":
        return -(-value // 2**times)
    return max(1, value // 2**times)
