#!/usr/bin/env bash
# Runs once, when Gradescope builds the image. The archive has the grader itself; this installs its dependencies.
set -euo pipefail
apt-get update
for version in PYTHON 3.14 3.13 3.12 3.11; do
    if apt-get install -y python$version python$version-venv; then break; fi
done
python$version -m venv /opt/grader
/opt/grader/bin/pip install -r /autograder/source/requirements.txt
# The grader must give its own solution full points here. Then the solution is removed, before any student's code runs.
export PYTHONPATH=/autograder/source HECTOGPT_CACHE=/opt/grader/cache
/opt/grader/bin/python -m hectogpt grade /autograder/source/hectogpt/assignment/files/reference --strict
rm -r /autograder/source/hectogpt/assignment/files/reference
