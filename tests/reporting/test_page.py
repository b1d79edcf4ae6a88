"""Tests of the page of a run: what it shows for any directory, and how a browser displays it."""

import html
import html.parser
import json
import os
import re
import shutil
import subprocess
import types

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from pkpo_jax.reporting import page as report
from pkpo_jax.reporting import plots
from pkpo_jax.reporting.labels import LABELS
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import metrics, provenance

BROWSERS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
HOSTILE = "<script>document.title = 'owned'</script><img src=http://example.com/x onerror=owned()>"


START = {
    "started": "2026-01-02T03:04:05+00:00",
    "command": f"python -m pkpo_jax.main --workdir='{HOSTILE}'",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": True,
    "versions": {"python": "3.11.7", "jax": "0.10.2", "orbax-checkpoint": None},
    "platform": "Linux",
    "cpu": "EPYC",
    "cores": 2,
    "device": "TPU v5 lite",
    "devices": 16,
    "processes": 4,
}


def evaluation(step, passed=0.5):
    return {"step": step, "eval/pass_at_1": passed, "eval/pass_at_8": passed + 0.25}


def training(step):
    return {
        "step": step,
        "train/k": 8,
        "train/reward_mean": 0.1 * step,
        "train/pass_at_8": 0.2 * step,
        "train/entropy": 1.0 / step,
        "train/kl": -0.01 * step,
        "train/clip_fraction": 0.0,
        "train/skipped": float(step == 2),
        "train/dead_groups": 0.25,
        "train/log_prob_gap_max": 1e-6 * step,
        "time/sample_s": 2.0 if step == 1 else 0.5,
        "time/grade_s": 0.25,
        "time/update_s": 5.0 if step == 1 else 1.25,
        "time/tokens_per_s": 100.0 * step,
        "compilations": 14 if step == 1 else 15,
    }


FINISHED = [
    evaluation(0),
    training(1),
    training(2),
    {**training(3), **evaluation(3, 0.625), "time/eval_s": 1.0, "eval/distinct_wrong": None},
]


