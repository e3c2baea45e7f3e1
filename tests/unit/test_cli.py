"""The command line over a Runtime that is a fake: parsing, streams, exit codes. Processes are the integration tests' part."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bloombee.cli import main
from bloombee.config import RuntimeConfig, WorkerConfig
from bloombee.doctor import Finding
from bloombee.errors import BloomBeeError, ConfigError, Infeasible, LinkDown, QueueFull
from bloombee.grammar import Grammar
from bloombee.plan.plan import Plan, StagePlan
from bloombee.terminal import Loading
from bloombee.types import (
    Dtype,
    FinishReason,
    Generation,
    LoadProgress,
    PageGroup,
    RunningRequest,
    SamplingParams,
    Span,
    SwarmEvent,
    SwarmEventKind,
    Token,
)
from bloombee.wire.token import JoinToken, encode_token

TEXT = ["one", " two", "", " th\x1b[2Jree"]


def join_token(number: int, endpoint: str) -> str:
    return encode_token(JoinToken(bytes(32), bytes([number]) * 16, (endpoint.replace(":0", ":7700").replace("*", "192.0.2.2"),)))


class FakeRuntime:
    """Answers every prompt with TEXT; ``failure`` is raised instead, from where a test says."""

    made: ClassVar[list[FakeRuntime]]
    failure: ClassVar[BaseException | None] = None
    fail_on_open: ClassVar[bool] = False
    happens: ClassVar[tuple[SwarmEvent, ...]] = ()
    notes: ClassVar[dict[str, bytes]] = {}
    running: ClassVar[tuple[RunningRequest, ...]] = ()

    def __init__(self, *, config: RuntimeConfig, on_progress: Callable[[LoadProgress], None]) -> None:
        self.config, self._on_progress = config, on_progress
        self.asked: list[tuple[Any, SamplingParams]] = []
        self.grammars: list[Grammar | None] = []
        self.noted: list[tuple[str, bytes | None]] = []
        self.join_tokens = tuple(join_token(i, config.listen) for i in range(config.num_stages))
        self.closed = False
        FakeRuntime.made.append(self)

    async def prepare(self, *, announce: Callable[[tuple[str, ...]], None] | None = None) -> None:
        if announce is not None:
            announce(self.join_tokens)

    async def ready(self) -> None:
        if self.fail_on_open and self.failure is not None:
            raise self.failure
        for stage in range(self.config.num_stages):
            for phase in ("loading", "loading", "ready"):
                self._on_progress(LoadProgress(stage + 1, f"w{stage}", stage, 2_000_000, 2_000_000, phase))

    async def close(self) -> None:
        self.closed = True

    async def events(self) -> AsyncIterator[SwarmEvent]:
        for event in self.happens:
            yield event

    async def issue_token(self) -> str:
        return join_token(99, self.config.listen)

    @property
    def plan(self) -> Plan:
        spans = [Span(0, 3), Span(3, 6), Span(6, 8)][: self.config.num_stages]
        groups = (PageGroup(0, 4),)
        stages = tuple(StagePlan(i, i + 1, f"w{i}", span, 4_000_000, 1, groups) for i, span in enumerate(spans))
        return Plan(0, 0, self.config.model, Dtype.FLOAT32, 8, groups, 16, 2, stages)

    def note(self, name: str, value: bytes | None) -> None:
        self.noted.append((name, value))

    async def rest(self, id: int, params: SamplingParams) -> Generation:
        return Generation("rest", (id,), (9,), FinishReason.STOP, None, None, 0.5, 10.0)

    async def generate(
        self, prompt: Any, params: SamplingParams, *, client: str = "", grammar: Grammar | None = None
    ) -> Generation:
        self.asked.append((prompt, params))
        self.grammars.append(grammar)
        if self.failure is not None:
            raise self.failure
        return Generation("".join(TEXT), (1, 2, 3, 4), (9,), FinishReason.STOP, None, None, 0.5, 10.0)

    async def stream(
        self, prompt: Any, params: SamplingParams, *, client: str = "", grammar: Grammar | None = None
    ) -> AsyncIterator[Token]:
        self.asked.append((prompt, params))
        self.grammars.append(grammar)
        for i, text in enumerate(TEXT):
            if self.failure is not None and i == 2:
                raise self.failure
            yield Token(text, i, finish_reason=FinishReason.LENGTH if i == 3 else None)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRuntime]:
    module = types.ModuleType("bloombee.runtime")
    module.Runtime = FakeRuntime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bloombee.runtime", module)
    monkeypatch.setattr(FakeRuntime, "made", [], raising=False)
    for name in ("BLOOMBEE_CONFIG", "BLOOMBEE_JOIN", "BLOOMBEE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return FakeRuntime


def test_generate_streams_text_to_stdout_and_the_rest_to_stderr(
    capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]
) -> None:
    arguments = (
        "generate --workers 2 --split 4,4 --dtype float32 --max-new-tokens 7 --temperature 0.5 --seed 3 --stop a --stop -b"
    )
    assert main([*arguments.split(), "--prompt", "hello"]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(TEXT) + "\n"
    assert "w0 (stage 0): loading, 2.0 MB to read\nw0 (stage 0): ready, 2.0 MB in memory" in err
    assert err.count("loading") == 2, "a line for each phase of each worker, not for each report"
    assert "4 tokens" in err
    assert "ended by length" in err
    (runtime,) = fake.made
    assert runtime.config == RuntimeConfig(workers=2, split=(4, 4), dtype="float32")
    assert runtime.asked == [("hello", SamplingParams(max_new_tokens=7, temperature=0.5, seed=3, stop=("a", "-b")))]
    assert runtime.closed


@pytest.mark.parametrize("json", [[], ["--json"]], ids=["text", "json"])
def test_what_the_text_must_be_is_an_option(json: list[str], tmp_path: Path, fake: type[FakeRuntime]) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}', "utf-8")
    assert main(["generate", "--prompt", "x", "--json-schema", str(tmp_path / "schema.json"), *json]) == 0
    assert main(["generate", "--prompt", "x", "--regex", "-[a-z]+", *json]) == 0
    assert [one.grammars for one in fake.made] == [[Grammar.json()], [Grammar.regex("-[a-z]+")]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--json-schema", "no/such"], "cannot read no/such: No such file"),
        (["--json-schema", "/dev/zero"], "cannot read /dev/zero: it has more than"),
        (["--json-schema", __file__], "Extra data"),
        (["--json-schema", "a", "--regex", "b"], "both given"),
        (["--regex", "a(b"], "the grammar (regex) cannot be obeyed"),
        (["--regex", "(?=a)"], "look-around"),
    ],
)
def test_what_no_text_can_be_is_exit_2(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", *options]) == 2
    assert says in capsys.readouterr().err


def test_generate_json_is_one_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    answer = json.loads(out)
    assert list(answer) == [
        "text",
        "token_ids",
        "prompt_token_ids",
        "finish_reason",
        "time_to_first_token_s",
        "tokens_per_s",
        "plan",
    ]
    assert answer["text"] == "".join(TEXT)
    assert answer["finish_reason"] == "stop"
    assert [stage["layers"] for stage in answer["plan"]["stages"]] == [[0, 3], [3, 6], [6, 8]]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_prompt_comes_from_stdin_unchanged(encoding: str, monkeypatch: pytest.MonkeyPatch, fake: type[FakeRuntime]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("two\r\nlines é\n".encode()), encoding=encoding))
    assert main(["generate", "--prompt", "-", "--json"]) == 0
    assert fake.made[0].asked[0][0] == "two\r\nlines é\n"


def test_stdin_that_is_not_utf_8_is_exit_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\xff")))
    assert main(["generate", "--prompt", "-"]) == 2
    assert "the prompt on stdin is not UTF-8 text: invalid start byte at byte 3" in capsys.readouterr().err


def _only_ascii(monkeypatch: pytest.MonkeyPatch, encoding: str = "ascii") -> io.BytesIO:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    return out


ODD = "é 中 😀"


def test_text_that_stdout_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "TEXT", [ODD])
    out = _only_ascii(monkeypatch)
    assert main(["generate", "--prompt", "x"]) == 0
    assert out.getvalue() == b"\\xe9 \\u4e2d \\U0001f600\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("command", ["generate --prompt x --json", "demo --json", "doctor --json"])
def test_json_is_json_in_every_encoding(command: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "TEXT", [ODD])
    monkeypatch.setattr("bloombee.doctor.CHECKS", (lambda: Finding("é", "ok", ODD),))
    out = _only_ascii(monkeypatch, encoding)
    assert main(command.split()) == 0
    answer = json.loads(out.getvalue().decode(encoding))
    assert (answer[0]["found"] if command.startswith("doctor") else answer["text"]) == ODD


def test_a_table_that_stdout_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloombee.doctor.CHECKS", (lambda: Finding("disk", "ok", ODD),))
    out = _only_ascii(monkeypatch)
    assert main(["doctor"]) == 0
    assert b"\\u4e2d" in out.getvalue()


@pytest.mark.parametrize("command", ["generate --prompt x", "generate --prompt x --json", "doctor", "--help"])
def test_when_the_reader_has_gone_the_end_is_quiet(command: str) -> None:
    """As with ``| head -1``: no traceback, nothing at exit, and the Runtime was closed."""
    program = (
        "import sys, types; sys.path[:0] = ['tests/unit']; import test_cli as t\n"
        "module = types.ModuleType('bloombee.runtime'); module.Runtime = t.FakeRuntime; t.FakeRuntime.made = []\n"
        "sys.modules['bloombee.runtime'] = module\n"
        "code = t.main(sys.argv[1:]); assert all(one.closed for one in t.FakeRuntime.made); sys.exit(code)"
    )
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run([sys.executable, "-c", program, *command.split()], stdout=writes, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writes)
    assert done.returncode == 1, done.stderr
    assert "Broken" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_chat_wraps_the_prompt(fake: type[FakeRuntime]) -> None:
    assert main(["generate", "--prompt", "hi", "--chat"]) == 0
    assert fake.made[0].asked[0][0] == [{"role": "user", "content": "hi"}]


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["generate", "--prompt", "x"]) == 0
    assert out.getvalue() == "one two th\ufffd[2Jree\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("generate", "--prompt"),
        ("generate --prompt x --workers many", "--workers"),
        ("generate --prompt x --wurkers 3", "--wurkers"),
        ("generate --prompt x --workers 0", "workers = 0: must be"),
        ("generate --prompt x --split 4,a", "split = '4,a': must be"),
        ("generate --prompt x --split 4,4 --workers 3", "3 whole numbers"),
        ("generate --prompt x --temperature -1", "temperature = -1.0: must be"),
        ("generate --prompt x --top-p 0", "top_p = 0.0: must be"),
        ("generate --prompt x --dtype int8", "dtype = 'int8': must be"),
        ("generate --prompt x --config none.toml", "none.toml: cannot read"),
        ("worker", "join is empty"),
        ("worker --join t --memory lots", "memory_bytes = 'lots': must be a size"),
        ("worker --join t --log-disk 1e18", "log_disk_bytes = '1e18': must be a size"),
        ("worker --join t --log-memory -1", "log_memory_bytes = '-1': must be a size"),
        ("head --workers 0", "workers = 0: must be"),
        ("frobnicate", "frobnicate"),
    ],
)
def test_bad_input_is_exit_2_and_one_sentence(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]
) -> None:
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bloombee: ")
    assert err.count("\n") == 1
    assert says in err
    assert fake.made == [], "bad input must be found before anything starts"


@pytest.mark.parametrize("prompt", ["", "caf\udce9"])
def test_a_prompt_that_is_no_text_is_exit_2(prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", prompt]) == 2
    assert "prompt is" in capsys.readouterr().err


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
@pytest.mark.parametrize(
    ("failure", "code"),
    [(LinkDown("worker 2 is gone"), 1), (ConfigError("the prompt is too long"), 2), (RuntimeError("surprise"), 1)],
)
def test_a_failure_in_the_middle(
    failure: Exception,
    code: int,
    json_flag: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake: type[FakeRuntime],
) -> None:
    monkeypatch.setattr(fake, "failure", failure)
    assert main(["generate", "--prompt", "x", *json_flag]) == code
    out, err = capsys.readouterr()
    assert out == ("" if json_flag else "one two\n")
    assert str(failure) in err
    assert "Traceback" not in err
    assert fake.made[0].closed


@pytest.mark.parametrize("option", ["--top-k", "--max-new-tokens", "--repetition-penalty", "--seed"])
def test_a_number_that_is_missing_is_not_the_next_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", option, "--json"]) == 2
    assert "requires an argument" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]
) -> None:
    monkeypatch.setattr(fake, "failure", LinkDown("worker 2 is gone"))
    if how == "environment":
        monkeypatch.setenv("BLOOMBEE_DEBUG", "1")
    assert main(["generate", "--prompt", "x", *(["--debug"] if how == "option" else [])]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("failure", "code"), [(KeyboardInterrupt(), 130), (asyncio.CancelledError(), 143)])
def test_interrupts_have_their_own_codes(
    failure: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, fake: type[FakeRuntime]
) -> None:
    monkeypatch.setattr(fake, "failure", failure)
    monkeypatch.setattr(fake, "fail_on_open", True)
    assert main(["generate", "--prompt", "x"]) == code


def test_a_config_file_lies_under_the_options(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, fake: type[FakeRuntime]) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[runtime]\nworkers = 2\ndtype = "float16"\n')
    assert main(["generate", "--prompt", "x", "--dtype", "float32", "--config", str(path)]) == 0
    monkeypatch.setenv("BLOOMBEE_CONFIG", str(path))
    assert main(["generate", "--prompt", "x", "--workers", "1"]) == 0
    assert [runtime.config for runtime in fake.made] == [
        RuntimeConfig(workers=2, dtype="float32"),
        RuntimeConfig(workers=1, dtype="float16"),
    ]


def test_demo_prints_what_runs_where(capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]) -> None:
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "3 worker processes" in out
    assert "def decode_bytes(data, encoding='utf-8'):one two" in out
    assert "stage 0 on w0: embedding, layers 0-2 (4.0 MB)" in out
    assert "stage 2 on w2: layers 6-7, norm, LM head, sampler (4.0 MB)" in out
    assert fake.made[0].config == RuntimeConfig(model="demo", workers=3, dtype="float32")


def test_demo_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "--split", "4,4"]) == 0
    assert len(json.loads(capsys.readouterr().out)["plan"]["stages"]) == 2


def test_head_says_how_to_join_and_answers_each_line(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]
) -> None:
    lines = tmp_path / "lines"
    lines.write_text("first\n\nsecond\n")
    with lines.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["head", "--workers", "2", "--json", "--chat", "--listen", "tcp://127.0.0.1:7700"]) == 0
    out, err = capsys.readouterr()
    first, second = fake.made[0].join_tokens
    assert f"bloombee worker --join {first}\n    bloombee worker --join {second}\n" in err
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["".join(TEXT)] * 2
    assert fake.made[0].config == RuntimeConfig(remote_workers=2, listen="tcp://127.0.0.1:7700")
    assert [prompt[0]["content"] for prompt, _ in fake.made[0].asked] == ["first", "second"]


def test_head_says_how_another_worker_joins_when_a_stage_or_a_spare_is_lost(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = SwarmEventKind
    happened = (
        SwarmEvent(kinds.LOST, 0.0, worker=9), SwarmEvent(kinds.UP, 1.0, epoch=1),
        SwarmEvent(kinds.LOST, 2.0, worker=3, stage=1), SwarmEvent(kinds.UP, 3.0, epoch=2), SwarmEvent(kinds.LOST, 4.0, worker=4),
    )  # fmt: skip
    monkeypatch.setattr(fake, "happens", happened)
    lines = tmp_path / "lines"
    lines.write_text("first\n")
    with lines.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["head", "--workers", "2", "--spares", "1"]) == 0
    said = capsys.readouterr().err
    assert said.count("another worker may join as a spare") == 2  # for the stage, and for the spare
    assert said.count("bloombee worker --join") == 2 + 2
    assert f"bloombee worker --join {join_token(99, fake.made[0].config.listen)}" in said


def test_what_becomes_of_a_lost_layer_can_be_said(fake: type[FakeRuntime]) -> None:
    assert main(["generate", "--prompt", "x", "--share-out"]) == 0
    assert fake.made[0].config.share_out


def test_head_ends_at_once_when_nothing_runs_any_more_though_nobody_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]
) -> None:
    happened = (SwarmEvent(SwarmEventKind.UP, 1.0, epoch=1), SwarmEvent(SwarmEventKind.DOWN, 2.0, reason="worker 'bea' is gone"))
    monkeypatch.setattr(fake, "happens", happened)
    readable, writable = os.pipe()
    with os.fdopen(readable) as stdin, os.fdopen(writable, "w"):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["head", "--workers", "2"]) == 1
    assert "bloombee: worker 'bea' is gone\n" in capsys.readouterr().err
    assert fake.made[0].closed


@pytest.mark.parametrize(
    ("listen", "says"),
    [
        ("tcp://127.0.0.1:0", "on this machine (--listen 'tcp://*:7700' "),
        ("tcp://*:7700", "machine that reaches tcp://192.0.2.2:7700"),
    ],
)
def test_head_says_from_where_workers_can_join(
    listen: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]
) -> None:
    with open(os.devnull, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["head", "--workers", "1", "--listen", listen]) == 0
    assert says in capsys.readouterr().err


def test_a_stdin_that_cannot_be_read_is_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]
) -> None:
    with open(os.devnull, "w", encoding="utf-8") as stdin:  # as nohup leaves it at a terminal
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["head", "--workers", "1"]) == 2
    assert "bloombee: stdin cannot be read: Bad file descriptor\n" in capsys.readouterr().err
    assert fake.made[0].closed


@pytest.mark.parametrize("kind", [ConfigError, Infeasible, QueueFull])
def test_head_goes_on_after_a_line_it_cannot_answer(
    kind: type[BloomBeeError],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake: type[FakeRuntime],
) -> None:
    lines = tmp_path / "lines"
    lines.write_text("first\nsecond\n")
    monkeypatch.setattr(fake, "failure", kind("the prompt is too long"))
    with lines.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["head", "--workers", "2", "--json"]) == 0
    assert capsys.readouterr().err.count("the prompt is too long") == 2


def test_head_finishes_the_lines_of_the_head_before_and_notes_its_own(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]
) -> None:
    notes = {"line 3": b"7 goes on", "line 10": b"9 is to begin", "lines": b"10", "other": b"x"}
    monkeypatch.setattr(fake, "notes", notes)
    monkeypatch.setattr(fake, "running", (RunningRequest(5, (9,), "line 3", 2, False), RunningRequest(6, (9,), "", 2, False)))
    lines = tmp_path / "lines"
    lines.write_bytes(b"\nnew\n")
    with lines.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["head", "--workers", "1", "--json", "--state", str(tmp_path)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(answer["id"], answer["position"], answer["text"]) for answer in answers] == [
        (3, 7, "rest"),
        (10, 9, "".join(TEXT)),
        (11, 2, "".join(TEXT)),
    ]
    (runtime,) = fake.made
    assert [prompt for prompt, _ in runtime.asked] == ["is to begin", "new"]
    assert [name for name, value in runtime.noted if value is None] == ["line 3", "line 10", "line 11"]
    assert [noted for noted in runtime.noted if noted[1]] == [("line 11", b"2 new"), ("lines", b"11")]


def test_head_goes_on_after_a_line_that_is_not_utf_8(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: type[FakeRuntime]
) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes("bad \xff\nsecond é\n".encode("latin-1") + "third é\n".encode())
    with lines.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["head", "--workers", "2", "--json"]) == 0
    assert capsys.readouterr().err.count("a line on stdin is not UTF-8 text") == 2
    assert [prompt for prompt, _ in fake.made[0].asked] == ["third é"]


@pytest.mark.parametrize("how", ["option", "environment"])
def test_worker_hands_its_settings_on(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[WorkerConfig] = []
    module = types.ModuleType("bloombee.roles.worker")
    module.run = ran.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bloombee.roles.worker", module)
    arguments = ["worker", "--memory", "2GiB", "--threads", "2", "--listen", "tcp://0.0.0.0:7701"]
    if how == "environment":
        monkeypatch.setenv("BLOOMBEE_JOIN", "t")
    else:
        monkeypatch.setenv("BLOOMBEE_JOIN", "weaker")
        arguments += ["--join", "t"]
    assert main(arguments) == 0
    assert ran == [WorkerConfig(join="t", memory_bytes=2 << 30, threads=2, listen="tcp://0.0.0.0:7701")]


def test_keygen_makes_a_private_file_and_overwrites_nothing(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "worker.key"
    assert main(["keygen", "--out", str(path)]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    first = path.read_text()
    assert main(["keygen", "--out", str(path)]) == 2
    assert f"{path} exists" in capsys.readouterr().err
    assert path.read_text() == first


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_is_exit_0_on_stdout(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out
    assert err == ""


def test_every_command_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("demo", "generate", "worker", "head", "serve", "doctor", "keygen"):
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"Examples:\n  bloombee {name}" in out
        for line in out.partition("Examples:\n")[2].splitlines():
            assert line.startswith("  ")  # none was broken in two: each can be copied to a shell


@pytest.mark.parametrize(
    "words",
    ["generate --prompt x --seed 1.5", "generate --prompt x --workers 2.5", "doctor --profile demo --threads 1.5"],
)
def test_no_number_is_rounded(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    command, option = words.split()[0], words.split()[-2]
    said = capsys.readouterr().err
    assert said.endswith(
        f"Invalid value for {option}: {words.split()[-1]!r} is no whole number (see bloombee {command} --help)\n"
    )


@pytest.mark.parametrize("command", ["generate --prompt x", "generate --prompt x --json", "doctor"])
def test_a_full_disk_under_stdout_is_said_so(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(command.split()) == 1
        monkeypatch.undo()
    assert capsys.readouterr().err.endswith("bloombee: stdout cannot be written: No space left on device\n")


def test_an_argument_that_nothing_takes_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "extra"]) == 2
    assert capsys.readouterr().err == "bloombee: nothing takes 'extra' (see bloombee demo --help)\n"


def test_starting_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "zmq", "numpy")
    program = f"import sys, bloombee.cli as c; c.main(['--help']); print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_worker_that_leaves_before_all_are_there_is_told_with_how_many_are_awaited() -> None:
    out = io.StringIO()
    loading = Loading(out)
    for progress in (
        LoadProgress(1, "far", -1, 0, 0, "joined", 1),
        LoadProgress(1, "far", -1, 0, 0, "left", 2),
        LoadProgress(2, "far", -1, 0, 0, "joined", 1),
        LoadProgress(3, "near", -1, 0, 0, "joined"),
    ):
        loading(progress)
    assert out.getvalue().splitlines() == [
        "far: joined; waiting for 1 worker",
        "far: left; waiting for 2 workers",
        "far: joined; waiting for 1 worker",
        "near: joined",
    ]


def test_what_is_known_of_workers_and_links_before_the_plan_is_told() -> None:
    out, terminal = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    plain, bars = Loading(out), Loading(terminal)
    for known, phase in ((0, "measuring"), (1, "measuring"), (3, "measuring"), (4, "measuring"), (5, "measured")):
        for loading in (plain, bars):
            loading(LoadProgress(1, "far", -1, 0, 0, phase, num_known_links=known, num_links=5))
    bars.close()
    assert out.getvalue().splitlines() == [
        "far: measuring, 0 of 5 links known",
        "far: measuring, 3 of 5 links known",
        "far: measured, 5 of 5 links known",
    ]
    assert "5/5 links" in terminal.getvalue()
