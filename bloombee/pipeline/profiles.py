"""A worker's profile on its way to the head: as a message and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from msgspec import structs

from bloombee.pace import Pace
from bloombee.plan.profile import Fit, Hardware, KindTime, Profile
from bloombee.plan.topology import Cores, RowTime
from bloombee.wire import messages as m


def paced(pace: Pace, digest: str, dtype: str, hardware: Hardware, output: RowTime | None = None) -> Profile:
    """Of a device that is emulated: known without measuring, of the stage as a whole or of each layer, as the pace is."""
    stage, layer = RowTime.paced(pace)
    return Profile(digest, f"paced {pace}", dtype, 1, Fit(stage, layer, 0.0, 0.0), output or RowTime(), 0, 0, hardware)


def shared_cores(profiles: Sequence[Profile | None]) -> Cores | None:
    """Those that several workers take turns on, if all of them are one machine's; who has not said (None) may be anywhere.

    Those of some of them only, beside others' machines, are not told apart: each counts as a machine then.
    """
    known = [profile for profile in profiles if profile is not None and profile.hardware.machine and profile.hardware.cores]
    if len(known) < max(2, len(profiles)) or len({profile.hardware.machine for profile in known}) > 1:
        return None
    hop_s = max((1 / rate for profile in known if (rate := profile.hardware.frames_per_s)), default=0.0)
    return Cores(
        max(profile.hardware.cores for profile in known),
        hop_cpu_s=hop_s,
        is_computing=all(profile.device.startswith("cpu") for profile in known),
    )


def to_message(profile: Profile) -> m.Profiled:
    """What the head is told."""
    return m.Profiled(
        config_digest=bytes.fromhex(profile.model_digest),
        dtype=profile.dtype,
        device=profile.device[:256],
        threads=profile.threads,
        stage=_times(profile.fit.stage),
        layer=_times(profile.fit.layer),
        output=_times(profile.output),
        median_error=profile.fit.median_error,
        worst_error=profile.fit.worst_error,
        layer_bytes=profile.layer_bytes,
        kv_token_bytes=profile.kv_token_bytes,
        encode_bytes_per_s=profile.encode_bytes_per_s,
        decode_bytes_per_s=profile.decode_bytes_per_s,
        kinds=tuple(m.KindTimes(k.layer, _times(k.time), k.layer_bytes, k.kv_token_bytes) for k in profile.kinds),
        hardware=_hardware(profile.hardware),
    )


def from_message(said: m.Profiled) -> Profile:
    """What a worker says of a model, without the points it measured."""
    memory_bytes, host_bytes, disk_bytes = said.hardware.memory_bytes
    return Profile(
        model_digest=said.config_digest.hex(),
        device=said.device,
        dtype=said.dtype,
        threads=said.threads,
        fit=Fit(_row_time(said.stage), _row_time(said.layer), said.median_error, said.worst_error),
        output=_row_time(said.output),
        layer_bytes=said.layer_bytes,
        kv_token_bytes=said.kv_token_bytes,
        hardware=Hardware(
            memory_bytes=memory_bytes,
            host_bytes=host_bytes,
            disk_bytes=disk_bytes,
            to_device_bytes_per_s=said.hardware.to_device_bytes_per_s,
            from_device_bytes_per_s=said.hardware.from_device_bytes_per_s,
            disk_bytes_per_s=said.hardware.disk_bytes_per_s,
            frames_per_s=said.hardware.frames_per_s,
            cores=said.hardware.cores,
            machine=said.hardware.machine,
        ),
        encode_bytes_per_s=said.encode_bytes_per_s,
        decode_bytes_per_s=said.decode_bytes_per_s,
        kinds=tuple(KindTime(k.layer, _row_time(k.times), k.layer_bytes, k.kv_token_bytes) for k in said.kinds),
    )


def _hardware(hardware: Hardware) -> m.Hardware:
    return m.Hardware(
        memory_bytes=(hardware.memory_bytes, hardware.host_bytes, hardware.disk_bytes),
        to_device_bytes_per_s=hardware.to_device_bytes_per_s,
        from_device_bytes_per_s=hardware.from_device_bytes_per_s,
        disk_bytes_per_s=hardware.disk_bytes_per_s,
        frames_per_s=hardware.frames_per_s,
        cores=hardware.cores,
        machine=hardware.machine,
    )


def _times(time: RowTime) -> m.Times:
    return m.Times(**dataclasses.asdict(time))


def _row_time(times: m.Times) -> RowTime:
    return RowTime(**structs.asdict(times))
