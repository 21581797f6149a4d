"""`mi-ray cluster check` finds each thing that a Slurm script must not become."""

from pathlib import Path

import pytest
from helpers.cluster_files import errors_of, replaced, text_of, warnings_of

from mi_ray.launch.check import check_cluster_file
from mi_ray.launch.rules import authentication

SLURM = {
    "no authentication": ("RAY_AUTH_MODE=token", "OTHER=token", "got no RAY_AUTH_MODE"),
    "a dashboard on all interfaces": (
        "--dashboard-host=127.0.0.1",
        "--dashboard-host=0.0.0.0",
        "--dashboard-host must be 127.0.0.1",
    ),
    "a time limit that comes too late": (
        "#SBATCH --time=24:00:00\n",
        "true\n#SBATCH --time=24:00:00\n",
        "--time must be given",
    ),
    "no time limit": ("#SBATCH --time=24:00:00\n", "", "--time must be given"),
    "nothing that ends Ray": ("trap finish EXIT", ": finish EXIT", "`trap … EXIT` must end Ray's steps"),
    "no head": ("ray start --head", "ray start", "must start the head"),
}


@pytest.mark.parametrize("what", SLURM)
def test_a_slurm_script_is_refused_with(what: str, tmp_path: Path) -> None:
    old, new, message = SLURM[what]
    found = errors_of(replaced(tmp_path, "cluster/slurm.sh", old, new))
    assert [line for line in found if message in line], found


@pytest.mark.parametrize(
    "written", ["#SBATCH -t 24:00:00\n", "#SBATCH --exclusive --time 24:00:00  # a day\n", "#SBATCH -t24:00:00\n"]
)
def test_options_are_read_as_slurm_reads_them(written: str, tmp_path: Path) -> None:
    text = text_of("cluster/slurm.sh")
    assert errors_of(replaced(tmp_path, "cluster/slurm.sh", "#SBATCH --time=24:00:00\n", written)) == []
    assert "#SBATCH --time=24:00:00\n" in text


@pytest.mark.parametrize("odd", ['#SBATCH --comment ""', "#SBATCH --job-name=don't", "#SBATCH --comment=a\\"])
def test_odd_lines_of_options_are_no_error(odd: str, tmp_path: Path) -> None:
    assert (
        errors_of(replaced(tmp_path, "cluster/slurm.sh", "#SBATCH --time=24:00:00", f"{odd}\n#SBATCH --time=24:00:00"))
        == []
    )


def test_a_complaint_about_a_slurm_script_names_the_line_where_its_command_begins(tmp_path: Path) -> None:
    text = text_of("cluster/slurm.sh")
    path = tmp_path / "slurm.sh"
    path.write_text(f"{text}one \\\n  two \\\n  three\nray \\\n  stop\n", encoding="utf-8")
    (found,) = [complaint for complaint in check_cluster_file(path)[1] if "`ray stop`" in complaint.text]
    assert found.where == f"line {len(text.splitlines()) + 4}"


def test_a_slurm_script_that_stops_every_ray_of_its_user_is_warned_of(tmp_path: Path) -> None:
    found = warnings_of(replaced(tmp_path, "cluster/slurm.sh", "trap - EXIT", "ray stop"))
    assert [line for line in found if "`ray stop` ends every Ray" in line]


@pytest.mark.parametrize(
    ("before", "command", "wrong"),
    [
        ("", "RAY_AUTH_MODE=token ray start --head", False),
        ("", "export RAY_AUTH_MODE=token; ray start --head", False),
        ("export RAY_AUTH_MODE=token", "ray start --head", False),
        ("RAY_AUTH_MODE=token ray --version", "ray start --head", True),  # set for that one command
        ("", "RAY_AUTH_MODE=token ray --version; ray start --head", True),
        ("RAY_AUTH_MODE=token", "ray start --head", True),  # the shell's own, which programs do not see
        ("RAY_AUTH_MODE=token\nexport RAY_AUTH_MODE", "ray start --head", False),
        ("export RAY_AUTH_MODE=token\nRAY_AUTH_MODE=", "ray start --head", True),
        ("export RAY_AUTH_MODE=token\nunset RAY_AUTH_MODE", "ray start --head", True),
        ("export RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled ray start --head", True),
        ("", 'srun bash -c "RAY_AUTH_MODE=token ray start --address=$head"', False),
    ],
)
def test_authentication_is_what_ray_start_sees(before: str, command: str, wrong: bool) -> None:
    assert bool(list(authentication("line 1", command, before=before))) == wrong
