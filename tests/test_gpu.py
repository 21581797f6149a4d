"""`make test-gpu` and `make bench-gpu`: what they say without a GPU, and that a check which is not met fails them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu


def test_without_a_gpu_one_line_says_so_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for what in ("check", "bench"):
        assert gpu.main([what, "--out", str(tmp_path / "found.json")]) == 0
        assert capsys.readouterr().out.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_was_found_is_written_at_once_and_an_error_or_a_miss_is_a_row(tmp_path: Path) -> None:
    report = gpu.Report(tmp_path / "found.json", {"device": "none"})
    report.add("met", found=1.0, bound=2.0, passed=True)
    report.part("broken", lambda: (_ for _ in ()).throw(RuntimeError("no such kernel")).__next__())
    report.began -= 1000
    report.part("late", lambda: pytest.fail("it was run"))
    written = json.loads((tmp_path / "found.json").read_text())
    assert [row["what"] for row in written["rows"]] == ["met", "broken", "late"]
    assert written["rows"][1]["passed"] is False
    assert "no such kernel" in report.markdown()


def test_a_check_that_is_not_met_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for passed in (True, False):

        class Made:
            """Checks of one bound."""

            def __init__(self, lab: Any, report: Any, passed: bool = passed) -> None:
                self.report, self.passed = report, passed

            def __getattr__(self, part: str) -> Any:
                return lambda: self.report.add(part, found=1.0, bound=2.0, passed=self.passed)

        for name, made in (("trained", lambda device, small: ({}, b"")), ("Lab", lambda *_: None), ("Checks", Made)):
            monkeypatch.setattr(gpu, name, made)
        command = ["check", "--device", "cpu", "--only", gpu.PARTS["check"][0], "--out", str(tmp_path / "found.json")]
        assert gpu.main(command) == int(not passed)


def test_operations_of_a_pass_are_two_a_multiply_add() -> None:
    description, content = gpu.trained(torch.device("cpu"), small=True, epochs=0)
    lab = gpu.Lab(description, content, torch.device("cpu"), 10)
    # A 5x5 convolution to 16x16, two 3x3 ones to 8x8 and 4x4 with widths 8, 16, 32, and the linear layer.
    by_hand = 16 * 16 * 8 * 75 + 8 * 8 * 16 * 72 + 4 * 4 * 32 * 144 + 32 * 10
    assert gpu.flops_of(lab.plain, lab.x) == 2 * by_hand
