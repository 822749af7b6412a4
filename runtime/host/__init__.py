"""This machine: processor, memory, control groups, files."""