def make_run(workdir, lines=(), **config):
    """Writes the directory that a run would leave, without running it."""
    workdir.mkdir(parents=True)
    values = config_lib.default().to_dict()
    values["k"], values["train"]["steps"], values["model"]["size"] = 8, 3, "tiny"
    (workdir / "config.json").write_text(json.dumps({**values, **config}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def make_full_run(workdir):
    """Writes a run that has everything a page can show, with hostile texts."""
    run = make_run(workdir, FINISHED)
    for step, ends in ((0, (0.4384, 0.5)), (3, (0.6, 1.0))):
        metrics.write_intervals(run, step, {"pass_at_1": ends, "pass_at_8": (float("nan"), 1.0)})
    starts = [{**provenance.start(step), **START} for step in (0, 2)]
    (run / "runs.json").write_text(json.dumps([*starts, 1, {}]))
    rows = report.before_and_after(FINISHED)
    plots.pass_at_k(run / "plots" / "pass_at_k.png", rows)
    Figure().savefig(run / "plots" / "samples.png")
    (run / "checkpoints" / "3" / "params").mkdir(parents=True)
    (run / "samples").mkdir()
    for step in (1, 2, 3):
        text = f"text of step {step}\n\x1b[31m\x00{HOSTILE}\n" + "RDL" * 400
        (run / "samples" / f"{step:06d}.txt").write_text(text)
    (run / "eval" / "test_step3").mkdir(parents=True)
    figures = {
        f"{kind}_at_{k}": {"value": k / 10, "interval": [k / 20, k / 5]}
        for kind in ("pass", "max")
        for k in range(1, 9)
    }
    figures["distinct_wrong"] = {"value": None, "interval": [None, None]}
    summary = {"problems": 512, "checkpoint": HOSTILE, "figures": figures, HOSTILE: 1.0}
    (run / "eval" / "test_step3" / "summary.json").write_text(json.dumps(summary))
    plots.pass_at_k(run / "eval" / "test_step3" / "pass_at_k.png", rows)
    return run


class Page(html.parser.HTMLParser):
    """A strict parser of a page, which checks that elements are closed in order."""

    VOID = ("meta", "img", "wbr", "link")

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.text, self.tables = [], [], "", {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "caption":
            self.caption, self.rows = "", []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
            self.tables[" ".join(self.caption.split())] = rows

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def page_of(run):
    return Page(report.write_page(run))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Returns the page of a run that has everything, in a directory with a hostile name."""
    return report.write_page(make_full_run(tmp_path_factory.mktemp("runs") / '<b>a&b\'s "run"'))


def test_the_page_says_what_the_run_did(full):
    page = Page(full)
    assert "Gemma 2 tiny on the task maze, trained with k = 8 by pkpo" in " ".join(
        page.text.split()
    )
    assert "not finished" not in page.text
    assert page.tables["Held-out problems (the run trains for k = 8)"] == [
        ["k", "before RL", "after step 3", "change"],
        ["1", ".500 (.438-.500)", ".625 (.600-1.000)", "+0.125"],
        ["8", "0.750", "0.875", "+0.125"],
    ]
    assert "95% intervals over problems" in page.text
    command = " ".join(START["command"].split())
    where = "16 x TPU v5 lite, 4 processes 2 cores of EPYC, Linux"
    rest = [command, "0123456789ab, changed", where, "python 3.11.7, jax 0.10.2"]
    assert page.tables["Starts"][1:3] == [
        ["2026-01-02 03:04:05 UTC from step 0", *rest],
        ["2026-01-02 03:04:05 UTC from step 2", *rest],
    ]
    assert page.tables["Seconds by phase"][1:] == [
        ["sample", "2.000", "0.500", "3.000", "24%"],
        ["grade", "0.250", "0.250", "0.750", "6%"],
        ["update", "5.000", "1.250", "7.500", "61%"],
        ["eval", "1.000", "-", "1.000", "8%"],
    ]
    assert page.tables["Throughput after the first step, which compiles"][1:] == [
        ["steps a minute", "30"],
        ["responses a second", "128"],
        ["tokens a second", "250"],
    ]
    health = {row[0].split()[0]: row[1:] for row in page.tables["Over all steps"]}
    assert all(LABELS[key[6:]] in page.text for key in health if key.startswith("train/"))
    assert health["train/skipped"] == ["0.333", "1.000 at step 2"]
    assert health["train/log_prob_gap_max"] == ["2e-06", "3e-06 at step 3"]
    assert page.tables["Counts"][1:] == [
        ["programs compiled by the last step", "15"],
        ["of these after the first step", "1"],
        ["values that were not finite", "1 (eval/distinct_wrong)"],
    ]
    assert page.tables["test, step 3"][1:] == [
        ["pass_at_1", "0.100", "0.050 to 0.200"],
        ["pass_at_2", "0.200", "0.100 to 0.400"],
        ["pass_at_4", "0.400", "0.200 to 0.800"],
        ["pass_at_8", "0.800", "0.400 to 1.600"],
        ["distinct_wrong", "-", "-"],
    ]
    assert ["problems", "512"] in page.tables["test, step 3: how it was made"]
    assert "text of step 1\n" in page.text and "text of step 3\n" in page.text
    assert "text of step 2" not in page.text
    assert "checkpoint at 3" in page.text
    assert ["k", "8 default 1"] in page.tables["run"]
    assert ["steps", "3 default 300"] in page.tables["train"]
    assert ["n", "16"] in page.tables["rollout"]


def test_the_page_is_one_file_without_markup_of_others(full):
    page = Page(full)
    assert page.tags[0] == ("html", {"lang": "en"})
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "b"})
    for attributes in (attributes for _, attributes in page.tags):
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in full.read_text() and "@import" not in full.read_text()
    assert len(page.all("img")) >= 9 and all(image["alt"] for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption")) == len(page.tables)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert sorted(ids) == sorted({link["href"][1:] for link in page.all("a")})
    assert page.text.count(HOSTILE) == 6
    assert '<b>a&b\'s "run"' in page.text
    assert not re.search(r"[\x00-\x08\x0e-\x1f]", page.text)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [evaluation(0)],
        [{"step": 0, "eval/pass_at_1": None, "eval/pass_at_8": None}, training(1)],
        [evaluation(0), training(1)],
        [evaluation(0), {key: None for key in training(1)} | {"step": 1}],
        [evaluation(0), training(1), {**training(2), "train/entropy": None, "time/sample_s": None}],
        [{**training(3), **evaluation(3), "eval/pass_at_8": None}],
    ],
    ids=["none", "step 0", "null evaluation", "step 1", "all null", "some null", "no start"],
)
def test_a_run_in_progress_has_a_page(tmp_path, lines):
    page = page_of(make_run(tmp_path / "run", lines))
    done = max((line["step"] for line in lines), default=0)
    assert f"{done} of 3 steps" in page.text
    assert ("not finished" in page.text) == (done < 3)
    assert "no checkpoint yet" in page.text
    assert bool(page.all("img")) == (len(lines) > 0)


def test_files_that_are_torn_or_foreign_are_passed_over(tmp_path):
    run = make_full_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(json.dumps(evaluation(0)) + "\n")
    image = (run / "plots" / "samples.png").read_bytes()
    (run / "plots" / "samples.png").write_bytes(image[:-20])
    (run / "plots" / "empty.png").write_bytes(b"")
    (run / "plots" / "more_of_it.png").write_bytes(image)
    (run / "samples" / "notes.txt").write_text("not of a step")
    (run / "samples" / "000003.txt").write_bytes(b"\xff\xfe torn \xe2\x82" + b"x" * 30_000)
    for name, text in {
        "a": "{",
        "b": "[1]",
        "c_step5": '{"figures": {}, "x": {"value": 1}}',
    }.items():
        (run / "eval" / name).mkdir()
        (run / "eval" / name / "summary.json").write_text(text)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/rew')
    page = page_of(run)
    alts = [image["alt"].partition(":")[0] for image in page.all("img")]
    assert len(alts) == 4 and "more of it" in alts
    assert "0 of 3 steps" in page.text and "not of a step" not in page.text
    assert "more characters in samples/000003.txt" in page.text
    assert ["x", "1"] in page.tables["c, step 5"]


@pytest.mark.parametrize(
    ("config", "k"),
    [
        ({"task": {"name": "chess"}, "model": {}}, "8"),
        ({"task": {"name": [1]}, "train": 5, "k": {"0": 8, "200": 1}}, "8, 1 from step 200"),
        ({"k": None, "train": {"steps": None, "prompts": 16}, "rollout": {"n": "?"}}, "null"),
    ],
)
def test_a_config_that_is_no_more_valid_is_shown(tmp_path, config, k):
    page = page_of(make_run(tmp_path / "run", [evaluation(0)], **config))
    assert ["k", f"{k} default 1"] in page.tables["run"]


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_what_is_no_run_is_refused_in_a_line(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(config_lib.ConfigError, match=r"^[^\n]* no config\.json [^\n]*$"):
        report.write_page(tmp_path)


def test_a_page_that_cannot_be_written_is_an_error_of_the_file_system(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "report.tmp").mkdir()
    with pytest.raises(OSError, match=r"report\.tmp"):
        report.write_page(run)


def test_the_end_of_a_run_is_reported_whatever_is_null(tmp_path, capsys):
    problem = {"id": 0, "prompt": "?", "answer": "1"}
    last = types.SimpleNamespace(problems=[problem], responses=[["R"]], rewards=np.zeros((1, 1)))
    config = config_lib.default("arithmetic")
    config.rollout.n = 8
    absent = [{"step": 0, "eval/pass_at_1": None}, {"step": 1, "train/k": None}]
    for name, lines in {"full": FINISHED, "null": absent}.items():
        run = make_run(tmp_path / name, lines)
        metrics.write_intervals(run, 3, {"pass_at_1": (0.6, 0.65)})
        report.write(run, config, last)
        assert (run / "report.html").exists() and (run / "plots" / "learning_curves.png").exists()
    out = capsys.readouterr().out
    assert ".625 (.600-.650)" in out and "95% intervals" in out and "0.500" in out


def test_learning_curves_have_a_panel_for_what_was_recorded(tmp_path):
    drawn = plots.panels(FINISHED, 8)
    assert drawn["training batches"]["train/pass_at_8"] == [
        (1, 0.2),
        (2, 0.4),
        (3, pytest.approx(0.6)),
    ]
    assert list(drawn["KL, nats"]) == ["train/kl"]
    assert list(drawn["seconds of a step"]) == ["time/sample_s", "time/grade_s", "time/update_s"]
    assert drawn["seconds of a step"]["time/update_s"] == [(2, 1.25), (3, 1.25)]
    assert "largest log-prob gap" in drawn
    # Nothing was ever clipped, and k never changed.
    assert "clipped tokens" not in drawn and "k" not in drawn
    changed = [{**training(1), "train/clip_fraction": 0.1}, {**training(2), "train/k": 1}]
    assert {"clipped tokens", "k"} <= set(plots.panels(changed, 8))
    plots.learning_curves(tmp_path / "plots" / "curves.png", [], 8)


def test_before_and_after():
    assert report.before_and_after([]) == {}
    assert report.before_and_after([evaluation(0)]) == {"before RL": {1: 0.5, 8: 0.75}}
    assert report.before_and_after(FINISHED)["after step 3"] == {1: 0.625, 8: 0.875}
    assert report.pass_at_k({"step": 3, "eval/pass_at_1": None, "eval/pass_at_2": 1.0}) == {2: 1.0}


# The remaining tests open the page in a real browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Runs a headless Chromium with further arguments."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        message = f"no browser to open the page in: none of {', '.join(BROWSERS)}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)

    def run(*arguments):
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--disable-dev-shm-usage", "--disable-background-networking"]
        command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path_factory.mktemp('b')}"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True, timeout=60
        )

    return run


# The page is in frames, since a window may have a minimum width. Their security policy reports
# everything that they would load.
PROBE = """<!DOCTYPE html><html lang="en"><title>probe</title>
<iframe style="width: 1280px; height: 900px" srcdoc="%(page)s"></iframe>
<iframe style="width: 400px; height: 900px" srcdoc="%(page)s"></iframe>
<pre id="found"></pre>
<script>
window.addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  const found = frames.map(({contentDocument: page, contentWindow: window}) => ({
    title: page.title,
    width: page.documentElement.clientWidth,
    needed: page.documentElement.scrollWidth,
    outside: [...page.querySelectorAll("body *")]
      .filter((e) => !e.parentElement.closest(".scroll, pre"))
      .filter((e) => e.getBoundingClientRect().right > page.documentElement.clientWidth + 1)
      .map((e) => e.outerHTML.slice(0, 200)),
    images: [...page.images].map((image) => [image.naturalWidth, image.clientWidth]),
    columns: getComputedStyle(page.querySelector(".beside")).gridTemplateColumns.split(" ").length,
    scripts: page.querySelectorAll("script:not([data-test])").length,
    loaded: window.performance.getEntriesByType("resource").map((e) => e.name)
      .filter((name) => !name.startsWith("data:")),
    refused: window.refused,
    text: page.body.innerText,
  }));
  frames.forEach((frame) => frame.remove());
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""
WATCH = """<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'nonce-test'">
<script nonce="test" data-test>
  window.refused = [];
  document.addEventListener("securitypolicyviolation", (e) => refused.push(e.blockedURI));
  window.addEventListener("error", (e) => refused.push(e.message));
</script>"""


@pytest.fixture(scope="module")
def shown(browser, full, tmp_path_factory):
    """Returns what a browser reports about the page at widths of 1280 and 400 pixels."""
    copy = full.read_text(encoding="utf-8").replace("<head>", f"<head>{WATCH}")
    probe = tmp_path_factory.mktemp("probe") / "probe.html"
    probe.write_text(PROBE % {"page": html.escape(copy)}, encoding="utf-8")
    dump = browser("--window-size=1400,1000", "--dump-dom", probe.as_uri()).stdout
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dump, re.S)[1]))


