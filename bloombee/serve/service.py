"""What every endpoint of one server shares."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from starlette.requests import Request

from bloombee.quote import quoted
from bloombee.runtime import Runtime
from bloombee.serve.intake import Intake
from bloombee.serve.logprobs import TokenTexts
from bloombee.serve.refusals import Refusal
from bloombee.serve.speech import Speech


@dataclass(frozen=True)
class Service:
    """Of one Runtime whose pipeline is up.

    Args:
        model: what programs call it. speech: how it marks what it says.
    """

    runtime: Runtime
    model: str
    intake: Intake
    texts: TokenTexts
    speech: Speech
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, runtime: Runtime, model: str) -> Service:
        card = runtime.card
        speech = Speech.of(card.chat_templates.get("default", ""))
        return cls(runtime, model, Intake(card.max_positions), TokenTexts(runtime.spelled), speech)

    def check_model(self, named: str | None) -> None:
        """Raises Refusal: it is another one."""
        if named is not None and named != self.model:
            said = f"the model {quoted(named)} is not served here; {self.model} is"
            raise Refusal(404, said, param="model", code="model_not_found")


def new_id(kind: str) -> str:
    """Of an answer, as ``chatcmpl-...``."""
    return f"{kind}{secrets.token_hex(12)}"


def client_of(request: Request, user: str | None) -> str:
    """Whose request it is: the key's, or where none is asked for whoever the program says."""
    known: str | None = request.scope.get("bloombee.client")
    return known if known is not None else user or ""
