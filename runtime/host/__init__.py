"""The machine: processor, memory, control groups, files."""