def test_it_fits_a_desk_and_a_phone(shown):
    assert [frame["width"] for frame in shown] == [1280, 400]
    for frame in shown:
        assert frame["needed"] == frame["width"]
        assert frame["outside"] == []
    assert [frame["columns"] for frame in shown] == [2, 1]


def test_its_images_are_seen(shown):
    for frame in shown:
        assert len(frame["images"]) >= 9
        assert all(natural > 0 and drawn > 200 for natural, drawn in frame["images"])


def test_its_text_is_seen_and_stays_text(shown):
    for frame in shown:
        for text in (
            "held-out pass@8",
            "+0.125",
            "Learning curves",
            "test, step 3",
            "loo_minus_one",
        ):
            assert text in frame["text"]
        assert frame["text"].count(HOSTILE) == 6
        assert "text of step 1" in frame["text"]
        assert frame["title"].startswith('<b>a&b\'s "run"')
        assert frame["scripts"] == 0


def test_it_loads_nothing(shown):
    assert [frame["loaded"] + frame["refused"] for frame in shown] == [[], []]


@pytest.mark.parametrize("width", [1280, 600])
def test_it_opens_from_the_disk(browser, full, tmp_path, width):
    path = tmp_path / "page.png"
    run = browser(f"--window-size={width},1600", f"--screenshot={path}", full.as_uri())
    assert "CONSOLE" not in run.stderr
    image = matplotlib.image.imread(path)[..., :3]
    assert image.shape == (1600, width, 3)
    # Each fifth of the page, from top to bottom, has some text or a plot.
    for part in np.split(image, 5):
        assert np.ptp(part) > 0.5 and 0.002 < (part.mean(-1) < 0.5).mean() < 0.5
