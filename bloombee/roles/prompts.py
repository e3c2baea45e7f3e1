"""Prompts of every kind as the token ids of a model: checked here, and turned into ids off the loop where that takes long.

Nothing here holds the interpreter's lock for more than some milliseconds, however long a prompt is: the loop of tokens and
heartbeats goes on, and so does the caller's.
"""

from __future__ import annotations

import asyncio
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from bloombee.errors import ConfigError, RuntimeClosed
from bloombee.models.card import ModelCard
from bloombee.roles.chat import ChatTemplate
from bloombee.roles.text import SHORT_CHARACTERS, SLICE_TOKENS, TextCodec
from bloombee.utf8 import num_utf8_bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation with what a chat template may be told besides.

    Args:
        messages: each with its ``role`` and what it says.
        tools: that the model may call, as its template takes them: ``{"type": "function", "function": {...}}``.
        arguments: others of the template, by name, as ``enable_thinking``.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | Chat
"""Text (encoded as it is), a list of token ids, or a conversation for the model's chat template."""
PROMPT_KINDS = "must be text, a list of token ids, a list of chat messages or a Chat"
Room = Callable[[int, bool], None]
"""Called with a number of tokens and whether it is the least that there can be; raises if that is too many."""
SHORT_TOKENS = 1 << 12
"""A list up to this long is read on the loop."""
MOST_RENDERING = 4


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A prompt as a model takes it.

    Args:
        packed: the same, [n] little-endian uint32.
    """

    ids: tuple[int, ...]
    packed: bytes


class Prompts:
    """Reads prompts for one model. Belongs to one event loop.

    Chat templates run on threads of their own, long texts and lists on others; Python ends no process before the text that
    a thread is at has been encoded.
    """

    def __init__(self, card: ModelCard, codec: TextCodec) -> None:
        self._card = card
        self._codec = codec
        self._chat = ChatTemplate(card.model, card.chat_templates, card.special_tokens)
        self._renderers = ThreadPoolExecutor(MOST_RENDERING, "bloombee-chat")
        self._encoders = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "bloombee-prompt")
        self._closed = False

    async def read(self, prompt: Prompt, room: Room) -> PromptIds:
        """The ids of ``prompt``. Cancelled: what runs in a thread runs on, and its result is dropped.

        Raises:
            ConfigError: it is empty, of no kind that there is, not text, or has a token id that the model lacks; no tokenizer or
                chat template, or one that refuses it.
            RuntimeClosed: :meth:`close` was called meanwhile.
            BloomBeeError: whatever ``room`` raises, before the prompt is encoded where its length says enough.
        """
        if isinstance(prompt, str):
            return await self._read_text(prompt, room, add_special_tokens=True)
        if isinstance(prompt, Chat):
            return await self._read_chat(prompt, room)
        if not isinstance(prompt, (list, tuple)):
            raise ConfigError(f"a prompt of type {type(prompt).__name__}: {PROMPT_KINDS}", field="prompt")
        if prompt and isinstance(prompt[0], Mapping):
            return await self._read_chat(Chat(tuple(prompt)), room)
        room(len(prompt), False)
        ids = tuple(prompt)  # the caller's list may change
        if len(ids) <= SHORT_TOKENS:
            return self._pack(ids)
        return await self._off_loop(self._encoders, self._pack, ids)

    def close(self) -> None:
        """Whoever waits in :meth:`read` gets RuntimeClosed; waits for no thread."""
        self._closed = True
        for pool in (self._renderers, self._encoders):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _read_chat(self, chat: Chat, room: Room) -> PromptIds:
        for name, value in (("messages", chat.messages), ("tools", chat.tools or ())):
            if not isinstance(value, (list, tuple)):
                raise ConfigError(f"{name} of type {type(value).__name__}: must be a list", field="prompt")
        text = await self._off_loop(self._renderers, self._chat.render, chat.messages, chat.tools, chat.arguments)
        return await self._read_text(text, room, add_special_tokens=False)

    async def _read_text(self, text: str, room: Room, *, add_special_tokens: bool) -> PromptIds:
        if len(text) <= SHORT_CHARACTERS:
            return self._encode(text, room, add_special_tokens)
        self._check_bytes(len(text), room)  # at least
        return await self._off_loop(self._encoders, self._encode, text, room, add_special_tokens)

    def _encode(self, text: str, room: Room, add_special_tokens: bool) -> PromptIds:
        try:
            self._check_bytes(num_utf8_bytes(text), room)
        except UnicodeEncodeError as error:
            raise ConfigError(f"the prompt has a lone surrogate at character {error.start}: not text", field="prompt") from None
        ids = self._codec.encode(text, add_special_tokens=add_special_tokens, check=lambda count: room(count, False))
        return self._pack(ids)

    def _check_bytes(self, num_bytes: int, room: Room) -> None:
        if self._card.token_bytes:
            room(-(-num_bytes // self._card.token_bytes), True)

    def _pack(self, items: Sequence[Any]) -> PromptIds:
        ids: list[int] = []
        packed: list[bytes] = []
        for start in range(0, len(items), SLICE_TOKENS):
            part = _whole(items[start : start + SLICE_TOKENS], start)
            ids += part
            packed.append(self._pack_slice(part))
        return PromptIds(tuple(ids), b"".join(packed))

    def _pack_slice(self, ids: Sequence[int]) -> bytes:
        most = self._card.vocab_size - 1
        try:
            array = np.array(ids, dtype=np.int64)
        except OverflowError:
            raise ConfigError(
                f"a token id of more than 64 bits in the prompt: the model has 0 to {most}", field="prompt"
            ) from None
        bad = array[(array < 0) | (array > most)]
        if bad.size:
            raise ConfigError(f"token id {bad[0]} in the prompt: the model has 0 to {most}", field="prompt")
        return array.astype("<u4").tobytes()

    async def _off_loop(self, pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
        if self._closed:
            raise RuntimeClosed("the Runtime was closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work, *args)
        except asyncio.CancelledError:
            if self._closed:
                raise RuntimeClosed("the Runtime was closed") from None
            raise


def _whole(items: Sequence[Any], start: int) -> Sequence[int]:
    """``items``, which begin at ``start`` of a prompt, as Python's own integers; numpy's are taken, truth values are not.

    Raises:
        ConfigError: something else.
    """
    if set(map(type, items)) == {int}:
        return items
    return [_index(item, start + index) for index, item in enumerate(items)]


def _index(item: Any, position: int) -> int:
    if not isinstance(item, bool):
        try:
            return operator.index(item)
        except Exception:
            pass
    raise ConfigError(f"item {position} of the prompt is of type {type(item).__name__}: a prompt {PROMPT_KINDS}", field="prompt")
