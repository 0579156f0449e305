"""Events of the page, called as Gradio calls them, and its server; without a browser."""

import socket
from threading import Event, Thread

import gradio as gr
import numpy as np
import pytest
import skimage.data
from PIL import Image

from proposal_cache import ContourGenerator
from samcp import Predictor, cli
from samcp.errors import UsageError
from samcp.web import server
from samcp.web import session as events
from samcp.web.app import Page, Visitor


@pytest.fixture(scope="module")
def cat():
    photo = np.asarray(Image.fromarray(skimage.data.chelsea()).resize((150, 100)))
    model = Predictor.from_pretrained(device="cpu").model
    predictor = Predictor(model, augmentations=[], image_format="RGB", generator=ContourGenerator(parts=30, patches=50))
    return events.start(predictor, photo, "cat", "cat, sky~")


@pytest.fixture
def page(cat, tmp_path, monkeypatch):
    """Return the page with a small photograph as the only example."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(Page, "example", lambda self, index: (cat, "cat, sky~"))
    return Page(cat.scene.predictor, tmp_path / "gradio")


@pytest.fixture
def visitor(cat):
    return Visitor(cat)


class Click:
    """Event of Gradio: example 0, or a place in the picture."""

    def __init__(self, index):
        self.index = index


class TestExpiredVisitor:
    def test_is_told_that_the_photograph_was_deleted(self, page):
        changes = [
            page._ask(None, "cat"),
            page._click(None, False, Click((75, 60))),
            page._show(None, "semantic"),
            page._merge(None, 0.5, 0.5),
        ]
        for changed in changes:
            assert list(changed) == [page.note]
            assert "deleted after an hour" in changed[page.note]

    def test_gets_no_file(self, page, tmp_path):
        changed = page._save(None)
        assert changed[page.file] is None
        assert "deleted after an hour" in changed[page.note]
        assert not list(tmp_path.rglob("*.zip"))

    def test_starts_again_by_an_example_or_an_upload(self, page, cat, tmp_path):
        Image.fromarray(cat.result.image).save(tmp_path / "tabby.png")
        assert page._choose_example(None, Click(0))[page.state].session.name == "cat"
        assert page._upload(None, str(tmp_path / "tabby.png"), "cat")[page.state].session.name == "tabby"


class TestLookCloser:
    def test_stays_ticked_while_views_and_words_change(self, page, visitor):
        assert page._click(visitor, True, Click((20, 10)))[page.closer] is True
        for changed in (page._show(visitor, "semantic"), page._ask(visitor, "cat")):
            assert page.closer not in changed
        assert visitor.session.corner == (20, 10)

    def test_is_unticked_by_the_second_corner_and_by_another_photograph(self, page, visitor):
        page._click(visitor, True, Click((20, 10)))
        assert page._click(visitor, True, Click((100, 80)))[page.closer] is False
        page._click(visitor, True, Click((20, 10)))
        assert page._choose_example(visitor, Click(0))[page.closer] is False


def test_values_of_an_event_are_made_before_the_next_one_starts(page, visitor, monkeypatch):
    """Else the values of the older event could arrive last, and the page would show what is no longer true."""
    drawing, go_on, original = Event(), Event(), events.picture

    def picture(session):
        if session.view == "semantic":
            drawing.set()
            go_on.wait(timeout=60)
        return original(session)

    monkeypatch.setattr(events, "picture", picture)
    views = []
    threads = [
        Thread(target=lambda view=view: views.append(page._show(visitor, view)[page.view]))
        for view in ("semantic", "patches")
    ]
    threads[0].start()
    assert drawing.wait(timeout=60)
    threads[1].start()
    threads[1].join(timeout=1)
    assert threads[1].is_alive(), "waits for the values of the first event"
    go_on.set()
    for thread in threads:
        thread.join()
    assert views == ["semantic", "patches"]


class TestPort:
    @pytest.mark.parametrize("port", ["0", "-1", "65536", "99999", "web"])
    def test_invalid(self, port, capsys):
        with pytest.raises(SystemExit):
            cli.main(["web", "--port", port])
        assert f"argument --port: must be a whole number, 1 to 65535, not '{port}'" in capsys.readouterr().err

    def test_in_use_is_reported_before_the_model_is_loaded(self, monkeypatch):
        monkeypatch.setattr("samcp.commands.web.load_predictor", lambda arguments: pytest.fail("loads the model"))
        with socket.create_server((server.HOST, 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(
                SystemExit, match=rf"--port {port} cannot be used \(Address already in use\); choose an"
            ):
                cli.main(["web", "--port", str(port)])

    def test_none_is_free(self, page, monkeypatch):
        def launch(self, **options):
            raise OSError("Cannot find empty port")

        monkeypatch.setattr(gr.Blocks, "launch", launch)
        with (
            pytest.raises(UsageError, match="^no port is free; choose another one by --port$"),
            server.serve(page.predictor),
        ):
            pass
