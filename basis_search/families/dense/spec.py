"""The dense layer's structure: none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """No field: there is one dense layer."""
