"""Runs a student that was exported as compressed sparse rows (CSR): numpy and scipy are all that it needs.

network = kdx.deploy.load("student-csr.safetensors")
logits = network(images)        # float32 (batch, C, H, W) to (batch, classes)
"""

from kdx.deploy.choice import Choice, choices, fastest
from kdx.deploy.file import DamagedFile, load
from kdx.deploy.network import Network

__all__ = ["Choice", "DamagedFile", "Network", "choices", "fastest", "load"]
