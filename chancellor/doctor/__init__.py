"""What in this environment keeps Chancellor from working, and the line that mends it.

report -> versions, packages, plugin, hardware, gpus, memory, folders, entries, checksums
each a few small functions that yield findings; what has to be imported for them is imported in `probe`, in processes
of its own: an import can hang, or end the interpreter
"""

from chancellor.doctor.finding import Finding
from chancellor.doctor.report import Report, examine

__all__ = ["Finding", "Report", "examine"]
