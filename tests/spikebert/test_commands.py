"""What becomes of a command that goes wrong: exit code and one line."""

import os
import signal
import sys

import pytest

from spikebert.commands import (
    CheckFailed,
    UserError,
    extra_of,
    missing_extra,
    output_kept_clean,
    run_command,
    write_json,
    write_output,
)


def raising(error: BaseException):
    def body(argv):
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("x.tsv, line 3: no label. Add one"), 2, "error: x.tsv, line 3: no label. Add one"),
        (CheckFailed("2 nodes are illegal"), 1, "error: 2 nodes are illegal"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError("No module named 'lava'", name="lava"), 2, "pip install 'spikebert[lava]'"),
        (ModuleNotFoundError("No module named 'torch.x'", name="torch.x"), 2, "pip install 'spikebert[train]'"),
        (
            ModuleNotFoundError("No module named 'zzz'", name="zzz"),
            3,
            "error: ModuleNotFoundError: No module named 'zzz'",
        ),
        (OSError(28, "No space left on device"), 3, "No space left on device (--debug prints the traceback)"),
        (ValueError(), 3, "error: ValueError (--debug prints the traceback)"),
        (SystemExit(0), 0, ""),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
        (SystemExit("stop"), 2, ""),
    ],
)
def test_what_happens_becomes_an_exit_code_and_one_line(error, code, line, capsys):
    assert run_command(raising(error), []) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert line in captured.err
    assert captured.err.count("\n") <= 1


def test_the_body_gets_its_arguments_and_gives_the_code():
    assert run_command(lambda argv: len(argv), ["a", "b"]) == 2


def test_debug_adds_the_traceback(capsys):
    assert run_command(raising(ValueError("x")), ["--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_sigterm_is_an_interrupt_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)

    def body(argv):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert run_command(body, []) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_extras_are_found_by_the_longest_name():
    assert extra_of("lava.magma.core") == "lava"
    assert extra_of("lava.lib.dl.slayer") == "lava-dl"
    assert extra_of("numpy") is None
    assert "spikebert[hub]" in str(missing_extra("datasets"))


def test_output_kept_clean_sends_python_and_children_to_standard_error(capfd):
    with output_kept_clean():
        print("from python")
        os.system("echo from a child")
    write_json({"answer": 1})
    captured = capfd.readouterr()
    assert captured.out == '{"answer": 1}\n'
    assert "from python" in captured.err
    assert "from a child" in captured.err


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        write_json({"accuracy": float("nan")})


def test_what_a_terminal_cannot_show_is_escaped(capsys, monkeypatch):
    class Ascii:
        encoding = "ascii"

        def __init__(self, stream):
            self.write, self.flush = stream.write, stream.flush

    monkeypatch.setattr(sys, "stdout", Ascii(sys.stdout))
    write_output("schön")
    monkeypatch.undo()
    assert capsys.readouterr().out == "sch\\xf6n\n"
