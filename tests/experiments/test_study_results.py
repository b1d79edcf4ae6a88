"""Tests that the study's page and tables are what its results say."""

import copy
import pathlib
import re
import subprocess
import sys

import pytest

from experiments.study import claims, design, measures, page, report, results
from tests import pages

FOLDER = pathlib.Path(design.__file__).parent


def test_the_page_is_what_its_results_say():
    kept = results.load(FOLDER / "results.json")
    drawn = sorted(path.name for path in (FOLDER / "figures").glob("*.png"))
    written = (FOLDER / "RESULTS.md").read_text()
    assert report.update(written, report.blocks(page.STUDY, kept, drawn)) == written
    assert set(re.findall(r"\(figures/(.*?)\)", written)) == set(drawn)
    assert report.all_tables(page.STUDY, kept) == (FOLDER / "TABLES.md").read_text()


def test_the_file_is_as_the_study_writes_it():
    written = (FOLDER / "results.json").read_text()
    assert results.dump(results.load(FOLDER / "results.json")) + "\n" == written


def test_verdicts():
    found = claims.findings(results.load(FOLDER / "results.json"))
    met = {f.letter: (f.verdict, sum(f.met), len(f.met)) for f in found}
    assert met == {
        "a": (claims.PARTLY, 5, 9),
        "b": (claims.PARTLY, 9, 14),
        "c": (claims.PARTLY, 3, 5),
        "d": (claims.PARTLY, 1, 3),
        "e": (claims.PARTLY, 2, 3),
        "f": (claims.PARTLY, 3, 5),
        "g": (claims.NOT, 0, 2),
        "h": (claims.PARTLY, 3, 6),
        "i": (claims.REPRODUCED, 3, 3),
    }


def test_the_results_kept_are_of_all_that_the_study_runs():
    kept = results.load(FOLDER / "results.json")
    assert kept["seeds"] == list(design.SEEDS)
    for name, problems in measures.all_sets(kept, design.DESIGN).items():
        methods = set(design.FULL.methods[name])
        bonuses = methods & set(design.BONUSES)
        assert len(bonuses & set(problems.methods)) == bool(bonuses)
        sets = [(problems, methods - bonuses)]
        for rate, which in design.FULL.at_rates.get(name, {}).items():
            sets.append((problems.at_rate(f"{rate:g}"), which))
        if name in design.FULL.longer:
            steps, which = design.FULL.longer[name]
            assert problems.longer.last_step == steps
            sets.append((problems.longer, which))
        for of, which in sets:
            assert of.has(*which)
            for method in which:
                assert len(of.pass_at(method, 1)) == len(design.SEEDS)
    for measured in kept["variance"].values():
        assert {len(row["noise"]) for row in measured.values()} == {len(design.SEEDS)}


# -- results of parts -----------------------------------------------------------------------------


def _of(found, seeds=None, problems=None):
    """Returns the part of results with the seeds at these places, or on these problems."""
    count = len(found["seeds"])

    def pick(tree, name=""):
        if isinstance(tree, dict) and name != "grid":
            return {key: pick(value, key) for key, value in tree.items()}
        if isinstance(tree, list):
            return [value for i, value in enumerate(tree) if i % count in seeds]
        return tree

    part = copy.deepcopy(found)
    if problems:
        part["problems"] = {name: part["problems"][name] for name in problems}
        if "modes" not in problems:
            del part["optimum"]
    if seeds:
        part["seeds"] = [found["seeds"][i] for i in seeds]
        part |= {name: pick(part[name]) for name in ("problems", "variance") if name in part}
    return part


@pytest.mark.parametrize("study", ["study", "referee"])
def test_seeds_run_apart_are_joined(study):
    found = results.load(pages.ROOT / "experiments" / study / "results.json")
    first, second, third = (_of(found, seeds) for seeds in ([0], [1, 2, 3], [4]))
    assert len(first["problems"]["hard"]["base"]["entropy"]) == len(found.get("draws", [0]))
    assert results.join(results.join(first, second), third) == found


def test_problems_run_apart_are_joined():
    found = results.load(pages.ROOT / "experiments" / "referee" / "results.json")
    modes, hard = _of(found, problems=["modes"]), _of(found, problems=["hard"])
    assert results.join(modes, hard) == results.join(hard, modes) == found
    elsewhere = results.join(modes, {**hard, "machine": "a GPU"})
    assert elsewhere["machine"] == f"{found['machine']}; a GPU"
    assert results.join(elsewhere, {**_of(found, [0]), "seeds": [5]})["machine"].endswith("a GPU")


def _with_another_rate(part):
    part["problems"]["hard"]["methods"]["k4"]["rate"] = 7.0


def _without_a_method(part):
    del part["problems"]["modes"]["methods"]["grpo"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.update(seeds=[0, 1]), "both parts have these seeds of hard, modes."),
        (
            lambda part: part.update(seeds=[1, 2]),
            r"seeds are \[0, 1\] in one part and \[1, 2\] in the other; expected",
        ),
        (lambda part: part.update(tuned=False), "tuned is True in one part and False in"),
        (lambda part: part.update(draws=[0]), r"draws is \[0, 1, 2\] in one part and \[0\] in"),
        (_with_another_rate, "^problems/hard/methods/k4/rate is .* and 7.0 in the other"),
        (_without_a_method, "only one part has problems/modes/methods/grpo"),
    ],
)
def test_what_are_not_parts_of_one_study_is_told(change, message):
    found = results.load(pages.ROOT / "experiments" / "referee" / "results.json")
    part = _of(found, [2, 3])
    change(part)
    with pytest.raises(results.JoinError, match=message):
        results.join(_of(found, [0, 1]), part)


def test_the_command_joins_parts_into_a_page(tmp_path):
    found = results.load(pages.ROOT / "experiments" / "pretrained" / "results.json")
    kept, piece = tmp_path / "kept", tmp_path / "piece"
    results.save(kept / "results.json", found)
    results.save(piece / "results.json", {**found, "seeds": [7, 8, 9]})

    def render():
        command = [sys.executable, "-m", "experiments.pretrained"]
        command += [f"--render={kept}", f"--join={piece}"]
        return subprocess.run(command, capture_output=True, text=True, cwd=pages.ROOT)

    assert not render().returncode
    assert results.load(kept / "results.json")["seeds"] == [0, 1, 2, 7, 8, 9]
    written = (kept / "RESULTS.md").read_bytes()
    again = render()
    assert again.returncode and again.stderr == (
        "stopped: seeds are [0, 1, 2, 7, 8, 9] in one part and [7, 8, 9] in the other; expected "
        "the same ones, or none in common.\n"
    )
    results.save(piece / "results.json", {**found, "seeds": [4], "problems": {"fog": {}}})
    foreign = render()
    assert foreign.returncode and "this study has no problems 'fog'" in foreign.stderr
    assert (kept / "RESULTS.md").read_bytes() == written
