"""Vocabularies from the command line, from files, from the package and from datasets."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from samcp.errors import DataError
from samcp.vocabulary import Vocabulary


def test_parse() -> None:
    vocabulary = Vocabulary.parse("kite, sea~, person: man | woman")
    assert vocabulary.names == ("kite", "sea", "person")
    assert vocabulary.is_thing == (True, False, True)
    assert vocabulary.words == (("kite",), ("sea",), ("person", "man", "woman"))
    assert vocabulary == Vocabulary.parse("kite,sea~,person:man|woman")


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "beach.txt"
    file.write_text("# what is on a beach\n\nkite\nsea~, ocean\nperson, man, woman\n")
    vocabulary = Vocabulary.load(file)
    assert vocabulary == Vocabulary.parse("kite,sea~:ocean,person:man|woman")
    file.write_text("kite\nsea~: ocean\nperson: man | woman\n")
    assert Vocabulary.load(file) == vocabulary, "command-line syntax in a file"
    file.write_text("kite\nsea~: ocean\nperson: man, woman\n")
    assert Vocabulary.load(file) == vocabulary, "both separators in a file"
    assert Vocabulary.of_list(["kite", "sea~: ocean", "person, man, woman"]) == vocabulary


def test_load_fc_clip_file(tmp_path: Path) -> None:
    file = tmp_path / "coco_panoptic_with_prompt_eng.txt"
    file.write_text("0:invalid_class_id\n1:person,man,men\n2:bicycle\n12:invalid_class_id\n13:statue,man\n")
    vocabulary = Vocabulary.load(file)
    assert vocabulary.words == (("person", "man", "men"), ("bicycle",), ("statue", "man"))
    assert vocabulary.is_thing == (True, True, True)


def test_load_with_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "beach.txt"
    file.write_text("# with a mark of its encoding\nkite\n  # an indented remark\nsea~\n", encoding="utf-8-sig")
    assert Vocabulary.load(file) == Vocabulary.parse("kite, sea~")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kite,,sea", "class 2: an empty name"),
        (" ", "there are no words; write them as in"),
        ("kite,~", "class 2: an empty name"),
        ("person:man|", "class 1: an empty name"),
        ("kite,sea,Kite", "class 3: 'Kite' is already a word of vocabulary 'kite,sea,Kite', class 1"),
        ("person:man,boy:man", "class 2: 'man' is already a word"),
        ("person|man", "class 1: 'person|man' is not a valid name; write synonyms as in: person: man | woman"),
        ("kite,sea~:ocean~", "class 2: 'ocean~' contains ~, which is only allowed after the name of a stuff class"),
        ("sea~~", "class 1: 'sea~' contains ~"),
        ("~sea", "class 1: '~sea' contains ~"),
        ("café,cafe\u0301", "class 2: 'cafe\u0301' is already a word"),
        ("traffic light,traffic  light", "class 2: 'traffic  light' is already a word"),
        ("kite,ｋｉｔｅ", "class 2: 'ｋｉｔｅ' is already a word"),
    ],
)
def test_parse_rejects_invalid_names(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        Vocabulary.parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("kite", "Kite"), (True, True)), "duplicate names ['kite']"),
        ((("kite", "sea"), (True,)), "(2, 1, 2) names, kinds and synonyms"),
        ((("kite", "sea"), (True, False), (("dragon",),)), "(2, 2, 1) names, kinds and synonyms"),
    ],
)
def test_constructor_rejects_invalid_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(DataError) as error:
        Vocabulary(*arguments)
    assert message in str(error.value)


def test_load_errors_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "beach.txt"
    file.write_text("# a beach\nkite\nsea, , ocean\n")
    with pytest.raises(DataError, match=r"beach.txt, line 3: an empty name"):
        Vocabulary.load(file)
    file.write_text("kite\nsea\nkite\n")
    with pytest.raises(DataError, match=r"beach.txt, line 3: 'kite' is already a word of .*beach.txt, line 1"):
        Vocabulary.load(file)


def test_read(tmp_path: Path) -> None:
    (tmp_path / "beach").write_text("kite\nsea~\n")
    assert Vocabulary.read(str(tmp_path / "beach")) == Vocabulary.read("kite, sea~")
    assert Vocabulary.read("coco") == Vocabulary.read("COCO") == Vocabulary.load("coco")
    assert Vocabulary.read("kite").names == ("kite",)
    many = [f"kind of animal number {i}" for i in range(100)]
    assert Vocabulary.read(", ".join(many)).names == tuple(many), "longer than any file name"
    for absent in ("beach.txt", "/nope/my_classes", "./my_classes"):
        with pytest.raises(DataError, match=f"{absent}: neither one of .* nor a readable text file"):
            Vocabulary.read(absent)
    assert Vocabulary.read("kite, and/or").names == ("kite", "and/or")


def test_load_rejects_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "beach.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match=r"beach.txt: no classes"):
        Vocabulary.load(tmp_path / "beach.txt")
    with pytest.raises(DataError, match=r"absent: neither one of ade20k, cityscapes, coco, cod10k, pascal_part"):
        Vocabulary.load("absent")


@pytest.mark.parametrize(
    ("name", "things", "stuff"),
    [("coco", 80, 53), ("ade20k", 100, 50), ("cityscapes", 8, 11), ("cod10k", 69, 0), ("pascal_part", 93, 0)],
)
def test_packaged_vocabularies(name: str, things: int, stuff: int) -> None:
    vocabulary = Vocabulary.load(name)
    assert (sum(vocabulary.is_thing), len(vocabulary.is_thing) - sum(vocabulary.is_thing)) == (things, stuff)


def test_coco_has_the_order_of_detectron2() -> None:
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    vocabulary = Vocabulary.load("coco")
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    assert vocabulary.is_thing == tuple(i in things for i in range(133))
    for ours, theirs in zip(vocabulary.names, metadata.stuff_classes, strict=True):
        expected = set(theirs.replace("playingfield", "playing-field").replace("-", " ").split())
        assert set(ours.split()) == expected - {"stuff", "other", "merged"}


# Names that replace names of Detectron2 that are ambiguous or too general without their synonyms.
CLEARER_IN_ADE20K = {
    *("bathtub", "railing", "display case", "palm tree", "television", "airplane", "conveyor belt", "washing machine"),
    *("toy", "swimming pool", "motorbike", "waterfall", "storage tank"),
}


def test_ade20k_has_the_order_of_detectron2() -> None:
    ours = Vocabulary.load("ade20k").names
    theirs = [name.split(",")[0].strip() for name in MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes]
    assert {a for a, b in zip(ours, theirs, strict=True) if a != b} == CLEARER_IN_ADE20K


def test_cityscapes_has_the_order_of_detectron2() -> None:
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    vocabulary = Vocabulary.load("cityscapes")
    assert list(vocabulary.names) == metadata.stuff_classes
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    assert vocabulary.is_thing == tuple(i in things for i in range(19))


def test_vocabulary_of_dataset(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("wall~, brick wall\nlamp\n")
    metadata = MetadataCatalog.get("vocabulary_test")
    metadata.set(stuff_classes=["wall-other-merged", "lamp"], thing_dataset_id_to_contiguous_id={7: 1})
    assert Vocabulary.of_dataset("vocabulary_test") == Vocabulary(("wall-other-merged", "lamp"), (False, True))
    metadata.set(vocabulary=["wall~, brick wall", "lamp"])
    assert Vocabulary.of_dataset("vocabulary_test") == Vocabulary.parse("wall~:brick wall,lamp")
    del metadata.vocabulary
    metadata.set(vocabulary=str(tmp_path / "words.txt"))
    assert Vocabulary.of_dataset("vocabulary_test") == Vocabulary.parse("wall~:brick wall,lamp")
    (tmp_path / "words.txt").write_text("wall~\n")
    with pytest.raises(DataError, match=r"words.txt: has 1 classes, but dataset 'vocabulary_test' has 2"):
        Vocabulary.of_dataset("vocabulary_test")


def test_dataset_without_classes() -> None:
    with pytest.raises(DataError, match="there is no dataset 'nowhere_train'; register it, a custom one by --register"):
        Vocabulary.of_dataset("nowhere_train")
    DatasetCatalog.register("classless_test", list)
    with pytest.raises(DataError, match="'classless_test' has neither stuff_classes nor thing_classes"):
        Vocabulary.of_dataset("classless_test")
    DatasetCatalog.remove("classless_test")


def test_dataset_determines_things_and_stuff() -> None:
    """All classes of a dataset of label maps are stuff, also those that are things in the vocabulary."""
    assert sum(Vocabulary.load("ade20k").is_thing) == 100
    assert not any(Vocabulary.of_dataset("ade20k_sem_seg_val").is_thing)
    assert sum(Vocabulary.of_dataset("coco_2017_val_panoptic").is_thing) == 80
