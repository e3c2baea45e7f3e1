"""What a checkpoint's generation_config.json (or, without one, its config.json) says, and what becomes of each field.

The file is read by transformers itself, so that nulls, defaults and what older files have in config.json count as they do
there. :data:`FIELDS` decides every field that it knows; docs/checkpoints.md shows the same table to people.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, WatermarkingConfig

from bloombee.engine.checkpoint import Checkpoint
from bloombee.errors import ConfigError, ModelUnsupported
from bloombee.models.rules import Defaults, LogitsRules, Watermark
from bloombee.wire.messages import MAX_RULE_TOKENS

FILE = "generation_config.json"
MOST_END_TOKENS = 256
LARGEST = 1e18
"""What a message carries at most; adding it to a logit is as good as adding infinity."""


class Use(enum.StrEnum):
    """What becomes of a field."""

    OBEYED = "obeyed"
    """For every request."""
    DEFAULT = "default"
    """Where the caller says nothing of it."""
    CALLER = "caller"
    """The caller's word alone counts."""
    NO_EFFECT = "no effect"
    """It changes no token of a decoder's text."""
    IGNORED = "ignored"
    """Asks for what a ring cannot do: said once, by name."""
    REFUSED = "refused"
    """The tokens would be others without it: the checkpoint is refused, by name."""


FIELDS: dict[str, Use] = {
    **dict.fromkeys(
        (
            "eos_token_id", "bos_token_id", "min_length", "min_new_tokens", "sequence_bias", "bad_words_ids",
            "no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
            "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "renormalize_logits",
            "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "watermarking_config", "max_time",
        ),
        Use.OBEYED,
    ),
    **dict.fromkeys(
        ("max_new_tokens", "max_length", "top_k", "top_p", "min_p", "repetition_penalty", "stop_strings"), Use.DEFAULT
    ),
    **dict.fromkeys(("do_sample", "temperature"), Use.CALLER),
    **dict.fromkeys(
        (
            "pad_token_id", "use_cache", "cache_implementation", "cache_config", "max_cache_len", "output_attentions",
            "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "encoder_repetition_penalty",
            "encoder_no_repeat_ngram_size", "decoder_start_token_id", "compile_config", "disable_compile",
            "continuous_batching_config", "low_memory", "prefill_chunk_size", "is_assistant", "num_assistant_tokens",
            "num_assistant_tokens_schedule", "assistant_confidence_threshold", "max_matching_ngram_size",
            "assistant_lookbehind", "target_lookbehind", "early_stopping", "length_penalty", "diversity_penalty",
            "_from_model_config", "transformers_version",
        ),
        Use.NO_EFFECT,
    ),
    **dict.fromkeys(
        (
            "num_beams", "num_beam_groups", "num_return_sequences", "constraints", "force_words_ids", "penalty_alpha",
            "dola_layers", "use_mtp", "prompt_lookup_num_tokens", "assistant_early_exit", "assistant_ensemble_weight",
            "speculation_type",
        ),
        Use.IGNORED,
    ),
    **dict.fromkeys(("guidance_scale", "token_healing"), Use.REFUSED),
}  # fmt: skip

_OFF: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "num_return_sequences": (1,), "use_mtp": (False,), "penalty_alpha": (0, 0.0),
    "guidance_scale": (1, 1.0), "token_healing": (False,),
}  # fmt: skip
"""Values, besides null, by which such a field asks for nothing."""


@dataclass(frozen=True, slots=True)
class GenerationFile:
    """What :func:`read_generation` found. ``logits_rules``: None where nothing is to be done to logits."""

    end_tokens: tuple[int, ...]
    bos_token_id: int | None
    defaults: Defaults
    logits_rules: LogitsRules | None
    ignored: tuple[str, ...]


