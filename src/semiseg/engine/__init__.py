"""Everything that knows about devices, processes and the order in which things happen."""
