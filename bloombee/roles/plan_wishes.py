"""What a plan is asked for: the settings, filled up with what the model says."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bloombee.codec.choice import CodecMode
from bloombee.config import RuntimeConfig
from bloombee.kv.pool import pages_for
from bloombee.models.card import ModelCard
from bloombee.models.standin import is_standin
from bloombee.pipeline.swarm import Machine, PlanRequest
from bloombee.plan.plan import split_layers
from bloombee.types import Dtype, SchedulerPlace
from bloombee.wire.envelope import MAX_TENSOR_BYTES

log = logging.getLogger(__name__)
MOST_MICROBATCHES = 128
"""Credit that stages grant where the number is tuned."""
MAX_TOKENS_BY_DEFAULT = 32_768


def plan_request(config: RuntimeConfig, card: ModelCard, names: Sequence[str], machine: Machine | None = None) -> PlanRequest:
    """For ``config.num_stages`` workers, those called ``names`` in this order, and all on ``machine`` if that is one.

    Raises:
        ConfigError: a cut that this model cannot have; refused now, not when all workers are here.
    """
    if config.goal is None:
        split_layers(card.num_layers, config.num_stages, config.split)
    wish = config.kv_tokens or max(4 * min(card.max_positions or 4096, 8192), 8192)
    wish = min(wish, MAX_TOKENS_BY_DEFAULT) if config.kv_tokens is None else wish
    return PlanRequest(
        card=card,
        dtype=dtype_of(config, card),
        num_workers=config.num_stages,
        split=config.split,
        num_pages=pages_for(wish, config.page_size),
        page_size=config.page_size,
        max_rows=most_rows(config, card),
        num_microbatches=config.microbatches or MOST_MICROBATCHES,
        tuned=config.microbatches is None,
        objective=config.goal,
        machine=machine,
        order=tuple(names),
        pages_fixed=config.kv_tokens is not None,
        codec=CodecMode[config.codec.upper()],
        trace=config.trace is not None,
        takes_others=bool(config.remote_workers),
        scheduler=None if config.scheduler == "auto" else SchedulerPlace(config.scheduler),
        shares_out=config.share_out,
        draft=config.draft,
        waits_s=config.wait_for_worker_s,
        shadows=config.shadow,
        streams=config.offload and not is_standin(card.model),
        step_deadline_s=config.step_deadline_s,
        prefix_cache=config.prefix_cache,
    )


def dtype_of(config: RuntimeConfig, card: ModelCard) -> Dtype:
    """As asked for, else the checkpoint's."""
    return card.dtype if config.dtype == "auto" else Dtype(config.dtype)


def most_rows(config: RuntimeConfig, card: ModelCard) -> int:
    """A frame carries [rows, hidden size] in the plan's dtype, and has a bound; longer prompts go in more chunks."""
    fit = max(1, MAX_TENSOR_BYTES // (card.hidden_size * dtype_of(config, card).num_bytes))
    if fit < config.max_microbatch_rows:
        log.info("max_microbatch_rows = %d: at most %d rows of this model fit a frame", config.max_microbatch_rows, fit)
    return min(config.max_microbatch_rows, fit)
