"""Generation in parts that know nothing of each other."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from proposal_cache import CacheError, CacheWriter, PatchCache, Patches
from proposal_cache.errors import LockedError, MismatchError
from proposal_cache.generation.parts import Part, finish_part, start_part, unfinished_parts
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import from_folder
from proposal_cache.generation.streams import TarShard
from proposal_cache.store.writer import stage_shard
from tests.proposal_cache.generation.fakes import Halves, content, write_images
from tests.proposal_cache.tool import write_tar


def run(folder: Path, path: Path, part: Part | None = None) -> bool:
    return generate(from_folder(folder), Halves(), path, "set", part=part, shard_size=2, progress=False)


def test_last_part_makes_the_cache_readable(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    assert run(folder, tmp_path / "one")
    assert [run(folder, tmp_path / "parts", Part(index, 3)) for index in (2, 0)] == [False, False]
    assert unfinished_parts(tmp_path / "parts") == [Part(1, 3)]
    with pytest.raises(CacheError, match="never finished"):
        PatchCache(tmp_path / "parts")
    assert run(folder, tmp_path / "parts", Part(1, 3))
    assert content(tmp_path / "parts") == content(tmp_path / "one")


def test_part_with_other_images_must_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Part 0 of an earlier run, or of a run with other images, does not count as finished."""
    folder, path = write_images(tmp_path / "images"), tmp_path / "parts"
    assert [run(folder, path, Part(index, 2)) for index in range(2)] == [False, True]
    (folder / "00.png").unlink()
    assert not run(folder, path, Part(1, 2))
    message = "part 0/2 finished with 10 images or tar files, part 1/2 has 9 or others: part 0/2 must run again"
    assert message in capsys.readouterr().err
    assert unfinished_parts(path) == [Part(0, 2)]
    assert run(folder, path, Part(0, 2))


