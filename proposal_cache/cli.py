"""Command line: proposal-cache COMMAND, or python -m proposal_cache COMMAND."""

import argparse
import inspect
import json
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from PIL import Image
from tqdm import tqdm

from proposal_cache.errors import CacheError
from proposal_cache.generation import options
from proposal_cache.generation.parts import unfinished_parts
from proposal_cache.generation.pipeline import coverage, mean_coverage, summary
from proposal_cache.generation.sources import read_image
from proposal_cache.generation.streams import find_sources
from proposal_cache.interchange.coco import export_results, import_panoptic, import_results
from proposal_cache.interchange.sa1b import import_sa1b
from proposal_cache.store import Manifest, PatchCache, finalize, merge, verify
from proposal_cache.visualize import draw_patches

_KEYS_SHOWN = 5
_CONTINUES = "completed work is kept; repeat the same command to continue"
_STARTS_AGAIN = "nothing was changed; repeat the same command to start again"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit; see `run_command` for the status, which is 2 for a wrong command line."""
    parsed = _parser().parse_args(arguments)
    resumable = parsed.run in (_generate, _finalize, _merge, _import)
    run_command(partial(parsed.run, parsed), _CONTINUES if resumable else _STARTS_AGAIN)


def run_command(run: Callable[[], int | None], interrupted: str = _CONTINUES) -> NoReturn:
    """Run a function and exit with its result.

    The status is 1 and the message one line if it raises CacheError, and 130 after Ctrl-C or SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(run())
    except CacheError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as head, has exited
        sys.stderr.close()
        sys.exit(0)
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proposal-cache",
        description="Generate, inspect, check and exchange patch caches.\n\n"
        "A cache is a directory with the patches of every image of a dataset: masks, boxes and scores, by the image's\n"
        "key, which is its path under the image root, without suffix.",
        epilog="proposal-cache COMMAND --help has examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None]) -> Callable[..., Any]:
        """Add a command, whose help is its docstring, and return its `add_argument`."""
        summary, _, rest = inspect.cleandoc(run.__doc__ or "").partition("\n")
        more, _, example = rest.partition("example:")
        added = commands.add_parser(
            name,
            help=f"{summary[0].lower()}{summary[1:-1]}",
            description=f"{summary}\n{more}".strip(),
            epilog=f"example:{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added.add_argument

    cache: dict[str, Any] = {"type": Path, "metavar": "CACHE", "help": "directory"}
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}
    output: dict[str, Any] = {"type": Path, "required": True, "metavar": "DIR", "help": "directory of the new cache"}

    add = command("generate", _generate)
    text = (
        "folder, searched with its subfolders; URL of a folder (s3://, gs://, https://, ...); or tar files in "
        "webdataset layout, as path or URL: {000..099}, {a,b}, * and ? name several"
    )
    add("--images", required=True, metavar="WHERE", help=text)
    add("--name", help="of the dataset in the cache (default: last part of --images)")
    options.add_options(commands.choices["generate"])

    command("finalize", _finalize)("cache", **cache)
    command("info", _info)("cache", **cache)
    command("verify", _verify)("cache", **cache)

    add = command("show", _show)
    add("cache", **cache)
    add("key", metavar="KEY", help="of the image; `info` prints the first ones")
    add("--image", **file, help="to draw on; default: black")
    add("--output", **file, required=True, help="picture to write")

    add = command("merge", _merge)
    add("caches", type=Path, nargs="+", metavar="CACHE")
    add("--output", **output)
    add("--dataset", metavar="NAME", help="of the new cache, required if those of the caches differ")

    add = command("import", _import)
    add("results", metavar="RESULTS", help="json; for SA-1B a folder, or tar files as in `generate`")
    text = "default: coco, or panoptic if --panoptic is given"
    add("--format", choices=("coco", "panoptic", "sa1b"), help=text)
    add("--annotations", **file, help="COCO json with id, name and size of each image")
    add("--panoptic", type=Path, metavar="DIR", help="folder of the PNGs of a panoptic json")
    add("--add-to", type=Path, metavar="CACHE", help="write these patches together with those of CACHE")
    add("--dataset", metavar="NAME", help="default: that of --add-to, or the name of RESULTS")
    add("--keep-labels", action="store_true", help="store each category as a separate source")
    add("--drop-scores", action="store_true", help="otherwise they are stored as predicted IoU")
    add("--output", **output)

    add = command("export", _export)
    add("cache", **cache)
    add("--annotations", **file, help="COCO json with the images' ids; default: use the keys")
    add("--output", **file, required=True, help="json to write")
    return parser


