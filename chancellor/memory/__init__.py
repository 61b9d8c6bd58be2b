"""What an engine will need of a device's memory, what the device has, and what engines took before."""

from chancellor.memory.device import Device, devices, host_free
from chancellor.memory.estimates import Estimate, estimate
from chancellor.memory.ledger import Ledger
from chancellor.memory.processes import measure

__all__ = ["Device", "Estimate", "Ledger", "devices", "estimate", "host_free", "measure"]
