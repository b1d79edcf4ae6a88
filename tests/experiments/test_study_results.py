"""The study's page is what its results say."""

import json
import pathlib
import re

from experiments.study import design, page, report

FOLDER = pathlib.Path(design.__file__).parent


def test_the_page_is_what_its_results_say():
    kept = json.loads((FOLDER / "results.json").read_text())
    drawn = sorted(path.name for path in (FOLDER / "figures").glob("*.png"))
    written = (FOLDER / "RESULTS.md").read_text()
    assert page.update(written, report.blocks(kept, drawn)) == written
    assert set(re.findall(r"\(figures/(.*?)\)", written)) == set(drawn)
