"""The structure of the dense layer, which has no parameters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """No fields: there is one dense layer."""
