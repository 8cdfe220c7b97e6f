import re
from html.parser import HTMLParser

import pytest
import torch

from fisherkernels.report.figures import CSS_VARIABLES, strip
from fisherkernels.report.page import render, write

SECTIONS = ["verdict", "training", "losses", "reconstructions", "robustness", "samples", "latent", "method"]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects what the tests ask about and checks that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.images, self.drawings, self.links = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag == "img":
            self.images.append(attributes)
        if tag == "svg":
            self.drawings.append(attributes)
        self.links += [attributes[k] for k in ("src", "href", "xlink:href", "action", "data") if k in attributes]

    def handle_startendtag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def log(path, terms):
    columns = [f"{stage}/{term}" for stage in ("train", "val") for term in terms]
    rows = [[str(step), "0", *(str(1.0 / (step + 1)) for _ in columns)] for step in range(0, 50, 10)]
    path.write_text("\n".join(",".join(row) for row in [["step", "epoch", *columns], *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def page_text(small_evaluation, stand_in, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("logs")
    fisher_ae, vae, evaluation = small_evaluation([stand_in(0.5, 0.25)], [stand_in()])
    fisher_ae.logs = [log(tmp_path / "a.csv", ["loss", "posterior", "reconstruction", "stability"])]
    vae.logs = [log(tmp_path / "b.csv", ["loss", "reconstruction", "kl"])]
    fisher_ae.settings = {"optimiser": "Adam <fast> & loose", "prior": "polynomial"}
    vae.settings = {"optimiser": "Adam"}
    return render(fisher_ae, vae, evaluation, "squares", {"torch": "2.x"})


def test_the_page_has_every_section_in_order(page_text):
    assert Page(page_text).sections == SECTIONS


def test_the_page_needs_nothing_from_outside(page_text):
    links = Page(page_text).links
    assert links and all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    for foreign in ("http:", "https:", "@import", "<script", "<link", "<iframe"):
        assert foreign not in page_text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page_text))


def test_pictures_have_words(page_text):
    page = Page(page_text)
    # Clean and noisy strips, samples; 4 + 3 loss panels, 2 robustness curves, 4 maps, NMI.
    assert len(page.images) == 3 + 4 + 2 and len(page.drawings) == 4 + 3 + 2 + 4 + 1
    assert all(len(image["alt"]) > 10 for image in page.images)
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 20 for drawing in page.drawings)


def test_drawings_follow_the_theme_and_share_no_ids(page_text):
    assert not any(color in page_text for color in CSS_VARIABLES)
    assert "var(--fisher-ae)" in page_text and "var(--vae)" in page_text
    clips = re.findall(r'<clipPath id="([^"]*)"', page_text)
    assert len(clips) == len(set(clips))


def test_text_is_escaped(page_text):
    assert "Adam &lt;fast&gt; &amp; loose" in page_text and "<fast>" not in page_text


def test_the_verdict_is_in_words(page_text):
    assert "Under noise, the Fisher AE beat the VAE." in page_text
    assert "Without noise, the VAE was better." in page_text


def test_the_page_can_say_that_the_fisher_ae_lost(small_evaluation, stand_in):
    fisher_ae, vae, evaluation = small_evaluation([stand_in()], [stand_in(0.5, 0.25)])
    text = render(fisher_ae, vae, evaluation, "squares", {})
    assert "the Fisher AE did not beat the VAE" in text
    assert "Worse than always answering the training set&#x27;s mean image: the Fisher AE at" in text
    assert "The training logs of these checkpoints are not at hand." in text


def test_write_leaves_one_file(tmp_path):
    path = write("first", tmp_path / "runs" / "report.html")
    write("σ²", path)
    assert path.read_text(encoding="utf-8") == "σ²"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_strip_by_hand():
    tiles = torch.tensor([[[[0.0, 1.0]]], [[[2.0, float("nan")]]], [[[0.5, -1.0]]]])  # three images of 1 x 2 pixels
    pixels = strip(tiles, columns=2)
    assert pixels.shape == (2 * 16 + 2, 2 * 32 + 2, 2)
    grey, opacity = pixels[..., 0], pixels[..., 1]
    assert (grey[0, :16] == 0).all() and (grey[0, 16:32] == 255).all()
    assert (grey[0, 34:50] == 255).all() and (grey[0, 50:] == 0).all()
    assert (grey[18:, :16] == 128).all()
    assert (opacity[:, 32:34] == 0).all() and (opacity[18:, 34:] == 0).all() and (opacity[:16, :32] == 255).all()
