"""Find where another implementation departs: traces of every intermediate, and what explains a difference.

:func:`record` runs a network and keeps every named tensor; :func:`write_trace` and :func:`read_trace` keep them in a
file that any program can write; :func:`compare` walks two traces and names the convention that explains the first
difference.
"""

from refnet.conformance.compare import Comparison, Departure, compare
from refnet.conformance.record import record
from refnet.conformance.trace_file import Entry, TraceFile, entries, read_trace, write_trace

__all__ = [
    "Comparison",
    "Departure",
    "Entry",
    "TraceFile",
    "compare",
    "entries",
    "read_trace",
    "record",
    "write_trace",
]
