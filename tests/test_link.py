"""The example of a link: what its faults do, what it shows, and that it ends by itself."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import runs

from tfjoint import split
from tfjoint.station import DAMAGED, REFINED, Arrival

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("own_determinism")

PATH = runs.ROOT / "examples" / "link.py"
FAST = 1e9  # bytes per second


def _load():
    spec = importlib.util.spec_from_file_location("link", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["link"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


link = _load()


class Wire:
    """The other end of a link: keeps what arrives."""

    def __init__(self) -> None:
        self.arrived: list[bytes] = []
        self.open = True

    def send_bytes(self, data: bytes) -> None:
        self.arrived.append(data)

    def close(self) -> None:
        self.open = False


def packets(count: int) -> list[bytes]:
    return [bytes([index // 256, index % 256]) * 20 for index in range(count)]


def through(sent: list[bytes], **faults) -> list[bytes]:
    wire = Wire()
    end = link.Link(wire, link.Faults(FAST, **faults))
    for data in sent:
        end.send(data)
    end.close()
    assert not wire.open
    return wire.arrived


def test_a_good_link_changes_nothing():
    assert through(packets(50)) == packets(50)


def test_as_many_are_lost_as_is_said_and_the_same_ones_each_time():
    sent = packets(4000)
    arrived = through(sent, loss=0.3)
    assert abs(len(arrived) / len(sent) - 0.7) < 0.03
    assert set(arrived) < set(sent)
    assert through(sent, loss=0.3) == arrived != through(sent, loss=0.3, seed=1)
    assert through(sent, loss=1) == []


def test_as_many_bits_flip_as_is_said():
    sent = packets(400)
    arrived = through(sent, bit_errors=0.01)
    difference = np.frombuffer(b"".join(sent), np.uint8) ^ np.frombuffer(
        b"".join(arrived), np.uint8
    )
    assert abs(np.unpackbits(difference).mean() - 0.01) < 0.001


def test_what_is_late_comes_after_the_next_one_and_nothing_gets_lost_by_it():
    sent = packets(1000)
    arrived = through(sent, reorder=0.2)
    assert sorted(arrived) == sorted(sent) and arrived != sent
    places = np.array([arrived.index(data) for data in sent]) - np.arange(len(sent))
    assert set(places) == {-1, 0, 1}
    assert 0.12 < (places == 1).mean() < 0.22
    assert sorted(through(sent, reorder=1)) == sorted(sent)


def test_a_fault_does_not_move_the_others():
    sent = packets(200)
    lossy = through(sent, loss=0.2)
    assert through(sent, loss=0.2, reorder=0.0) == lossy
    assert sorted(through(sent, loss=0.2, reorder=0.5)) == lossy


def test_a_packet_takes_the_time_that_its_bytes_need():
    end = link.Link(Wire(), link.Faults(bytes_per_second=400))
    start = time.monotonic()
    end.send(bytes(40))
    assert time.monotonic() - start >= 0.1


# --- What is shown --------------------------------------------------------------------------------


def _example(seed: int = 0) -> SimpleNamespace:
    cells = np.random.default_rng(seed).random((32, 32, 32)) < 0.1
    return SimpleNamespace(voxels=cells, object_id="mug", category="cup")


def _arrival(**changes) -> Arrival:
    occupancy = np.full((32, 32, 32), 0.5, np.float32)
    return Arrival(REFINED, 0, 2, (0, 2), None, occupancy)._replace(**changes)


@pytest.mark.parametrize(("columns", "lines"), [(200, 60), (80, 24), (70, 20)])
def test_the_picture_fits_the_terminal(columns, lines):
    drawn = link.blocks(np.ones((32, 32, 32), bool), _example().voxels, columns, lines)
    assert len(drawn) <= lines
    for line in drawn:
        shown = re.sub(r"\x1b\[[\d;]*m", "", line)
        assert set(shown) == {link.BLOCK} and 20 < len(shown) <= columns
        assert line.endswith("\x1b[0m")


def test_a_picture_of_a_shape_differs_from_that_of_none():
    none, one = np.zeros((32, 32, 32), bool), np.zeros((32, 32, 32), bool)
    one[10:20, 10:20, 10:20] = True
    assert link.blocks(none, none, 80, 40) != link.blocks(one, none, 80, 40)


def test_a_picture_is_drawn_over_the_one_before(capsys):
    screen = link.Screen(draws=True)
    screen.show(_arrival(), _example())
    first = capsys.readouterr().out
    height = len(first.splitlines())
    over = f"\x1b[{height}A\x1b[J"
    for missing in range(1, 4):  # whatever is damaged, the picture stays below one line about it
        screen.show(Arrival(DAMAGED, reason="cut off"), None, missing)
        picture = first.partition("\n")[2]
        said = f"of no use: cut off; {missing} missing so far"
        assert capsys.readouterr().out == f"{over}{said}\n{picture}"
    screen.show(_arrival(), _example())
    assert capsys.readouterr().out == f"{over}{first}"


def test_without_a_terminal_there_is_a_line_for_each_arrival(capsys):
    screen = link.Screen(draws=False)
    screen.show(_arrival(), None)
    screen.show(Arrival(DAMAGED, reason="cut off"), None, 2)
    assert capsys.readouterr().out == (
        "object 0 view 2 refined: 2 arrived\nof no use: cut off; 2 missing so far\n"
    )


def test_missing_is_what_was_sent_before_and_has_not_arrived():
    damaged = Arrival(DAMAGED)
    found = [_arrival(view=0), _arrival(view=3)]
    assert link.missing_so_far([damaged], views=5) == 0
    assert link.missing_so_far(found, views=5) == 2
    assert link.missing_so_far([found[0], damaged, found[1]], views=5) == 1
    late = [_arrival(object_number=1, view=2), _arrival(object_number=1, view=1)]
    assert link.missing_so_far(late, views=5) == 6


def test_what_is_damaged_later_does_not_make_up_for_what_is_missing():
    arrivals = [_arrival(view=0), _arrival(view=3)]
    counts = [link.missing_so_far([*arrivals, *[Arrival(DAMAGED)] * n], views=9) for n in range(4)]
    assert counts == [2, 2, 2, 2]


def test_a_summary_says_of_how_many_objects_there_is_nothing():
    arrivals = [_arrival(), Arrival(DAMAGED)]
    said = link.summary(arrivals, [_example(0), _example(1)], views=2)
    assert said.startswith("4 packets sent, 2 lost, 1 damaged; mIoU 0.")
    assert said.endswith(" of 1 object; nothing of 1 object")


def test_a_line_says_what_arrived():
    example = _example()
    iou = example.voxels.mean()  # of everything occupied
    assert link.describe(_arrival(total=5), example) == (
        f"object 0 view 2 refined: 2 of 5 arrived, IoU {iou:.3f}, mug"
    )
    assert link.describe(_arrival(), None) == "object 0 view 2 refined: 2 arrived"


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ends(exported, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("ends")
    split.split(exported, output)
    return output


def command(ends: Path, *flags: str) -> list[str]:
    return [sys.executable, str(PATH), f"--ends={ends}", f"--bytes_per_second={FAST / 1e5}", *flags]


@pytest.mark.slow
def test_two_processes_end_in_the_shapes_that_arrived_and_a_page(ends, tmp_path):
    flags = ("--objects=2", "--views=3", "--iterations=2", "--loss=0", "--reorder=0.5")
    result = runs.finish(command(ends, *flags, f"--page={tmp_path / 'page.html'}"))
    assert result.returncode == 0, result.stderr
    first, *lines, total, page = result.stdout.splitlines()
    assert first.startswith(f"starting both ends: {ends}")
    assert page == f"page: {tmp_path / 'page.html'}"
    assert "object-012: 3 of 3 views came" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(lines) == 6 and all(" refined: " in line for line in lines)
    last = {line.split()[1]: float(re.search(r"IoU ([\d.]+)", line)[1]) for line in lines}
    assert total == (
        f"6 packets sent, 0 lost, 0 damaged; mIoU {np.mean(list(last.values())):.3f} of 2 objects"
    )


@pytest.mark.slow
def test_ctrl_c_ends_both_with_one_word(ends):
    with subprocess.Popen(
        command(ends, "--bytes_per_second=1"),
        cwd=runs.ROOT,
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline().startswith("starting")
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, error) == (130, "interrupted\n")


@pytest.mark.slow
def test_nothing_but_damage_ends_as_well(ends):
    result = runs.finish(command(ends, "--objects=1", "--views=2", "--loss=0", "--bit_errors=0.5"))
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.splitlines()[-1] == "2 packets sent, 0 lost, 2 damaged; nothing of 1 object"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--loss=1.5", "loss must be in [0, 1]. Received: 1.5"),
        ("--objects=0", "objects must be in (0, 65536)"),
        ("--ends=nowhere", "no camera end in nowhere: python -m tfjoint.split writes it"),
        ("--views=9", "views"),
        ("--page=x.txt", "a page is an .html file"),
    ],
)
def test_wrong_flags_are_one_line(ends, flag, words):
    assert words in runs.refusal([*command(ends), flag])
