"""Refinement: the same architecture with half the filters or half the blocks (the operator rho of IKD)."""

from collections.abc import Callable
from typing import Any

from kdx.config.networks import NetworkSettings, Operator
from kdx.errors import UserError


def refined(network: NetworkSettings, operator: Operator, times: int) -> NetworkSettings:
    """The settings of `network` after `times` refinements, which its name tells (vgg19-filters-2).

    `filters` halves the widths of all layers, as IKD describes it, `growth` and `planes` only those of DenseNet's or
    ResNet's blocks, all rounded down; `blocks` halves the number of blocks of every stage, rounded down but to at least
    1, `blocks_ceil` rounded up. Raises UserError if the network has nothing to halve or a width would reach 0.
    """
    halved = network.halved.get(operator)
    if halved is None:
        raise UserError(
            f"method.refine: '{operator}' is not allowed with {network.name}, of family {network.family};"
            f" allowed: {', '.join(network.halved) or 'another network'}"
        )
    if times == 0:
        return network
    content = network.model_dump()
    if not operator.startswith("blocks"):
        _check_widths(network, halved, operator, times)
    fields = {name: _each(content[name], lambda value: _halved(value, operator, times)) for name in halved}
    # Constructed anew, because model_copy would not validate.
    return type(network)(**{**content, **fields, "name": f"{network.name}-{operator}-{times}"})


def _check_widths(network: NetworkSettings, halved: tuple[str, ...], operator: Operator, times: int) -> None:
    least, width = min(network.smallest_widths(halved).items(), key=lambda item: item[1])
    possible = max(0, int(width).bit_length() - 1)
    if times > possible:
        allowed = f"1 to {possible}" if possible else "none"
        raise UserError(
            f"method.generations: {times} is not allowed with method.refine={operator} and {network.name}, where"
            f" {least}={int(width)} can be halved {possible} times; allowed: {allowed}"
        )


def _each(value: Any, change: Callable[[float], float]) -> Any:
    return [change(one) for one in value] if isinstance(value, list) else change(value)


def _halved(value: float, operator: Operator, times: int) -> float:
    if isinstance(value, float):
        return value / 2**times
    if operator == "blocks_ceil":
        return -(-value // 2**times)
    return max(1, value // 2**times)
