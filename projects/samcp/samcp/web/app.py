"""Layout and events of the page (Gradio); :mod:`samcp.web.session` has what the events do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock
from typing import Any

import gradio as gr
import skimage.data

from samcp.predictor import Predictor
from samcp.vocabulary import Vocabulary
from samcp.web import session as events
from samcp.web.session import Session

_LIFETIME = 3600  # seconds until the state and the files of a visitor are deleted
_SWEEP = 600  # seconds between deletions
_SLIDER = {"trigger_mode": "always_last", "show_progress": "hidden"}

_TITLE = """# Segment a photograph by words
Choose a photograph, type what you look for, and **click on the picture**."""
_WORDS = "Separated by commas. ~ marks stuff without instances (sky~), synonyms follow a colon (person: man | woman)."
_HINT = "**Click on the picture** to see the label of a patch (Prompt I) and the object it belongs to (Prompt II)."
_LIMITS = (
    f"Files: JPEG, PNG, WebP, TIFF or BMP, at most {events.MAX_BYTES >> 20} MB and {events.MAX_PIXELS // 10**6} "
    f"million pixels. They are reduced to a side of {events.MAX_SIDE} pixels, and deleted after an hour."
)
_EXPIRED = "There is no photograph any more: it was deleted after an hour. Choose one, or upload it again."
THEME = gr.themes.Default(
    font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"), spacing_size="sm"
).set(block_info_text_color="*neutral_600", body_text_color_subdued="*neutral_600")
CSS = """
.gradio-container { max-width: 1360px !important; margin: auto }
#examples .grid-wrap { min-height: 0; max-height: none; overflow: hidden; padding: 0 }
#examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)); grid-template-rows: none; gap: 8px }
#examples button { min-width: 0; aspect-ratio: 4 / 3 }
#picture img { max-height: 72vh; object-fit: contain; cursor: crosshair }
#legend ul { display: flex; flex-wrap: wrap; gap: .2em 1.1em; list-style: none; padding: 0; margin: 0 }
#legend i { display: inline-block; width: 1em; height: 1em; border-radius: .2em; margin-right: .3em }
#legend i { vertical-align: -.1em }
#legend .missing, #limits { color: var(--body-text-color-subdued) }
#limits { font-size: .85em }
#legend, #note, #group, #limits { padding: 0 !important }
.error { color: var(--error-text-color); font-weight: 600 }
"""


@dataclass(frozen=True)
class Example:
    """Photograph of scikit-image, and words for the default model."""

    name: str
    words: str


EXAMPLES = (
    Example("astronaut", "person, helmet, flag~"),
    Example("coffee", "cup, spoon, plate"),
    Example("chelsea", "cat, blanket~"),
)


@dataclass
class Visitor:
    """Session of one visitor, changed by one event at a time, so that no event undoes what another one did."""

    session: Session
    lock: Lock = field(default_factory=Lock)


class Page:
    """The page of one model.

    Args:
        predictor: the model and the generator of patches.
        folder: for files of visitors; it must be the value of GRADIO_TEMP_DIR.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self.predictor = predictor
        self.folder = folder
        self._example_lock = Lock()
        self._cached_example = cache(self._make_example)
        self._make_layout()
        self._connect()

    def example(self, index: int) -> tuple[Session, str]:
        """Return the session of an example, which is computed once and then shared by all visitors, and its words."""
        with self._example_lock:
            return self._cached_example(index)

    def _make_example(self, index: int) -> tuple[Session, str]:
        example = EXAMPLES[index]
        words = example.words
        try:
            self.predictor.check_words(Vocabulary.parse(words))
        except ValueError:  # a model with other classes
            words = ""
        return events.start(self.predictor, getattr(skimage.data, example.name)(), example.name, words), words

    def _make_layout(self) -> None:
        with gr.Blocks(title="SAM-CP", analytics_enabled=False, delete_cache=(_SWEEP, _LIFETIME)) as self.blocks:
            self.state = gr.State(None, time_to_live=_LIFETIME)
            gr.Markdown(_TITLE)
            with gr.Row():
                with gr.Column(scale=3, min_width=260):
                    self._make_inputs()
                with gr.Column(scale=6, min_width=300):
                    self._make_picture()
                with gr.Column(scale=3, min_width=260):
                    self._make_answers()
            gr.HTML(_LIMITS, elem_id="limits")

    def _make_inputs(self) -> None:
        self.gallery = gr.Gallery(
            [getattr(skimage.data, example.name)() for example in EXAMPLES],
            show_label=False,
            container=False,
            columns=len(EXAMPLES),
            height="auto",
            allow_preview=False,
            object_fit="cover",
            interactive=False,
            buttons=[],
            elem_id="examples",
        )
        self.upload = gr.UploadButton("Upload a photograph", file_types=["image"], size="md", elem_id="upload")
        number = len(self.predictor.vocabulary.names)
        self.words = gr.Textbox(
            label="Words", info=_WORDS, placeholder=f"empty: the {number} words of the model", elem_id="words"
        )
        self.ask = gr.Button("Segment", variant="primary", size="md", elem_id="ask")

    def _make_picture(self) -> None:
        views = [("semantic", "semantic"), ("patches", "patches")]
        if self.predictor.has_instances:
            views = [("panoptic", "panoptic"), ("instances", "instance"), *views]
        self.view = gr.Radio(views, show_label=False, container=False, elem_id="view")
        self.picture = gr.Image(
            format="png",
            interactive=False,
            show_label=False,
            buttons=["fullscreen"],
            elem_id="picture",
            alt_text="the photograph with its segmentation",
        )
        self.legend = gr.HTML(padding=False, elem_id="legend")
        self.note = gr.HTML(padding=False, elem_id="note")

    def _make_answers(self) -> None:
        self.hint = gr.Markdown(_HINT, elem_id="hint")
        self.bars = gr.Label(label="Prompt I: what is this patch?", visible=False, show_heading=False, elem_id="bars")
        self.group = gr.HTML(padding=False, elem_id="group")
        with gr.Group():
            self.confidence = gr.Slider(
                0, 1, step=0.01, label="Confidence", info="Minimum score of a segment.", elem_id="confidence"
            )
            self.merging = gr.Slider(
                0, 1, step=0.01, label="Merging", info="Minimum affinity of merged patches.", elem_id="merging"
            )
            self.closer = gr.Checkbox(
                label="Look closer",
                info="Click two corners of a box in the picture, to add finer patches there.",
                elem_id="closer",
            )
        self.save = gr.Button("Download PNG and json", size="md", elem_id="save")
        self.file = gr.DownloadButton(visible="hidden", elem_id="file")

    def _connect(self) -> None:
        answer = [self.state, self.picture, self.legend, self.note, self.hint, self.bars, self.group]
        everything = [*answer, self.words, self.view, self.confidence, self.merging, self.closer]
        model: dict[str, Any] = {"outputs": everything, "show_progress_on": self.picture, "concurrency_id": "model"}
        quick: dict[str, Any] = {"outputs": everything, "show_progress": "hidden"}
        with self.blocks:
            self.blocks.load(self._load, self.state, **model)
            self.gallery.select(self._choose_example, self.state, **model)
            self.upload.upload(self._upload, [self.state, self.upload, self.words], **model)
            gr.on([self.ask.click, self.words.submit], self._ask, [self.state, self.words], **model)
            self.picture.select(self._click, [self.state, self.closer], **model)
            self.view.input(self._show, [self.state, self.view], **quick)
            thresholds = [self.state, self.confidence, self.merging]
            gr.on([self.confidence.input, self.merging.input], self._merge, thresholds, answer, **_SLIDER)
            self.save.click(self._save, self.state, [self.file, self.note]).success(
                None, js="() => document.querySelector('#file').click()"
            )

    def _load(self, visitor: Visitor | None) -> dict[Any, Any]:
        return self._change(visitor or self._new_visitor(), lambda now: now, words=self.example(0)[1], closer=False)

    def _choose_example(self, visitor: Visitor | None, event: gr.SelectData) -> dict[Any, Any]:
        chosen, words = self.example(event.index)
        return self._change(visitor or self._new_visitor(), lambda now: chosen, words=words, closer=False)

    def _upload(self, visitor: Visitor | None, path: str, words: str) -> dict[Any, Any]:
        if words in [example.words for example in EXAMPLES]:
            words = ""

        def start(now: Session) -> Session:
            return events.start(self.predictor, events.read_photograph(path), Path(path).stem, words)

        return self._change(visitor or self._new_visitor(), start, words=words, closer=False)

    def _ask(self, visitor: Visitor | None, words: str) -> dict[Any, Any]:
        return self._change(visitor, lambda now: events.ask(now, words))

    def _click(self, visitor: Visitor | None, closer: bool, event: gr.SelectData) -> dict[Any, Any]:
        action = events.mark_corner if closer else events.click
        return self._change(visitor, lambda now: action(now, *map(int, event.index)), closer=closer)

    def _show(self, visitor: Visitor | None, view: str) -> dict[Any, Any]:
        return self._change(visitor, lambda now: events.show(now, view))

    def _merge(self, visitor: Visitor | None, confidence: float, merging: float) -> dict[Any, Any]:
        changed = self._change(visitor, lambda now: events.merge_again(now, confidence=confidence, merging=merging))
        return {component: value for component, value in changed.items() if component not in self._settings}

    def _save(self, visitor: Visitor | None) -> dict[Any, Any]:
        if visitor is None:
            return {self.file: None, self.note: _alert(_EXPIRED)}
        # Gradio deletes the file with all others in this folder.
        return {self.file: str(events.write_files(visitor.session, Path(mkdtemp(dir=self.folder))))}

    def _new_visitor(self) -> Visitor:
        return Visitor(self.example(0)[0])

    def _change(
        self,
        visitor: Visitor | None,
        event: Callable[[Session], Session],
        *,
        words: str | None = None,
        closer: bool | None = None,
    ) -> dict[Any, Any]:
        """Apply an event and return the new values of all components, or a message if it fails.

        Args:
            visitor: None after the photograph was deleted.
            words: new text of the words, None to leave it.
            closer: whether "Look closer" is ticked while a corner is marked, None to leave it.
        """
        if visitor is None:
            return {self.note: _alert(_EXPIRED)}
        with visitor.lock:  # also while the values are made, so that those of an older event do not come last
            try:
                now = visitor.session = event(visitor.session)
            except (ValueError, OSError) as error:
                return {self.note: _alert(str(error))}
            values = {self.state: visitor, **self._values(now)}
        if words is not None:
            values[self.words] = words
        if closer is not None:
            values[self.closer] = closer and now.corner is not None
        return values

    def _values(self, now: Session) -> dict[Any, Any]:
        bars, confidence = events.bars(now), events.confidence(now)
        return {
            self.picture: events.picture(now),
            self.legend: events.legend(now),
            self.note: f'<span role="status">{escape(now.note)}</span>',
            self.hint: gr.Markdown(visible=not bars),
            self.bars: gr.Label(bars, visible=bool(bars)),
            self.group: escape(events.group_text(now)),
            self.view: now.view,
            self.confidence: gr.Slider(value=confidence or 0, interactive=confidence is not None),
            self.merging: now.result.inference.member_threshold,
        }

    @property
    def _settings(self) -> tuple[Any, ...]:
        return (self.view, self.confidence, self.merging, self.closer)


def _alert(message: str) -> str:
    return f'<span class="error" role="alert">{escape(message)}</span>'