def _generate(arguments: argparse.Namespace) -> int:
    """Generate the patches of images.

    Images that fail are skipped with a warning and recorded in the manifest. Repeat the command to continue
    after an interruption; it generates what is missing.

    example:
      proposal-cache generate --images photos --output patches
      proposal-cache generate --images 'shards/{000..099}.tar' --checkpoint sam_vit_h_4b8939.pth \\
          --device cuda --output patches
    """
    sources = find_sources(arguments.images)
    return options.run(arguments, sources, arguments.name or Path(arguments.images).resolve().name)


def _finalize(arguments: argparse.Namespace) -> None:
    """Make a cache readable whose parts are finished.

    Needed after `generate --part I/N` only if the last part was interrupted, or to read the finished parts now.

    example:
      proposal-cache finalize CACHE
    """
    finalize(arguments.cache)
    unfinished = unfinished_parts(arguments.cache)
    if unfinished:
        print(f"warning: these parts are not finished: {', '.join(map(str, unfinished))}", file=sys.stderr)
    print(summary(PatchCache(arguments.cache)))


def _info(arguments: argparse.Namespace) -> None:
    """Print dataset, generators, statistics and failures of a cache.

    example:
      proposal-cache info CACHE
    """
    cache = PatchCache(arguments.cache)
    manifest, images = cache.manifest, max(len(cache), 1)
    print(f"dataset     {manifest.dataset}")
    for number, generator in enumerate(manifest.generators):
        print(f"source {number:<4} {json.dumps(generator)}")
    print(f"images      {len(cache)}, first: {', '.join(islice(cache, _KEYS_SHOWN)) or 'none'}")
    print(f"patches     {manifest.patches}, {manifest.patches / images:.1f} per image")
    print(
        f"size        {manifest.bytes} bytes in {len(manifest.shards)} shards, {manifest.bytes / images:.0f} per image"
    )
    print(f"coverage    {100 * mean_coverage(cache):.1f} % of pixels")
    print(f"failures    {len(manifest.failures)}")
    for key, reason in manifest.failures.items():
        print(f"  {key}: {reason}")


def _verify(arguments: argparse.Namespace) -> int:
    """Check all checksums and list damaged files.

    The exit status is 1 if a file is damaged. To repair a shard, delete it and run the command that generated
    the cache again; it generates the missing images only.

    example:
      proposal-cache verify CACHE && echo undamaged
    """
    bad = files = 0
    expected = len(Manifest.load(arguments.cache).shards) + 2  # manifest and index
    for verdict in tqdm(verify(arguments.cache), "verifying", expected, unit="file"):
        files += 1
        if verdict.problem:
            bad += 1
            tqdm.write(f"BAD {verdict.file}: {verdict.problem}")
    print(f"{arguments.cache}: {files} files read, {bad} bad")
    return int(bad > 0)


def _show(arguments: argparse.Namespace) -> None:
    """Draw the patches of an image.

    example:
      proposal-cache show CACHE 000000000139 --image coco/val2017/000000000139.jpg --output patches.png
    """
    patches = PatchCache(arguments.cache)[arguments.key]
    picture = draw_patches(patches, read_image(arguments.image) if arguments.image else None)
    try:
        Image.fromarray(picture).save(arguments.output)
    except (OSError, ValueError) as error:  # Pillow raises ValueError for an unknown suffix
        raise CacheError(f"{arguments.output} cannot be written: {error}") from error
    print(
        f"{arguments.output}: {len(patches)} patches of {arguments.key}, {patches.width} x {patches.height} pixels, "
        f"{100 * coverage(patches):.1f} % covered"
    )