def test_parts_of_a_new_run_may_start_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another part has removed the mark of the earlier run after it was listed."""
    sources = from_folder(write_images(tmp_path / "images"))
    finish_part(tmp_path, Part(0, 3), sources)
    listed = [*tmp_path.iterdir()]
    start_part(tmp_path, Part(1, 3), sources[1:])
    monkeypatch.setattr("proposal_cache.generation.parts.list_directory", lambda cache: listed)
    start_part(tmp_path, Part(2, 3), sources[1:])
    assert unfinished_parts(tmp_path) == []


def test_last_part_fails_if_another_has_different_images_at_the_same_time(tmp_path: Path) -> None:
    sources = from_folder(write_images(tmp_path / "images"))
    for part in (Part(0, 2), Part(1, 2)):
        start_part(tmp_path, part, sources)
    assert not finish_part(tmp_path, Part(0, 2), sources)
    with pytest.raises(CacheError, match="part 0/2 was given 10 images or tar files, part 1/2 9 or others, .*run"):
        finish_part(tmp_path, Part(1, 2), sources[1:])


@pytest.mark.parametrize("at_once", [False, True])
def test_images_of_several_parts_with_the_same_key_are_an_error(tmp_path: Path, at_once: bool) -> None:
    """A part does not know the keys of others, and skips those that are in the cache already."""
    images = sorted(write_images(tmp_path / "images").iterdir())
    for number in range(2):
        members = {f"{i}.png": images[2 * number + i].read_bytes() for i in range(2)}
        write_tar(tmp_path / f"{number}.tar", members)
    shards = [TarShard(str(tmp_path / f"{number}.tar")) for number in range(2)]
    run_part = partial(generate, [*shards], Halves(), tmp_path / "cache", "set", progress=False)
    with CacheWriter(tmp_path / "cache", {"name": "halves"}, "set", rank=1, ranks=2) as writer:
        run_part(part=Part(0, 2))
        if at_once:
            for key in ("0", "1"):
                writer.add(key, Patches.from_masks(np.ones((1, 8, 16), bool)))
    with pytest.raises(CacheError, match="lacks 2 images of the tar files, since others have the same keys"):
        run_part(part=Part(1, 2))
    assert sorted(PatchCache(tmp_path / "cache")) == ["0", "1"]


def test_parts_of_tar_files(tmp_path: Path) -> None:
    """A damaged image is a failure, and no lost one."""
    images = sorted(write_images(tmp_path / "images").iterdir())
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {images[number].name: images[number].read_bytes(), f"{number}.png": b"?"})
    shards = [TarShard(str(tmp_path / f"{number}.tar")) for number in range(3)]
    run_part = partial(generate, [*shards], Halves(), tmp_path / "cache", "set", progress=False)
    assert [run_part(part=Part(index, 2)) for index in (1, 0, 1)] == [False, True, True]
    cache = PatchCache(tmp_path / "cache")
    assert (sorted(cache), sorted(cache.manifest.failures)) == (["00", "01", "02"], ["0", "1", "2"])


def test_marks_of_another_number_of_parts_are_removed(tmp_path: Path) -> None:
    folder, path = write_images(tmp_path / "images"), tmp_path / "parts"
    run(folder, path, Part(0, 4))
    assert len(unfinished_parts(path)) == 3
    assert run(folder, path)
    assert unfinished_parts(path) == []


def test_finished_part_stays_finished_if_it_cannot_start_again(tmp_path: Path) -> None:
    folder, path, part = write_images(tmp_path / "images"), tmp_path / "parts", Part(1, 2)
    run(folder, path, part)
    with CacheWriter(path, {"name": "halves"}, "set", rank=1, ranks=2), pytest.raises(LockedError):
        run(folder, path, part)
    with pytest.raises(MismatchError, match="dataset"):
        generate(from_folder(folder), Halves(), path, "another set", part=part, progress=False)
    assert unfinished_parts(path) == [Part(0, 2)]


ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}
ARRAY |= {"SLURM_ARRAY_TASK_COUNT": "4"}
STEP = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, Part(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Part(3, 8)),
        (ARRAY, Part(2, 4)),
        (STEP, Part(1, 8)),
        (STEP | {"RANK": "3", "WORLD_SIZE": "4"}, Part(3, 4)),
        (ARRAY | STEP, Part(17, 32)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Part(0, 1)),  # a batch script outside of srun
        ({"RANK": "0", "WORLD_SIZE": "many"}, "WORLD_SIZE is 'many', not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "part 2/2: parts are counted from 0"),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "4"}, "not a regular range, so that task 4 needs --part"),
    ],
)
def test_part_of_a_scheduler(environment: dict[str, str], part: Part | str) -> None:
    with pytest.raises(CacheError, match=part) if isinstance(part, str) else nullcontext():
        assert Part.from_environment(environment) == part


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2"])
def test_part_is_written_as_a_fraction(text: str) -> None:
    assert Part.parse("0/2") == Part(0, 2)
    with pytest.raises(CacheError, match="part"):
        Part.parse(text)


def test_image_staged_twice_is_committed_once(tmp_path: Path) -> None:
    """A task that Ray executes again may stage its images a second time, alone or with others."""
    path = tmp_path / "cache"
    with CacheWriter(path, {"name": "halves"}, "set") as writer:
        staged = [
            stage_shard(path, [(key, Patches.from_masks(np.ones((1, 8, width), bool))) for key in keys], generators=1)[
                0
            ]
            for width, keys in enumerate(("ab", "ab", "bc"), 1)
        ]
        for shard in staged:
            writer.commit(shard)
            assert not shard.exists()
    cache = PatchCache(path)
    assert {key: found.width for key, found in cache.items()} == {"a": 1, "b": 1, "c": 3}
    content(path)


def test_staged_shards_of_an_interrupted_run_are_used(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    run(folder, tmp_path / "one")
    finished = PatchCache(tmp_path / "one")
    with CacheWriter(tmp_path / "cache", {"name": "halves"}, "set"):
        stage_shard(tmp_path / "cache", [("03", finished["03"])], generators=1)
    incomplete = tmp_path / "cache" / "staged" / "0123456789abcdef.h5.0123456789abcdef.tmp"
    incomplete.write_bytes(b"half")
    generator = Halves()
    generate(from_folder(folder), generator, tmp_path / "cache", "set", progress=False)
    assert generator.calls == 9
    assert not incomplete.exists()
    assert content(tmp_path / "cache") == content(tmp_path / "one")


@pytest.mark.parametrize("mark", ["{half", "[]", "7", '{"sources": 10}'])
def test_damaged_marks_are_named(tmp_path: Path, mark: str) -> None:
    folder = write_images(tmp_path / "images")
    run(folder, tmp_path / "parts", Part(0, 2))
    (tmp_path / "parts" / "part-00000-of-00002.json").write_text(mark)
    with pytest.raises(CacheError, match="part-00000-of-00002.json: damaged .*; delete it, and run this part again"):
        unfinished_parts(tmp_path / "parts")
