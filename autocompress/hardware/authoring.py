"""Writes a profile for a device that is at hand, from what the device itself says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autocompress.environment import versions
from autocompress.errors import CandidateFailed, DeviceLost, UserError
from autocompress.files import write_text
from autocompress.hardware.devices import connect, host_of
from autocompress.hardware.doctor import GAIN, gains
from autocompress.hardware.profile import KEYS, RUNTIMES, HardwareProfile

_STATE = ("busy_cores", "providers")


def new_profile(target: Path, values: Mapping[str, Any]) -> HardwareProfile:
    """Describe the device, find which number formats it speeds up, and write a TOML file.

    Args:
        values: runtime, location, python, ssh_config, threads, batch_size and sequence_length of
            the profile.

    Raises:
        UserError: the file exists, a value is out of range, or the device cannot be reached.
    """
    if not target.stem.strip(". ") or target.suffix != ".toml":
        raise UserError(f"profile name {target.name.removesuffix('.toml')!r} names nothing")
    if target.exists():
        raise UserError(f"{target} exists already; give another name")
    if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
        raise UserError(
            f"{target} cannot be written: {target.parent} is no folder that can be written to"
        )
    given = {key: value for key, value in values.items() if value != KEYS[key].default}
    cuda, local = values["runtime"].endswith("-cuda"), values["location"] == "local"
    given["class"] = "edge" if not local else "gpu" if cuda else "cpu"
    if values["runtime"] == "torch-cuda":
        given |= {"cuda_graphs": True, "precisions": list(RUNTIMES["torch-cuda"])}
    draft = HardwareProfile.from_mapping(target.stem, {"description": "", **given}, target)
    device = connect(draft, [32])
    try:
        fingerprint = {key: value for key, value in device.fingerprint.items() if key not in _STATE}
    finally:
        device.close()
    if values["runtime"] != "torch-cuda":
        given["precisions"] = _sped_up(values)
    where = "this machine" if local else values["location"]
    given |= {
        "description": (
            f"{fingerprint['gpu'] if cuda else fingerprint['cpu']}, {where}, {values['runtime']}"
        ),
        "source": f"autocompress profile new, autocompress {versions().get('autocompress', '')}",
        "date": datetime.now(UTC).date().isoformat(),
        "fingerprint": fingerprint,
    }
    profile = HardwareProfile.from_mapping(target.stem, given, target)
    try:
        write_text(target, _toml(given))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from error
    return profile


def _sped_up(values: Mapping[str, Any]) -> list[str]:
    """Number formats that are faster than fp32 on the device."""
    host = host_of(values["location"], values["python"], values["ssh_config"])
    try:
        speedups = gains(host, values["runtime"])
    except (CandidateFailed, DeviceLost) as error:
        raise UserError(f"{values['location']}: {error}") from error
    finally:
        host.close()
    return ["fp32", *(name for name, gain in speedups.items() if gain >= GAIN)]


def _toml(values: Mapping[str, Any]) -> str:
    """Plain keys first, then tables; JSON's strings, numbers and lists are TOML's."""
    plain = [
        f"{key} = {json.dumps(value)}"
        for key, value in values.items()
        if not isinstance(value, dict)
    ]
    tables = [
        "\n".join(
            ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        )
        for name, table in values.items()
        if isinstance(table, dict)
    ]
    return "\n".join([*plain, *tables]) + "\n"
