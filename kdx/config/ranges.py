"""Allowed ranges of a method's settings, beyond which float32 with its seven digits cannot compute.

All are far wider than what anyone has found useful (KDDP goes up to T = 5000).
"""

from typing import Annotated

from pydantic import Field

Temperature = Annotated[float, Field(ge=0.001, le=1_000_000)]
"""A temperature: below, a softened prediction is one-hot; above, softened logits differ by less than their rounding."""
Weight = Annotated[float, Field(ge=0, le=1_000_000)]
"""The weight of a loss term: beside a larger one, float32 has no digit left for the other terms."""
Factor = Annotated[float, Field(gt=0, le=1_000_000)]
"""A factor of a learning rate, or a bound of a variance."""
Deviation = Annotated[float, Field(ge=0, le=1000)]
"""A relative standard deviation of noise: far below the maximum, nothing is left of what it is added to."""
LogVariance = Annotated[float, Field(ge=-40, le=10)]
"""A weight's log variance: standard deviations of 2e-9 to 150; the floor under theta^2 in the dropout rate is 1e-8."""
LogAlpha = Annotated[float, Field(ge=-60, le=60)]
"""A threshold on the log dropout rate, up to its values at the extremes of variance and mean if it is not clipped."""
StepSize = Annotated[float, Field(gt=0, le=1)]
"""A step size of Langevin dynamics, which is the variance of a step's noise."""
Exponent = Annotated[float, Field(ge=0, le=10)]
"""The exponent of a decaying step size: 0 is constant; convergence needs more than 1/2, at most 1."""
Points = Annotated[float, Field(ge=0, le=100)]
"""A difference of errors in percent points."""