def read_generation(checkpoint: Checkpoint, vocab_size: int) -> GenerationFile:
    """The rules of ``checkpoint`` for a model of ``vocab_size`` tokens.

    Raises:
        ConfigError: a value that transformers would not take; names the file and the field.
        ModelUnsupported: a field that is refused.
    """
    file, config = _load(checkpoint)
    values = _Values(checkpoint.directory / file if checkpoint.directory else Path(file), config, vocab_size)
    for name in _asked_for(config, Use.REFUSED):
        raise ModelUnsupported(
            f"{checkpoint.ref}: {values.path.name}: {name} = {getattr(config, name)!r} is not supported; the tokens would be"
            " others without it",
            unsupported=name,
        )
    rules = _logits_rules(values)
    return GenerationFile(
        end_tokens=values.tokens("eos_token_id", most=MOST_END_TOKENS),
        bos_token_id=next(iter(values.tokens("bos_token_id")), None),
        defaults=_defaults(values),
        logits_rules=None if rules == LogitsRules() else rules,
        ignored=tuple(
            f"{values.path.name}: {name} = {getattr(config, name)!r} is ignored" for name in _asked_for(config, Use.IGNORED)
        ),
    )


def _load(checkpoint: Checkpoint) -> tuple[str, GenerationConfig]:
    """The name of the file that counts, and what it says: that of a model's ``from_pretrained``."""
    has_file = checkpoint.directory is not None and (checkpoint.directory / FILE).is_file()
    file = FILE if has_file else "config.json"
    try:
        if has_file:
            return file, GenerationConfig.from_dict(checkpoint.json_file(FILE))
        return file, GenerationConfig.from_model_config(dict(checkpoint.raw_config))
    except (ValueError, TypeError, AttributeError) as error:
        path = checkpoint.directory / file if checkpoint.directory else file
        raise ConfigError(f"{path}: transformers refuses it: {error}", path=str(path)) from error


def _asked_for(config: GenerationConfig, use: Use) -> Iterable[str]:
    """Fields of ``use`` that ask for something."""
    for name, kind in FIELDS.items():
        value = getattr(config, name, None)
        if kind is use and value is not None and value not in _OFF.get(name, ()):
            yield name


def _defaults(values: _Values) -> Defaults:
    penalty = values.number("repetition_penalty", 1.0, 1e-9, 1e4, "a number above 0, at most 10000")
    stop = values.get("stop_strings", ())
    stop = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop
    values.check(
        "stop_strings", isinstance(stop, tuple) and all(isinstance(s, str) and s for s in stop), "text or a list of texts"
    )
    return Defaults(
        max_new_tokens=values.whole("max_new_tokens", None, 1),
        max_length=values.whole("max_length", None, 1),
        top_k=max(0, values.whole("top_k", 0, -1) or 0),
        top_p=max(1e-12, values.number("top_p", 1.0, 0, 1, "a number from 0 to 1")),
        min_p=values.number("min_p", 0.0, 0, 1, "a number from 0 to 1"),
        repetition_penalty=penalty,
        stop=stop,
        max_time_s=values.number("max_time", 0.0, 0, 1e9, "seconds") or None,
    )


def _logits_rules(values: _Values) -> LogitsRules:
    min_new = values.whole("min_new_tokens", None, 0)
    typical_p = values.number("typical_p", 1.0, 1e-9, 1e18, "a number above 0")
    rules = LogitsRules(
        sequence_bias=values.biases("sequence_bias"),
        bad_words_ids=values.words("bad_words_ids"),
        no_repeat_ngram_size=values.whole("no_repeat_ngram_size", 0, 0) or 0,
        min_length=(values.whole("min_length", 0, 0) or 0) if min_new is None else 0,
        min_new_tokens=min_new or 0,
        forced_bos_token_id=next(iter(values.tokens("forced_bos_token_id", most=1, known=True)), None),
        forced_eos_token_id=values.tokens("forced_eos_token_id", known=True),
        remove_invalid_values=values.get("remove_invalid_values", False) is True,
        exponential_decay_length_penalty=values.decay("exponential_decay_length_penalty"),
        suppress_tokens=values.tokens("suppress_tokens"),
        begin_suppress_tokens=values.tokens("begin_suppress_tokens"),
        top_h=values.number("top_h", 0.0, 1e-9, 1, "a number in (0, 1]") or None,
        typical_p=min(typical_p, 1.0),
        epsilon_cutoff=values.cutoff("epsilon_cutoff"),
        eta_cutoff=values.cutoff("eta_cutoff"),
        watermark=_watermark(values),
    )
    words = [*rules.bad_words_ids, *(tokens for tokens, _ in rules.sequence_bias)]
    lists = [*words, rules.forced_eos_token_id, rules.suppress_tokens, rules.begin_suppress_tokens]
    values.check("suppress_tokens", sum(map(len, lists)) <= MAX_RULE_TOKENS, f"at most {MAX_RULE_TOKENS} with all other lists")
    return rules


