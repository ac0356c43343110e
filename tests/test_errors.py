"""How commands end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tfjoint.errors import UserError, run_or_exit


def ending(error: BaseException, capsys) -> tuple[int, str]:
    def entry() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_or_exit(entry)
    return stopped.value.code, capsys.readouterr().err


def test_a_users_mistake_is_one_line_and_code_2(capsys):
    assert ending(UserError("views must be 1"), capsys) == (2, "error: views must be 1\n")


def test_what_the_system_refuses_is_one_line_and_code_2(capsys):
    error = PermissionError(13, "Permission denied", "records/manifest.json")
    code, said = ending(error, capsys)
    assert code == 2 and said.count("\n") == 1
    assert "Permission denied: 'records/manifest.json'" in said


def test_an_interrupt_is_one_line_and_code_130(capsys):
    handler = signal.getsignal(signal.SIGINT)
    try:
        code, said = ending(KeyboardInterrupt(), capsys)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # the end is not disturbed
    finally:
        signal.signal(signal.SIGINT, handler)
    assert code == 130
    assert said.count("\n") == 1 and "goes on" in said


def test_where_nobody_reads_on_it_ends_without_a_word():
    code = "from tfjoint.errors import run_or_exit; run_or_exit(lambda: print('x' * 10**6))"
    script = f'set -o pipefail; "{sys.executable}" -c "{code}" | head -c 1'
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (141, "x", "")


def test_any_other_error_keeps_its_traceback():
    def entry() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run_or_exit(entry)
