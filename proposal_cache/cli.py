"""Command line: proposal-cache COMMAND, or python -m proposal_cache COMMAND."""

import argparse
import json
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from proposal_cache.errors import CacheError
from proposal_cache.generation import options

if TYPE_CHECKING:
    from proposal_cache.store import PatchCache

# Commands import what they need when they run, so that --help is fast.

_KEYS_SHOWN = 5
_CONTINUES = "completed work is kept; repeat the same command to continue"
_STARTS_AGAIN = "nothing was changed; repeat the same command to start again"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit; see `run_command` for the status, which is 2 for a wrong command line."""
    parsed = _parser().parse_args(arguments)
    run_command(partial(parsed.run, parsed), parsed.interrupted)


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


def _generate(arguments: argparse.Namespace) -> int:
    from proposal_cache.generation.streams import find_sources

    sources = find_sources(arguments.images)
    return options.run(arguments, sources, arguments.name or Path(arguments.images).resolve().name)


def _finalize(arguments: argparse.Namespace) -> None:
    from proposal_cache.generation.parts import unfinished_parts
    from proposal_cache.store import finalize

    finalize(arguments.cache)
    unfinished = unfinished_parts(arguments.cache)
    if unfinished:
        names = ", ".join(f"{part.index}/{part.count}" for part in unfinished)
        print(f"warning: these parts are not finished: {names}", file=sys.stderr)
    _print_summary(arguments.cache)


def _info(arguments: argparse.Namespace) -> None:
    from proposal_cache.generation.pipeline import Summary
    from proposal_cache.store import PatchCache

    cache = PatchCache(arguments.cache)
    manifest, summary = cache.manifest, Summary.of(cache)
    print(f"dataset     {manifest.dataset}")
    for number, generator in enumerate(manifest.generators):
        print(f"source {number:<4} {json.dumps(generator)}")
    print(f"images      {summary.images}, first: {', '.join(_first_keys(cache)) or 'none'}")
    print(f"patches     {manifest.patches}, {summary.patches:.1f} per image")
    print(f"size        {manifest.bytes} bytes in {len(manifest.shards)} shards, {summary.bytes:.0f} per image")
    print(f"coverage    {100 * summary.coverage:.1f} % of pixels")
    print(f"failures    {summary.failed}")
    for key, reason in manifest.failures.items():
        print(f"  {key}: {reason}")


def _verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from proposal_cache.store import Manifest, verify

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
    from PIL import Image

    from proposal_cache.generation.pipeline import coverage
    from proposal_cache.generation.sources import read_image
    from proposal_cache.store import PatchCache
    from proposal_cache.visualize import draw_patches

    patches = PatchCache(arguments.cache)[arguments.key]
    image = read_image(arguments.image) if arguments.image else None
    picture = draw_patches(patches, image)
    try:
        Image.fromarray(picture).save(arguments.output)
    except (OSError, ValueError) as error:  # Pillow raises ValueError for an unknown suffix
        raise CacheError(f"{arguments.output} cannot be written: {error}") from error
    print(
        f"{arguments.output}: {len(patches)} patches of {arguments.key}, {patches.width} x {patches.height} pixels, "
        f"{100 * coverage(patches):.1f} % covered"
    )


def _merge(arguments: argparse.Namespace) -> None:
    from proposal_cache.store import PatchCache, merge

    merge([PatchCache(path) for path in arguments.caches], arguments.output, dataset=arguments.dataset, progress=True)
    _print_summary(arguments.output)


def _import(arguments: argparse.Namespace) -> None:
    from proposal_cache.interchange.importing import import_masks

    import_masks(
        arguments.results,
        arguments.output,
        kind=arguments.format,
        annotations=arguments.annotations,
        panoptic=arguments.panoptic,
        add_to=arguments.add_to,
        dataset=arguments.dataset,
        labels=arguments.keep_labels,
        scores=not arguments.drop_scores,
    )
    _print_summary(arguments.output)


def _export(arguments: argparse.Namespace) -> None:
    from proposal_cache.interchange.coco import export_results
    from proposal_cache.store import PatchCache

    count = export_results(PatchCache(arguments.cache), arguments.output, arguments.annotations, progress=True)
    print(f"{arguments.output}: {count} patches")


def _print_summary(cache: Path) -> None:
    from proposal_cache.generation.pipeline import Summary
    from proposal_cache.store import PatchCache

    print(Summary.of(PatchCache(cache)))


def _first_keys(cache: "PatchCache") -> list[str]:
    return [key for key, _ in zip(cache, range(_KEYS_SHOWN), strict=False)]


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

    generate = _add(
        commands,
        "generate",
        _generate,
        "generate the patches of images",
        "generate --images photos --generator regions --output patches\n"
        "  proposal-cache generate --images 'shards/{000..099}.tar' --checkpoint sam_vit_h_4b8939.pth \\\n"
        "      --device cuda --output patches",
        "Images that fail are skipped with a warning and recorded in the manifest. Repeat the command to continue\n"
        "after an interruption; it generates what is missing.",
        interrupted=_CONTINUES,
    )
    generate.add_argument(
        "--images",
        required=True,
        metavar="WHERE",
        help="folder, searched with its subfolders; URL of a folder (s3://, gs://, https://, ...); or tar files in "
        "webdataset layout, as path or URL: {000..099}, {a,b}, * and ? name several",
    )
    generate.add_argument("--name", help="of the dataset in the cache (default: last part of --images)")
    options.add_options(generate)

    finalize = _add(
        commands,
        "finalize",
        _finalize,
        "make a cache readable whose parts are finished",
        "finalize CACHE",
        "Needed after `generate --part I/N` only if the last part was interrupted, or to read the finished parts now.",
        interrupted=_CONTINUES,
    )
    _add_cache(finalize)

    info = _add(commands, "info", _info, "print dataset, generators, statistics and failures of a cache", "info CACHE")
    _add_cache(info)

    check = _add(
        commands,
        "verify",
        _verify,
        "check all checksums and list damaged files",
        "verify CACHE && echo undamaged",
        "The exit status is 1 if a file is damaged. To repair a shard, delete it and run the command that generated\n"
        "the cache again; it generates the missing images only.",
    )
    _add_cache(check)

    show = _add(
        commands,
        "show",
        _show,
        "draw the patches of an image",
        "show CACHE 000000000139 --image coco/val2017/000000000139.jpg --output patches.png",
    )
    _add_cache(show)
    show.add_argument("key", metavar="KEY", help="of the image; `info` prints the first ones")
    show.add_argument("--image", type=Path, metavar="FILE", help="to draw on; default: black")
    show.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture to write")

    join = _add(
        commands,
        "merge",
        _merge,
        "merge several caches into one",
        "merge sam regions --output both",
        "Caches may contain different images, or patches of the same images by different generators, which are kept\n"
        "as separate sources.",
        interrupted=_CONTINUES,
    )
    join.add_argument("caches", type=Path, nargs="+", metavar="CACHE")
    _add_output(join)
    join.add_argument("--dataset", metavar="NAME", help="of the new cache, required if those of the caches differ")

    take = _add(
        commands,
        "import",
        _import,
        "create a cache from masks of another program",
        "import results.json --annotations instances_val2017.json --output theirs\n"
        "  proposal-cache import panoptic.json --panoptic panoptic_pngs --keep-labels --output theirs\n"
        "  proposal-cache import results.json --annotations images.json --add-to sam --output both\n"
        "  proposal-cache import 'sa_{000000..000999}.tar' --format sa1b --output sa1b",
        "RESULTS is a json of COCO results with masks, a panoptic json, or, for SA-1B, a folder of its json files or\n"
        "its tar files. Labels are dropped unless --keep-labels is given.",
        interrupted=_CONTINUES,
    )
    take.add_argument("results", metavar="RESULTS", help="json; for SA-1B a folder, or tar files as in `generate`")
    take.add_argument(
        "--format", choices=("coco", "panoptic", "sa1b"), help="default: coco, or panoptic if --panoptic is given"
    )
    take.add_argument("--annotations", type=Path, metavar="FILE", help="COCO json with id, name and size of each image")
    take.add_argument("--panoptic", type=Path, metavar="DIR", help="folder of the PNGs of a panoptic json")
    take.add_argument("--add-to", type=Path, metavar="CACHE", help="write these patches together with those of CACHE")
    take.add_argument("--dataset", metavar="NAME", help="default: that of --add-to, or the name of RESULTS")
    take.add_argument("--keep-labels", action="store_true", help="store each category as a separate source")
    take.add_argument("--drop-scores", action="store_true", help="otherwise they are stored as predicted IoU")
    _add_output(take)

    give = _add(
        commands,
        "export",
        _export,
        "export a cache as COCO results",
        "export CACHE --annotations instances_val2017.json --output patches.json",
    )
    _add_cache(give)
    give.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO json with the images' ids; default: use the keys"
    )
    give.add_argument("--output", type=Path, required=True, metavar="FILE", help="json to write")
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    summary: str,
    example: str,
    more: str = "",
    interrupted: str = _STARTS_AGAIN,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{more}".strip(),
        epilog=textwrap.dedent(f"example:\n  proposal-cache {example}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, interrupted=interrupted)
    return command


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", type=Path, metavar="CACHE", help="directory")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory of the new cache")
