"""A worker's profile on its way to the head: as a message and back."""

from __future__ import annotations

import dataclasses

from bloombee.pace import Pace
from bloombee.plan.profile import Fit, Profile
from bloombee.plan.topology import RowTime
from bloombee.wire.messages import Profiled, Times


def paced(pace: Pace, digest: str, dtype: str, memory_bytes: int = 0) -> Profile:
    """Of a device that is emulated: known without measuring, of the stage as a whole or of each layer, as the pace is."""
    stage, layer = RowTime.paced(pace)
    return Profile(digest, f"paced {pace}", dtype, 1, Fit(stage, layer, 0.0, 0.0), RowTime(), 0, 0, memory_bytes)


def to_message(profile: Profile) -> Profiled:
    """What the head is told."""
    return Profiled(
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
        memory_bytes=profile.memory_bytes,
        encode_bytes_per_s=profile.encode_bytes_per_s,
        decode_bytes_per_s=profile.decode_bytes_per_s,
    )


def from_message(said: Profiled) -> Profile:
    """What a worker says of a model, without the points it measured."""
    return Profile(
        model_digest=said.config_digest.hex(),
        device=said.device,
        dtype=said.dtype,
        threads=said.threads,
        fit=Fit(_row_time(said.stage), _row_time(said.layer), said.median_error, said.worst_error),
        output=_row_time(said.output),
        layer_bytes=said.layer_bytes,
        kv_token_bytes=said.kv_token_bytes,
        memory_bytes=said.memory_bytes,
        encode_bytes_per_s=said.encode_bytes_per_s,
        decode_bytes_per_s=said.decode_bytes_per_s,
    )


def _times(time: RowTime) -> Times:
    return Times(**dataclasses.asdict(time))


def _row_time(times: Times) -> RowTime:
    return RowTime(times.fixed_s, times.decode_row_s, times.prefill_row_s, times.context_s)
