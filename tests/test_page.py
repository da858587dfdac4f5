"""test.py --report: the page shows the pictures, says what was measured, and needs nothing but itself."""

from __future__ import annotations

import base64
import re
import shlex
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from skimage.data import astronaut, camera

from utils.page import places_of_change


class Page(HTMLParser):
    """The elements of a page: (tag, attributes) each, and its text. What is not closed is an error."""

    EMPTY = ("meta", "img", "input", "br", "path", "use", "rect")

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def pictures(self) -> dict[str, list[np.ndarray]]:
        """Their pixels, by what they show."""
        found = {}
        for tag, attributes in self.elements:
            if tag == "img":
                kind, data = attributes["src"].split(",", 1)
                assert re.fullmatch(r"data:image/(png|jpeg);base64", kind)
                pixels = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)
                found.setdefault(attributes["alt"], []).append(pixels)
        return found


@pytest.fixture
def noisy(tmp_path):
    """Two gray pictures with noise, one in 16 bits with a name that is no HTML, and the clean ones."""
    random = np.random.RandomState(0)
    for folder in ("noisy", "clean"):
        (tmp_path / folder).mkdir()
    for name, crop, scale in (("a.png", np.s_[:160, 200:420], 1), ("<b> & c.png", np.s_[100:260, 100:228], 257)):
        clean = camera()[crop].astype(float)
        image = (clean + random.normal(0, 20, clean.shape)).clip(0, 255)
        for folder, values in (("noisy", image), ("clean", clean)):
            dtype = np.uint8 if scale == 1 else np.uint16
            cv2.imwrite(str(tmp_path / folder / name), (scale * values).astype(dtype))
    return tmp_path / "noisy"


def read_page(run, line: str, file) -> Page:
    code, _, err = run("test", f"{line} --report {file}")
    assert code == 0, err
    text = file.read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)  # nothing is fetched
    return Page(text)


def test_page_of_both_stages(run, noisy, tmp_path):
    line = (
        f"--checkpoint gray-hg-blind gray-hg-blind-full --data {noisy} --clean {tmp_path}/clean --save {tmp_path}/out"
    )
    page = read_page(run, line, tmp_path / "r.html")
    assert "<b> & c.png" in page.text and "SHA-256" in page.text and "within two" in page.text
    assert f"python test.py {shlex.join(line.split())}" in page.text
    pictures = page.pictures()
    assert [p.shape[:2] for p in pictures["result"] if p.shape[0] > 100] == [(160, 128), (160, 220)]
    assert len(pictures["clean"]) == len(pictures["removed"]) >= 2  # in crops alone
    assert len(pictures["standard deviation of the posterior"]) == 2
    # the numbers are those of the files
    for name, unit in (("a", 1), ("<b> & c", 257)):
        before, after = (cv2.imread(str(f), cv2.IMREAD_UNCHANGED).astype(float) for f in files(noisy, tmp_path, name))
        removed = np.sqrt(np.mean((before - after) ** 2))
        shown = re.search(re.escape(name) + r"\.png (\S+) \S+ to \S+ (\S+)", page.text)
        assert float(shown[2]) == pytest.approx(removed, rel=0.02)
        assert float(shown[1]) == pytest.approx(20 * unit, rel=0.2)


def files(noisy, tmp_path, name):
    return noisy / f"{name}.png", tmp_path / "out" / f"{name}_denoised.png"


def test_page_of_colours_and_of_a_student_alone(run, tmp_path):
    (tmp_path / "in").mkdir()
    image = astronaut()[:128, 100:260] + np.random.RandomState(0).normal(0, 20, (128, 160, 3))
    cv2.imwrite(str(tmp_path / "in" / "a.png"), image.clip(0, 255).astype(np.uint8)[..., ::-1])
    cv2.imwrite(str(tmp_path / "in" / "flat.png"), np.full((70, 70, 3), 9, np.uint8))
    page = read_page(run, f"--checkpoint color-hg-blind-full --data {tmp_path}/in", tmp_path / "new" / "r.html")
    assert "add a stage-1 checkpoint" in page.text and "clean" not in page.pictures()
    result = next(p for p in page.pictures()["result"] if p.shape == (128, 160, 3))
    assert np.abs(result[..., ::-1].astype(float) - image).mean() < 25  # red is red
    assert "flat.png" in page.text and "No warnings." in page.text


def test_warnings_are_told(run, tmp_path):
    (tmp_path / "in").mkdir()
    blurred = cv2.GaussianBlur(np.random.RandomState(0).normal(0, 40, (200, 200)), (0, 0), 1.2)
    cv2.imwrite(str(tmp_path / "in" / "a.png"), (camera()[:200, :200] / 2 + 60 + blurred).clip(0, 255).astype(np.uint8))
    page = read_page(run, f"--checkpoint gray-awgn-blind-full --data {tmp_path}/in --stride 1", tmp_path / "r.html")
    assert "1 with warnings" in page.text and "neighbouring pixels share their noise" in page.text


def test_a_report_needs_a_result(run, noisy, tmp_path):
    code, _, err = run("test", f"--data {noisy} --clean {tmp_path}/clean --report {tmp_path}/r.html")
    assert code == 2 and "give a --checkpoint" in err and not (tmp_path / "r.html").exists()


def test_crops_are_where_the_picture_changed():
    removed = np.random.RandomState(0).normal(0, 1, (400, 300, 3)).astype(np.float32)
    removed[200:230, 210:250] *= 9
    assert places_of_change(removed)[0] == (192, 192)
    assert places_of_change(removed[:50, :40]) == [(0, 0)]
