"""The built wheel is whole: installed apart, it runs a pipeline and carries the extension's files."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import seedbed, sys
from pathlib import Path
from seedbed.sql.extension import sources
assert Path(seedbed.__file__).is_relative_to(sys.argv[1]), seedbed.__file__
assert {"seedbed.control", "compose.py", "udf.py"} <= {f.name for f in sources().iterdir()}
assert sources().is_relative_to(sys.argv[1])
Path("rows.csv").write_text("id,title\\n1,one\\n2,two\\n")
pipeline = seedbed.Pipeline(
    name="p", source={"url": "rows.csv", "key": ["id"]}, content={"text": "{title}"},
    embedder={"url": "hash:8"}, sink=[{"url": "memory:"}],
)
assert pipeline.sync().embedded == 2
"""


def test_the_wheel_runs_alone(tmp_path: Path) -> None:
    # Built here, so that what is tested is never an older one.
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("seedbed-*.whl")
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    packages = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), str(wheel)],
        check=True,
    )
    # What it depends on comes from this environment, after its own; editable installs there are not seen.
    (packages / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    done = subprocess.run(
        [str(home / "bin" / "python"), "-c", PROGRAM, str(home)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
