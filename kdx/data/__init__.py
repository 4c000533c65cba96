"""Image data sets as tensors in memory; `load_data` is the way in."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdx.data.dataset import Data
    from kdx.data.settings import DatasetSettings


def load_data(settings: "DatasetSettings") -> "Data":
    """Load the data set of `settings`, on the CPU; raises UserError when its files are missing or damaged.

    Raises ValueError where a package's data set is not what its settings declare.
    """
    data = settings.load()
    loaded, declared = (data.image_shape, data.classes), (settings.image_shape, settings.classes)
    if loaded != declared:
        raise ValueError(
            f"{type(settings).__name__} declares images {declared[0]} of {declared[1]} classes, its data has"
            f" {loaded[0]} and {loaded[1]}"
        )
    return data
