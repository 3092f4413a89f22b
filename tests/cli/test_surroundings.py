"""What surrounds a command: signals, and the settings of JAX and Matplotlib."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtransfer.runs.compare import compare_runs
from support.report_runs import attribution_run

_WAITING = """
import time, sys
from pathlib import Path
from jaxtransfer.cli.app import app, main
from jaxtransfer.files import atomic_write

@app.command()
def wait(file: Path) -> None:
    with atomic_write(file) as partial:
        partial.write_text("half")
        print("ready", flush=True)
        time.sleep(60)

sys.argv[1:] = ["wait", "whole.txt"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_in_one_line_and_leaves_nothing_half_written(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, printed = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert printed == "Interrupted. Start the same command again to resume where it stopped.\n"
    assert not any(tmp_path.iterdir())


def test_nohup_is_respected(tmp_path: Path) -> None:
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + _WAITING.replace(
        "time.sleep(60)", "signal.raise_signal(signal.SIGHUP)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, timeout=30)
    assert (tmp_path / "whole.txt").read_text() == "half"


def _run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxtransfer", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, check=False, capture_output=True, text=True, timeout=60
    )


def test_a_wrong_platform_of_jax_ends_in_one_sentence(tmp_path: Path) -> None:
    ended = _run(tmp_path, "affinity", "ZOO", "PHOTOS", "--out", "RUN", JAX_PLATFORMS="abacus")
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: JAX does not start with JAX_PLATFORMS='abacus'; unset it or correct it. ")


@pytest.mark.slow
def test_figures_do_not_depend_on_the_settings_of_matplotlib(tmp_path: Path) -> None:
    for name in "ab":
        attribution_run(tmp_path / name, ["one", "two", "three", "four"], maps=False)
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "matplotlibrc").write_text("backend: nonsense\nfont.size: large\nsavefig.dpi: 20\n")
    compare_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "plain")
    wrong = {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": str(tmp_path / "settings")}
    strange = _run(tmp_path, "compare", "a", "b", "--out", "strange", **wrong)
    assert (strange.returncode, strange.stderr) == (0, ""), strange.stderr
    figures = sorted((tmp_path / "plain").glob("*.png"))
    assert figures
    for figure in figures:
        assert (tmp_path / "strange" / figure.name).read_bytes() == figure.read_bytes()