def _merge(arguments: argparse.Namespace) -> None:
    """Merge several caches into one.

    Caches may contain different images, or patches of the same images by different generators, which are kept
    as separate sources.

    example:
      proposal-cache merge sam contours --output both
    """
    merge([PatchCache(path) for path in arguments.caches], arguments.output, dataset=arguments.dataset, progress=True)
    print(summary(PatchCache(arguments.output)))


def _import(arguments: argparse.Namespace) -> None:
    """Create a cache from masks of another program.

    RESULTS is a json of COCO results with masks, a panoptic json, or, for SA-1B, a folder of its json files or
    its tar files. Labels are dropped unless --keep-labels is given.

    example:
      proposal-cache import results.json --annotations instances_val2017.json --output theirs
      proposal-cache import panoptic.json --panoptic panoptic_pngs --keep-labels --output theirs
      proposal-cache import results.json --annotations images.json --add-to sam --output both
      proposal-cache import 'sa_{000000..000999}.tar' --format sa1b --output sa1b
    """
    base = PatchCache(arguments.add_to) if arguments.add_to else None
    dataset = arguments.dataset or (base.manifest.dataset if base else Path(arguments.results).stem)
    write, output = _importer(arguments), arguments.output
    if base is None:
        write(output, dataset)
    else:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            folder = TemporaryDirectory(prefix=".import-", dir=output.parent)  # on the same disk
        except OSError as error:
            raise CacheError(f"{output} cannot be created: {error.strerror}: {error.filename}") from error
        with folder as name:
            write(Path(name) / "cache", dataset)
            imported = PatchCache(Path(name) / "cache")
            _check_keys(base, imported, arguments.results)
            merge([base, imported], output, dataset=dataset, progress=True)
    print(summary(PatchCache(output)))


def _importer(arguments: argparse.Namespace) -> Callable[[Path, str], None]:
    results, labels = arguments.results, arguments.keep_labels
    kind = arguments.format or ("panoptic" if arguments.panoptic else "coco")
    if kind == "sa1b":
        return partial(import_sa1b, results, progress=True)
    if kind == "panoptic":
        if arguments.panoptic is None:
            raise CacheError("a panoptic json needs the folder of its PNGs: give --panoptic DIR")
        return partial(import_panoptic, results, arguments.panoptic, labels=labels, progress=True)
    if arguments.annotations is None:
        raise CacheError(
            "COCO results contain neither names nor sizes of images: give --annotations FILE, or --panoptic DIR"
        )
    scores = not arguments.drop_scores
    return partial(import_results, results, arguments.annotations, labels=labels, scores=scores, progress=True)


def _check_keys(base: PatchCache, imported: PatchCache, results: str) -> None:
    """Raise CacheError if none of the imported images is in the other cache, and warn if some are not."""
    other = [key for key in base.missing(imported) if key not in base.manifest.failures]
    if other and len(other) == len(imported):
        raise CacheError(
            f"no image of {results} is in {base.path}: a key of the results is {other[0]!r}, of the cache "
            f"{next(iter(base), None)!r}. A key is the path under the image root, without suffix; correct each "
            "file_name in the json"
        )
    if other:
        print(
            f"warning: {len(other)} of {len(imported)} images of {results} are not in {base.path} ({other[0]!r}, ...): "
            "they have the new patches only",
            file=sys.stderr,
        )


def _export(arguments: argparse.Namespace) -> None:
    """Export a cache as COCO results.

    example:
      proposal-cache export CACHE --annotations instances_val2017.json --output patches.json
    """
    count = export_results(PatchCache(arguments.cache), arguments.output, arguments.annotations, progress=True)
    print(f"{arguments.output}: {count} patches")
