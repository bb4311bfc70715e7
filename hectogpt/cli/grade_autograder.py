"""The archive that `hectogpt grade --make-autograder` writes, for Gradescope: setup.sh and run_autograder."""

from __future__ import annotations

import io
import zipfile

from hectogpt import __version__

SETUP = """#!/usr/bin/env bash
# Runs once, when Gradescope builds the image. A wheel beside this file is installed in place of the published package.
set -euo pipefail
apt-get update
apt-get install -y python3 python3-pip python3-venv
python3 -m venv /opt/grader
wheels=(/autograder/source/*.whl)
package="hectogpt=={version}"
if [ -e "${{wheels[0]}}" ]; then package="${{wheels[0]}}"; fi
/opt/grader/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu "$package"
"""
RUN = """#!/usr/bin/env bash
# Runs for each submission: /autograder/submission in, /autograder/results/results.json out.
mkdir -p /autograder/results
/opt/grader/bin/hectogpt grade /autograder/submission --hints {hints} --visibility {visibility} \\
    --gradescope /autograder/results/results.json --quiet
code=$?
# 0: all right, 1: something is wrong; anything else is the grader's own fault, and the student is told so.
if [ $code -gt 1 ] || [ ! -s /autograder/results/results.json ]; then
    printf '{{"score": 0, "output": "The grader failed (exit code %s). Tell your teacher."}}\\n' \\
        $code > /autograder/results/results.json
fi
"""


def archive(visibility: str, hints: int) -> bytes:
    """A .zip with both scripts at its root, executable, with fixed dates: the same bytes for the same arguments."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (
            ("setup.sh", SETUP.format(version=__version__)),
            ("run_autograder", RUN.format(visibility=visibility, hints=hints)),
        ):
            info = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            info.external_attr = 0o755 << 16
            info.create_system = 3  # POSIX, so that the permissions count
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return out.getvalue()
