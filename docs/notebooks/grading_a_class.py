import marimo

__generated_with = "0.25.2"
app = marimo.App()


@app.cell
def _():
    import marimo as mo

    return (mo,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    # Grading a class

    A class of three: Anna has not started, Ben is right, Clara divides the scores of attention by the wrong root. The
    grader names her mistake. On a terminal this is `hectogpt grade submissions --csv grades.csv --html pages`.
    """)
    return


@app.cell
def _():
    import csv
    import shutil
    import subprocess
    import sys
    import tempfile
    from collections import Counter
    from pathlib import Path

    folder = Path(tempfile.mkdtemp(prefix="class-"))

    def hectogpt(*arguments):
        """Runs a command; grading a class in which somebody is not done ends with exit code 1."""
        command = [sys.executable, "-m", "hectogpt", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True).stdout

    return Counter, csv, folder, hectogpt, shutil


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Submissions

    A folder for each student; zip archives and single files would do as well.
    """)
    return


@app.cell
def _(folder, hectogpt, shutil):
    submissions = folder / "submissions"
    for student in ("anna", "ben", "clara"):
        hectogpt("assignment", submissions / student, "--solution")
        solution = submissions / student / "solution"
        if student != "anna":
            shutil.copytree(solution, submissions / student, dirs_exist_ok=True)
        shutil.rmtree(solution)

    model = submissions / "clara" / "model_solution.py"
    written = model.read_text()
    model.write_text(written.replace("scores / math.sqrt(self.d_attention)", "scores / math.sqrt(x.shape[-1])"))
    sorted(path.name for path in submissions.iterdir())
    return (submissions,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Grades

    `--csv` has a line a student, `--html` a page each and an overview, `--json` everything.
    """)
    return


@app.cell
def _(folder, hectogpt, submissions):
    grades = folder / "grades.csv"
    print(hectogpt("grade", submissions, "--csv", grades, "--out", folder / "grades.jsonl"))
    return (grades,)


@app.cell
def _(Counter, csv, grades):
    with grades.open() as _file:
        rows = list(csv.DictReader(_file))
    mistakes = Counter(row[name] for row in rows for name in row if name.endswith(" mistake") and row[name])
    [(row["name"], row["points"], row["max_points"]) for row in rows], mistakes.most_common(3)
    return


if __name__ == "__main__":
    app.run()