def _watermark(values: _Values) -> Watermark | None:
    config = values.get("watermarking_config", None)
    if config is None:
        return None
    values.check("watermarking_config", type(config) is WatermarkingConfig, "of the kind that hashes the last tokens")
    return Watermark(
        float(config.greenlist_ratio),
        float(config.bias),
        int(config.hashing_key),
        config.seeding_scheme == "selfhash",
        int(config.context_width),
    )


@dataclass(frozen=True, slots=True)
class _Values:
    """Fields of the config, checked; a value of another kind is a ConfigError that names the file and the field."""

    path: Path
    config: GenerationConfig
    vocab_size: int

    def get(self, name: str, default: Any) -> Any:
        value = getattr(self.config, name, None)
        return default if value is None else value

    def check(self, name: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise ConfigError(
                f"{self.path}: {name} = {getattr(self.config, name)!r}: must be {allowed}", path=str(self.path), field=name
            )

    def whole(self, name: str, default: int | None, least: int) -> int | None:
        value = self.get(name, default)
        self.check(name, value is default or (type(value) is int and least <= value < 2**31), f"a whole number >= {least}")
        return value if value is None else int(value)

    def number(self, name: str, default: float, least: float, most: float, allowed: str) -> float:
        value = self.get(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        self.check(name, value is default or (is_number and least <= value <= most), allowed)
        return float(value)

    def cutoff(self, name: str) -> float:
        """transformers takes one outside (0, 1) as none."""
        value = self.number(name, 0.0, -1e18, 1e18, "a number")
        return value if 0 < value < 1 else 0.0

    def tokens(self, name: str, *, most: int = MAX_RULE_TOKENS, known: bool = False) -> tuple[int, ...]:
        """One id or several; negative ones stand for none. ``known``: they must be in the vocabulary."""
        value = self.get(name, [])
        found = list(value) if isinstance(value, (list, tuple)) else [value]
        self.check(name, all(type(token) is int for token in found), "a token id or a list of them")
        self.check(name, len(found) <= most, f"at most {most} token id{'s' * (most > 1)}")
        found = [token for token in found if token >= 0]
        self.check(name, max(found, default=0) < (self.vocab_size if known else 2**32), f"below {self.vocab_size}")
        return tuple(found)

    def words(self, name: str) -> tuple[tuple[int, ...], ...]:
        value = self.get(name, [])
        self.check(name, isinstance(value, list) and all(self._is_word(word) for word in value), "a list of lists of token ids")
        return tuple(tuple(word) for word in value)

    def biases(self, name: str) -> tuple[tuple[tuple[int, ...], float], ...]:
        value = self.get(name, [])
        ok = isinstance(value, list) and all(isinstance(one, (list, tuple)) and len(one) == 2 for one in value)
        ok = ok and all(self._is_word(word) and type(bias) is float and not math.isnan(bias) for word, bias in value)
        self.check(name, ok, "a list of [token ids, a number with a point]")
        return tuple((tuple(word), max(-LARGEST, min(LARGEST, bias))) for word, bias in value)

    def decay(self, name: str) -> tuple[int, float] | None:
        value = self.get(name, None)
        if value is None:
            return None
        ok = isinstance(value, (list, tuple)) and len(value) == 2 and type(value[0]) is int and 0 <= value[0] < 2**31
        self.check(name, ok and isinstance(value[1], (int, float)) and abs(value[1]) <= LARGEST, "[a number of tokens, a factor]")
        return value[0], float(value[1])

    def _is_word(self, word: object) -> bool:
        is_list = isinstance(word, (list, tuple)) and len(word) > 0
        return is_list and all(type(token) is int and 0 <= token < self.vocab_size for token in word)  # type: ignore[attr-defined]
