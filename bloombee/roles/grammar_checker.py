"""A process that compiles grammars to see whether they can be: ``python -m bloombee.roles.grammar_checker``.

Some grammars take minutes to compile, and some overflow the stack of whoever does. Then this process ends, by a timer of the
system if need be, and nobody has lost anything (``roles/grammars.py``). A line of JSON in, ``[kind, text]``; one out: what is
wrong, or nothing.
"""

from __future__ import annotations

import resource
import signal
import sys
import threading
from typing import Any, BinaryIO

import msgspec
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from bloombee.errors import ConfigError
from bloombee.grammar import MOST_COMPILING_S, source
from bloombee.wire.messages import Grammar

STACK_BYTES = 1 << 20
"""Of the thread that compiles: less than workers have, so what passes here breaks nobody there."""
MOST_BYTES = 2 << 30
"""Of address space."""
_END = 256


class _Bytes:
    """A vocabulary of all bytes and an end."""

    eos_token_id = _END
    bos_token_id = None
    special_token_ids = (_END,)
    tokens = (*(bytes([byte]) for byte in range(_END)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def fault(grammar: Grammar, tokenizer: LLTokenizer) -> str:
    """What keeps ``grammar`` from being obeyed, in a sentence; empty: nothing."""
    try:
        matcher = LLMatcher(tokenizer, source(grammar), log_level=0)
    except ConfigError as error:
        return error.message
    if not matcher.is_error():
        matcher.compute_bitmask()
    return str(matcher.get_error())


def serve(lines: BinaryIO, answers: BinaryIO) -> None:
    """Until ``lines`` end. Says once, with an empty line, that it is ready."""
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()), eos_token=[_END])
    _say(answers, "")
    for line in lines:
        signal.setitimer(signal.ITIMER_PROF, MOST_COMPILING_S)
        _say(answers, fault(Grammar(*msgspec.json.decode(line)), tokenizer))
        signal.setitimer(signal.ITIMER_PROF, 0)


def _say(answers: BinaryIO, what: Any) -> None:
    answers.write(msgspec.json.encode(what) + b"\n")
    answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=serve, args=(sys.stdin.buffer, sys.stdout.buffer))
    thread.start()
    thread.join()
