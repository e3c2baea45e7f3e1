"""The socket at which a head answers its user's other programs: where it is, who may ask, what is left behind."""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from reception_kit import STATUS, TOLD, all_that_comes, always, call, reception

from bloombee.cli import main
from bloombee.config import socket_folders
from bloombee.errors import LinkDown, RemoteProtocolError, RuntimeClosed, VersionMismatch
from bloombee.plan.document import from_json
from bloombee.roles.questions import Question, answer_line, question_line, read_answer, read_question, sockets_in
from bloombee.roles.running_heads import ask, running_heads

GOLDEN = Path(__file__).parents[1] / "golden" / "topology.json"
DEAD = 2**22 + 1
"""No system gives a process a higher number than 2^22."""


def only_socket(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def closed(_: str = "") -> Any:
    raise RuntimeClosed("not up yet")


def test_a_head_answers_what_is_asked_again_and_again_on_one_connection(tmp_path: Path) -> None:
    with reception([tmp_path], {**TOLD, "names": always(["a", "é"])}):
        with call(only_socket(tmp_path)) as caller, caller.makefile("rb") as lines:
            for what, answer in (("names", ["a", "é"]), ("status", STATUS), ("names", ["a", "é"])):
                caller.sendall(question_line(what))
                assert read_answer(lines.readline()) == answer
        assert ask(only_socket(tmp_path), "status") == STATUS


def test_an_error_comes_as_the_error_it_is(tmp_path: Path) -> None:
    with reception([tmp_path], {**TOLD, "plan": closed, "late": lambda _: closed}):
        path = only_socket(tmp_path)
        for what in ("plan", "late"):
            with pytest.raises(RuntimeClosed, match="not up yet"):
                ask(path, what)
        with pytest.raises(RemoteProtocolError, match="'weather' is nothing to ask; there are status, plan, late"):
            ask(path, "weather")


def test_the_socket_is_its_users_alone_and_goes_with_the_head(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "heads"
    with reception([folder]), reception([folder]):
        paths = sorted(folder.iterdir(), key=lambda path: len(path.name))
        assert [path.name for path in paths] == [f"{os.getpid()}.sock", f"{os.getpid()}-2.sock"]
        assert [stat.S_IMODE(path.lstat().st_mode) for path in (folder, *paths)] == [0o700, 0o600, 0o600]
        assert [head.name for head in running_heads([folder])] == [f"{os.getpid()}-2", f"{os.getpid()}"]
    assert list(folder.iterdir()) == []
    with pytest.raises(LinkDown):
        ask(paths[0], "status")


def test_a_path_too_long_for_a_socket_is_none_for_a_head(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["long" * 10] * 4)
    with reception([folder]):
        (head,) = running_heads([folder])
        assert head.ask("status") == STATUS
        assert len(os.fsencode(head.path)) > 107
    assert list(folder.iterdir()) == []


def test_a_folder_that_will_not_do_is_left_for_the_next_and_none_is_a_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    everybodys, no_folder, good = tmp_path / "open", tmp_path / "file", tmp_path / "good"
    everybodys.mkdir()
    everybodys.chmod(0o777)
    no_folder.write_text("")
    with reception([everybodys, no_folder / "heads", good]):
        assert [head.path.parent for head in running_heads([everybodys, no_folder, good])] == [good]
    assert list(everybodys.iterdir()) == []
    with caplog.at_level(logging.WARNING), reception([everybodys, no_folder / "heads"]):
        pass
    assert "no other program can ask this head" in caplog.text
    assert f"{everybodys}: others may write there" in caplog.text


def test_what_dead_heads_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left, other, lives = (tmp_path / f"{name}.sock" for name in (DEAD, DEAD + 1, os.getppid()))
    listeners = []
    for path in (left, other, lives):
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(str(path))
    listeners[1].listen()  # somebody answers, in another container perhaps
    listeners[0].close()
    notes = [tmp_path / name for name in ("notes", f"{DEAD}.sock.txt", f"{DEAD + 2}.sock")]
    for note in notes:
        note.write_text("")
    assert sockets_in(tmp_path) == sorted([other, lives])
    assert sorted(tmp_path.iterdir()) == sorted([*notes, other, lives])
    for listener in listeners:
        listener.close()
    with reception([tmp_path]):
        assert [head.name for head in running_heads([tmp_path])] == [str(os.getpid())]
    assert sorted(tmp_path.iterdir()) == sorted([*notes, lives])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", RemoteProtocolError),
        (b"[]\n", RemoteProtocolError),
        (b"\xff\n", RemoteProtocolError),
        (b"[" * 100_000, RemoteProtocolError),
        (b'{"version":2,"program":"9.0","answer":1}\n', VersionMismatch),
        (b'{"version":1,"program":"9.0","error":{"code":"LinkDown","fields":{"message":"gone"}}}\n', LinkDown),
    ],
)
def test_what_is_no_answer_is_an_error(line: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_answer(line)


def test_lines_are_read_as_they_were_written() -> None:
    assert read_question(question_line("plan")) == Question(1, "plan")
    assert read_question(question_line("drain", "far")).about == "far"
    assert question_line("plan") == b'{"version":1,"ask":"plan"}\n'  # as programs that know no "about" read it
    assert read_answer(answer_line({"a": [1, None]})) == {"a": [1, None]}
    with pytest.raises(VersionMismatch, match="a question of version 2; this head speaks 1"):
        read_question(b'{"version": 2, "ask": "plan"}')


def test_the_folders_are_those_of_the_users_session_and_of_his_cache() -> None:
    assert socket_folders({"XDG_RUNTIME_DIR": "/run/user/7", "XDG_CACHE_HOME": "/c"}) == (
        Path("/run/user/7/bloombee"),
        Path("/c/bloombee/heads"),
    )
    assert socket_folders({"XDG_RUNTIME_DIR": "not/absolute", "XDG_CACHE_HOME": "/c"}) == (Path("/c/bloombee/heads"),)


# -- bloombee plan without a file --------------------------------------------------------------


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user with nothing running."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "run" / "bloombee"


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_only_head_there_is_is_planned_for(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from_file = planned(capsys, str(GOLDEN))
    with reception([session], {**TOLD, "topology": always(from_json(GOLDEN.read_text()))}):
        assert planned(capsys) == planned(capsys, "--head", str(os.getpid())) == from_file


def test_what_a_head_knows_can_be_kept(session: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with reception([session], {**TOLD, "topology": always(from_json(GOLDEN.read_text()))}):
        said = planned(capsys, "--save", str(tmp_path / "kept.json"))
        assert planned(capsys, "--save", str(tmp_path))[0] == 2
    assert (tmp_path / "kept.json").read_text() == GOLDEN.read_text()
    assert planned(capsys, str(tmp_path / "kept.json")) == said


def test_of_no_head_and_of_several_it_is_said_what_to_do(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = planned(capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "none of this user runs here: start one (bloombee head), or give a file" in err
    with reception([session]), reception([session]):
        code, _, err = planned(capsys)
        assert code == 2
        assert f"say which with --head: there are {os.getpid()}-2 (demo, 2 workers), {os.getpid()} (demo, 2 workers)" in err
        code, _, err = planned(capsys, "--head", "7")
        assert code == 2
        assert "no head '7' answers; there are" in err
    assert planned(capsys, str(GOLDEN), "--head", "7")[0] == 2


def test_a_head_that_waits_for_workers_says_so(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reception([session], {**TOLD, "topology": closed}):
        assert planned(capsys) == (1, "", "bloombee: not up yet\n")


def test_a_head_that_says_nonsense_is_named(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reception([session], {**TOLD, "topology": always({"version": 1, "nodes": {"head": {"delay_s": -1}}})}):
        code, _, err = planned(capsys)
    assert code == 1
    assert "the head's topology is none: nodes.head.delay_s = -1" in err


def test_what_is_no_head_is_passed_over(session: Path) -> None:
    session.mkdir(parents=True, mode=0o700)
    with reception([session], {"status": always("what?")}):
        assert running_heads([session]) == []
        with call(only_socket(session)) as caller:
            caller.sendall(b"?\n")
            assert b"not a question" in all_that_comes(caller)
