"""The study's page is what its results say."""

import json
import pathlib
import re

from experiments.study import claims, design, page, report, results

FOLDER = pathlib.Path(design.__file__).parent


def test_the_page_is_what_its_results_say():
    kept = json.loads((FOLDER / "results.json").read_text())
    drawn = sorted(path.name for path in (FOLDER / "figures").glob("*.png"))
    written = (FOLDER / "RESULTS.md").read_text()
    assert page.update(written, report.blocks(kept, drawn)) == written
    assert set(re.findall(r"\(figures/(.*?)\)", written)) == set(drawn)


def test_the_results_kept_are_of_all_that_the_study_runs():
    kept = json.loads((FOLDER / "results.json").read_text())
    assert [f.letter for f in claims.findings(kept)] == list("abcdefghi")
    for name, methods in design.FULL.methods.items():
        problems = results.Set(kept["problems"][name])
        variants = {m for group in design.ONE_OF for m in group} & set(methods)
        losers = {m for m in variants if not problems.has(m)}
        assert len(variants) - len(losers) == bool(variants)
        sets = [(problems, set(methods) - losers)]
        for rate, which in design.FULL.at_rates.get(name, {}).items():
            sets.append((problems.at_rate(rate), which))
        if name in design.FULL.longer:
            steps, which = design.FULL.longer[name]
            sets.append((results.Set(problems.data["longer"]), which))
            assert problems.data["longer"]["steps"] == steps
        for of, which in sets:
            for method in which:
                assert [run["seed"] for run in of.runs(method)] == list(design.SEEDS)
    assert {len(seeds) for seeds in kept["variance"].values()} == {len(design.SEEDS)}
