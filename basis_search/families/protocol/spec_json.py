"""Specs as JSON, and their hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from basis_search.errors import BadInput, near_miss
from basis_search.families.protocol.family import Family


def spec_to_json(spec: Any) -> dict[str, Any]:
    """The fields of a spec as JSON values."""
    result: dict[str, Any] = dataclasses.asdict(spec)
    return result


def spec_from_json(family: Family, data: Mapping[str, Any]) -> Any:
    """The spec that `spec_to_json` wrote.

    Raises:
        BadInput: a field is missing, unknown, of the wrong type or out of its limits.
    """
    fields = {f.name: f for f in dataclasses.fields(family.Spec)}
    for key in data:
        if key not in fields:
            raise BadInput(f"a spec has no field {key!r}{near_miss(key, list(fields))}")
    try:
        return family.Spec(**data)
    except TypeError as error:
        raise BadInput(f"{dict(data)} does not make a spec: {error}") from error


def spec_hash(family: str, spec: Any) -> str:
    """sha256 of the canonical JSON of family and spec."""
    text = json.dumps({"family": family, "spec": spec_to_json(spec)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
