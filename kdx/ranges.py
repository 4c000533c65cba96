"""Ranges of the numbers in a method's settings: what lies outside of them, float32 and its seven digits cannot compute.

Every range is far wider than what anyone has found useful (KDDP goes up to T = 5000).
"""

from typing import Annotated

from pydantic import Field

Temperature = Annotated[float, Field(ge=0.001, le=1_000_000)]
"""Below, a prediction is one class alone; above, logits that are divided by it differ by less than they are rounded."""
Weight = Annotated[float, Field(ge=0, le=1_000_000)]
"""Of a loss term: beside one that weighs more, a sum has no digit left for the others."""
Factor = Annotated[float, Field(gt=0, le=1_000_000)]
"""What multiplies a learning rate, or bounds a variance."""
Deviation = Annotated[float, Field(ge=0, le=1000)]
"""A standard deviation of noise, relative to what it is added to: nothing else is left long before."""
LogVariance = Annotated[float, Field(ge=-40, le=10)]
"""Of a weight: a standard deviation of 2e-9 to 150; the floor under squares in the dropout rate is 1e-8."""
LogAlpha = Annotated[float, Field(ge=-60, le=60)]
"""The log dropout rate, at the extremes of a variance and a mean, where it is not clipped."""
StepSize = Annotated[float, Field(gt=0, le=1)]
"""Of Langevin dynamics: the noise of a step has this variance."""
Exponent = Annotated[float, Field(ge=0, le=10)]
"""Of a step size that decays: 0 is constant, convergence asks for more than a half and at most one."""
Points = Annotated[float, Field(ge=0, le=100)]
"""Percent points of an error."""
