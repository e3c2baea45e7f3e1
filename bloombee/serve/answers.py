"""What programs get: OpenAI's objects, field by field in their order."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

Ended = Literal["stop", "length", "tool_calls"]


class PromptDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int = 0


class CompletionDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of all choices together; an end token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, kw_only=True):
    """``token``: as text, where it is part of a character with marks in its place; ``bytes`` are what it is."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """``reasoning_content``: of the tokens that are that, with the marks around it; where there are none it is not there."""

    content: list[TokenLogprob]
    refusal: None = None
    reasoning_content: list[TokenLogprob] | UnsetType = UNSET


class CalledFunction(msgspec.Struct, kw_only=True):
    name: str
    arguments: str


class AnsweredCall(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(msgspec.Struct, kw_only=True):
    """``content``: None where there are calls and nothing else."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[AnsweredCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Ended


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class DeltaCall(AnsweredCall, kw_only=True):
    index: int


class Delta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DeltaCall] | None = None


class ChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Ended | None = None


class ChatChunk(msgspec.Struct, kw_only=True, omit_defaults=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class TextLogprobs(msgspec.Struct, kw_only=True):
    """One of each list a token; ``top_logprobs`` by the token's text."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class TextChoice(msgspec.Struct, kw_only=True):
    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: Ended | None


class TextCompletion(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A whole answer, or a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Model(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["bloombee"] = "bloombee"
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


Condition = Literal["ok", "starting", "waiting", "loading", "recovering", "ending", "down"]


class Health(msgspec.Struct, kw_only=True):
    """``reason``: why requests are not answered now; empty where they are."""

    status: Condition
    reason: str = ""
    model: str
    requests: int = 0
