"""What `hectogpt grade --make-autograder` writes for Gradescope: setup.sh, run_autograder, and this package."""

from __future__ import annotations

import io
import zipfile

from hectogpt.cli.grade_package import package_files, requirements

SETUP = """#!/usr/bin/env bash
# Runs once, when Gradescope builds the image. The grader itself is in the archive; what it needs is installed.
set -euo pipefail
apt-get update
for version in 3.13 3.12 3.11; do
    if apt-get install -y python$version python$version-venv; then break; fi
done
python$version -m venv /opt/grader
/opt/grader/bin/pip install -r /autograder/source/requirements.txt
"""
RUN = """#!/usr/bin/env bash
# Runs for each submission: /autograder/submission in, /autograder/results/results.json out.
mkdir -p /autograder/results
PYTHONPATH=/autograder/source /opt/grader/bin/python -m hectogpt grade /autograder/submission \\
    --hints {hints} --visibility {visibility} --gradescope /autograder/results/results.json --quiet
code=$?
# 0: all right, 1: something is wrong; anything else is the grader's own fault, and the student is told so.
if [ $code -gt 1 ] || [ ! -s /autograder/results/results.json ]; then
    printf '{{"score": 0, "output": "The grader failed (exit code %s). Tell your teacher."}}\\n' \\
        $code > /autograder/results/results.json
fi
"""
DATE = (2026, 1, 1, 0, 0, 0)


def archive(visibility: str, hints: int) -> bytes:
    """A .zip with both scripts at its root, executable, with fixed dates: the same bytes for the same arguments."""
    scripts = {"setup.sh": SETUP, "run_autograder": RUN.format(visibility=visibility, hints=hints)}
    content = {name: text.encode() for name, text in scripts.items()}
    content |= {"requirements.txt": requirements().encode(), **package_files()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            info = zipfile.ZipInfo(name, DATE)
            info.external_attr = (0o755 if name in scripts else 0o644) << 16
            info.create_system = 3  # POSIX, so that the permissions count
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, data)
    return out.getvalue()
