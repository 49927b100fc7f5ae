"""The version of the pack, as pyproject.toml has it."""

VERSION = "0.1.0"
