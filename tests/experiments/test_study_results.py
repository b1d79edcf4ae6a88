"""Tests that the study's page and tables are what its results say."""

import pathlib
import re

from experiments.study import claims, design, measures, page, report, results

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
