"""The command line with real processes: what it prints, how it ends, and that it leaves nobody behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch
from process_kit import BLOOMBEE, ENVIRONMENT
from transformers import AutoModelForCausalLM, AutoTokenizer

from bloombee.demo import PARAMS, PROMPT

MODEL = Path(__file__).parents[2] / "bloombee" / "demo_model" / "target"
DRAFT = str(MODEL.parent / "draft")
JSON_FIELDS = {"text", "token_ids", "prompt_token_ids", "finish_reason", "time_to_first_token_s", "tokens_per_s", "plan"}


def bloombee(*arguments: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BLOOMBEE, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def reference() -> tuple[list[int], list[int], str]:
    """(prompt ids, output ids, output text) of the demo by transformers alone, fp32, greedy."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    prompt = tokenizer(PROMPT)["input_ids"]
    out = model.generate(torch.tensor([prompt]), max_new_tokens=PARAMS.max_new_tokens, do_sample=False)[0].tolist()
    new = out[len(prompt) :]
    return prompt, new, tokenizer.decode(new, skip_special_tokens=True)


def test_demo_prints_what_transformers_alone_generates(reference: tuple[list[int], list[int], str]) -> None:
    _, _, text = reference
    done = bloombee("demo")
    assert done.returncode == 0, done.stderr
    assert PROMPT + text in done.stdout
    assert "stage 2 on " in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [["demo", "--split", "2,4,2"], ["generate", "--workers", "1", "--dtype", "float32"]])
def test_json_is_one_line_with_the_same_tokens(options: list[str], reference: tuple[list[int], list[int], str]) -> None:
    prompt, new, text = reference
    if options[0] == "generate":
        options = [*options, "--prompt", PROMPT, "--max-new-tokens", str(PARAMS.max_new_tokens)]
    done = bloombee(*options, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    answer = json.loads(done.stdout)
    assert set(answer) == JSON_FIELDS
    assert answer["prompt_token_ids"] == prompt
    assert answer["token_ids"] == new
    assert answer["text"] == text
    assert answer["finish_reason"] == "stop"


def test_prompt_from_stdin_and_stop_string() -> None:
    done = bloombee(
        "generate", "--workers", "1", "--dtype", "float32", "--prompt", "-", "--stop", "data)", "--json", stdin=PROMPT
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["text"] == "\n    return data.decodebytes("
    assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "./no/such/folder", "--prompt", "x"], "no/such/folder"),
        (["--prompt", "x" * 30_000], "2048"),
        (["--prompt", "x", "--workers", "9"], "8 layers"),
        (["--prompt", "x", "--split", "3,3,3"], "8 layers"),
        (["--prompt", "x", "--chat", "--workers", "2", "--model", DRAFT], "no chat template"),
    ],
)
def test_bad_input_is_exit_2_and_a_sentence(arguments: list[str], says: str) -> None:
    done = bloombee("generate", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def _hear_ctrl_c() -> None:
    """A test run started in the background ignores Ctrl-C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_every_process(number: signal.Signals, code: int) -> None:
    command = [*BLOOMBEE, "generate", "--prompt", PROMPT, "--max-new-tokens", "1900", "--ignore-eos", "--dtype", "float32"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, preexec_fn=_hear_ctrl_c
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(8), process.stderr.read().decode()  # text is streaming: everybody is up
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert b"Traceback" not in stderr
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_a_reader_who_has_had_enough_ends_every_process_quietly() -> None:
    command = [*BLOOMBEE, "generate", "--prompt", PROMPT, "--max-new-tokens", "1900", "--ignore-eos", "--dtype", "float32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(8), process.stderr.read().decode()
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(timeout=30) == 1
    assert b"Traceback" not in stderr
    assert b"Exception" not in stderr
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_head_and_workers_meet_by_token() -> None:
    head = subprocess.Popen(
        [*BLOOMBEE, "head", "--workers", "2", "--split", "4,4", "--dtype", "float32", "--json", "--max-new-tokens", "8"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    workers: list[subprocess.Popen[str]] = []
    watchdog = threading.Timer(120, head.kill)  # so that a head that says nothing fails the test instead of holding it
    watchdog.start()
    try:
        assert head.stdin is not None
        assert head.stdout is not None
        assert head.stderr is not None
        tokens: list[str] = []
        while len(tokens) < 2:
            line = head.stderr.readline()
            assert line, "the head ended before it printed its tokens"
            if "--join" in line:
                tokens.append(line.split()[-1])
        for i, token in enumerate(tokens):
            command = [*BLOOMBEE, "worker", "--name", f"w{i}", "--threads", "1"]
            workers.append(
                subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**ENVIRONMENT, "BLOOMBEE_JOIN": token})
            )
        head.stdin.write(f"{PROMPT}\n\nimport os\n")
        head.stdin.flush()
        answers = [json.loads(head.stdout.readline()) for _ in range(2)]
        assert answers[0]["text"].startswith("\n    return data.decodebytes(")
        assert {stage["name"] for stage in answers[1]["plan"]["stages"]} == {"w0", "w1"}
        head.stdin.close()
        assert head.wait(timeout=30) == 0
        for worker in workers:
            assert worker.wait(timeout=30) == 0, worker.stderr and worker.stderr.read()
    finally:
        watchdog.cancel()
        for process in (head, *workers):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def test_a_program_that_embeds_the_runtime_has_not_imported_torch() -> None:
    program = (
        "import sys, bloombee\n"
        "with bloombee.Runtime.sync('demo', workers=1, dtype='float32') as rt: rt.generate('import', max_new_tokens=2)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_a_wrong_join_token_is_exit_2() -> None:
    done = bloombee("worker", "--join", "bb1-nonsense")
    assert done.returncode == 2, done.stderr
    assert "token" in done.stderr
    assert "Traceback" not in done.stderr


COMPUTES = """
import sys, threading, torch
import bloombee.roles.worker as worker
from bloombee.cli import main

def serve(_):
    computes = threading.Event()
    def compute():
        matrix = torch.ones(200, 200)
        while True:
            matrix @ matrix
            computes.set()
    for _ in range(3):
        threading.Thread(target=compute, daemon=True).start()
    computes.wait()

worker.run = serve
sys.argv = ["bloombee", "worker", "--join", "t"]
sys.exit(main())
"""


def test_a_worker_that_ends_while_it_computes_is_not_aborted() -> None:
    done = subprocess.run([sys.executable, "-c", COMPUTES], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")


INTERRUPTED = """
import os, signal, sys

class CtrlC:
    def find_spec(name, path, target=None):
        if name == "cyclopts":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC)
sys.argv = ["bloombee", "--version"]
from bloombee.__main__ import run
sys.exit(run())
"""


@pytest.mark.parametrize(("heeded", "code"), [(signal.SIG_DFL, -signal.SIGINT), (signal.SIG_IGN, 0)])
def test_ctrl_c_while_the_command_is_imported_ends_it_without_a_word(heeded: signal.Handlers, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, heeded),
    )
    assert (done.returncode, done.stderr) == (code, "")


def test_a_draft_that_is_no_model_is_said_before_anything_starts(tmp_path: Path) -> None:
    done = bloombee("generate", "--prompt", "x", "--draft", str(tmp_path))
    assert done.returncode == 2
    assert f"draft = {tmp_path}: no model in {tmp_path}" in done.stderr
    assert "its directory or hub id" in done.stderr
    assert "local-0" not in done.stderr
