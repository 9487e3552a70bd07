"""From a profile to the device that it describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autocompress.errors import UserError
from autocompress.hardware.datasheet import DatasheetDevice
from autocompress.hardware.host import Host, LocalHost
from autocompress.hardware.onnx_device import OnnxDevice
from autocompress.hardware.profile import IDENTITY, TASK_LENGTHS, HardwareProfile
from autocompress.hardware.remote import Board
from autocompress.interfaces import Device

QUANTILES = 8
"""Lengths that stand for those of a split."""


def typical_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """Eight lengths that are spread as the given ones are: the middles of eight equal shares,
    ascending."""
    ordered = sorted(lengths)
    return tuple(ordered[(2 * i + 1) * len(ordered) // (2 * QUANTILES)] for i in range(QUANTILES))


def lengths_of(profile: HardwareProfile, task: Sequence[int] | None) -> tuple[int, ...]:
    """The tokens per example that a profile wants timed.

    Args:
        task: of the validation split's examples, where there is a task.

    Raises:
        UserError: the profile wants a task's lengths and there is no task.
    """
    if isinstance(profile.sequence_length, int):
        return (profile.sequence_length,)
    if not task:
        raise UserError(
            f"hardware profile {profile.name}: sequence_length is {TASK_LENGTHS!r}, and there is "
            f"no task here; "
            "extend the profile with a number"
        )
    return typical_lengths(task)


def host_of(location: str, python: str = "python3", ssh_config: str = "") -> Host:
    """Where the agent of a location runs.

    Raises:
        UserError: a location that cannot be, whose program is not installed, or python and
            ssh_config of this machine.
    """
    if location == "local" and (python != "python3" or ssh_config):
        raise UserError(
            f"{'ssh_config' if ssh_config else 'python'} is for a device that is not local"
        )
    return LocalHost() if location == "local" else Board(location, python, ssh_config or None)


def connect(profile: HardwareProfile, lengths: Sequence[int]) -> Device:
    """The device of a profile, reached and checked.

    Raises:
        UserError: it cannot be reached, lacks what the runtime needs, or is not the one of the
            profile's fingerprint.
    """
    device: Device
    if profile.estimated:
        return DatasheetDevice(profile, lengths)
    if profile.runtime == "torch-cuda":
        from autocompress.hardware.torch_cuda import TorchCudaDevice

        device = TorchCudaDevice(profile, lengths)
    else:
        device = OnnxDevice(
            profile, lengths, host_of(profile.location, profile.python, profile.ssh_config)
        )
    try:
        _check_identity(profile, device.fingerprint)
        _check_threads(profile, device.fingerprint)
    except UserError:
        device.close()
        raise
    return device


def _check_threads(profile: HardwareProfile, fingerprint: dict[str, Any]) -> None:
    """More threads than cores wait for each other without end."""
    if profile.threads > fingerprint["cores"]:
        raise UserError(
            f"hardware profile {profile.name}: threads is {profile.threads}, the device has "
            f"{fingerprint['cores']} cores"
        )


def _check_identity(profile: HardwareProfile, fingerprint: dict[str, Any]) -> None:
    for key in IDENTITY:
        wanted = profile.fingerprint.get(key, fingerprint.get(key))
        if wanted != fingerprint.get(key):
            raise UserError(
                f"hardware profile {profile.name} is of another device: its {key} is {wanted!r}, "
                f"here it is {fingerprint.get(key)!r}; "
                "make a profile with: autocompress profile new NAME"
            )
