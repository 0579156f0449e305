"""Several processes, on one machine or many, that fill one cache together."""

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

from proposal_cache.errors import CacheError
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.ranks import Ranks
from proposal_cache.generation.sources import ImageFile
from proposal_cache.generators.base import Generator
from proposal_cache.store import finalize

# Seconds. Ranks come minutes apart, for they load their model first; they finish hours apart, and that is waited for.
_MEETING = 600.0
_LOST = 120.0  # a rank that gave no sign of life for so long is lost
_BEAT = 5.0
_LOOK = 0.5
_FAREWELL = 10.0
_CONNECTING = 30.0


def generate_together(
    ranks: Ranks,
    images: Sequence[ImageFile],
    generator: Generator,
    output: str | os.PathLike[str],
    dataset: str,
    **options: Any,
) -> None:
    """`generate`, each rank with its share of the images; when all are done, rank 0 makes the cache readable.

    A rank that fails or is lost ends its own work only: the others do their shares, then say so and fail too. The same
    command continues.

    Raises:
        CacheError: as `generate`; where the ranks do not find each other, or were given different images; and where
            another one failed or is lost.
    """
    if ranks.count == 1:
        return generate(images, generator, output, dataset, **options)
    with _meeting(ranks) as meeting:
        meeting.agree("images", _outline(images))
        generate(images, generator, output, dataset, rank=ranks.rank, ranks=ranks.count, **options)
        meeting.wait("done")
        if ranks.rank == 0:
            finalize(output)
        meeting.wait("joined", quietly=True)


class _Meeting:
    """Where ranks tell each other how far they are: keys and values that rank 0, or torchrun, keeps for all.

    Ranks wait by looking again and again, so that Ctrl-C ends a wait; and each gives signs of life meanwhile. It is
    torch's key-value store alone, without a process group of gloo or NCCL around it: no tensor passes between ranks,
    and a group's barrier cannot be interrupted.
    """

    def __init__(self, ranks: Ranks, store: Any) -> None:
        self.ranks = ranks
        self._name = f"rank {ranks.rank} of {ranks.count}"
        self._store = _Answering(store)
        self._beats = [b""] * ranks.count
        self._silent = [0] * ranks.count  # looks since the last sign of life

    def start(self) -> None:
        """Waits until all ranks are there.

        Raises:
            CacheError: where one does not come.
        """
        self._store.add(f"beats/{self.ranks.rank}", 1)
        if self._come("start"):
            return
        self._say(f"waiting for {_others(len(self._missing('start')))}")
        deadline = time.monotonic() + _MEETING
        while not self._all_at("start"):
            if time.monotonic() > deadline:
                raise CacheError(
                    f"{self._name} waited {_minutes()} for the others, and {_named(self._missing('start'))} did not "
                    "come: look at what they say, then start all ranks again"
                )
            time.sleep(_LOOK)

    def agree(self, what: str, mine: str) -> None:
        """Waits until all ranks have said what they were given.

        Raises:
            CacheError: where it is not the same; in all of them.
        """
        with self._telling_of_loss():
            self._come(what, mine)
            self._wait(what)
            said = [text.decode() for text in self._store.multi_get(self._keys(what))]
        other = next((rank for rank, text in enumerate(said) if text != said[0]), None)
        if other is not None:
            raise CacheError(
                f"{self._name}: the ranks were given different {what}: rank 0 {said[0]}, rank {other} {said[other]}; "
                "give all of them the same, and look whether their machines see the same files"
            )

    def wait(self, place: str, *, quietly: bool = False) -> None:
        """Waits until all ranks have come to a place, however long they work.

        Raises:
            CacheError: where one of them failed or is lost.
        """
        with self._telling_of_loss():
            if not self._come(place) and not quietly:
                self._say(f"its share is done, waiting for {_others(len(self._missing(place)))}")
            self._wait(place)

    def leave(self) -> None:
        """Lets the others leave before rank 0 takes the meeting point away."""
        deadline = time.monotonic() + _FAREWELL
        with suppress(RuntimeError):  # all is done
            gone = self._come("end")
            while self.ranks.rank == 0 and not gone and time.monotonic() < deadline:
                time.sleep(_LOOK / 10)
                gone = self._all_at("end")

    def fail(self, error: BaseException) -> None:
        """Tells the others that this rank leaves without having done its share, if they can be told soon."""
        self._store.patience = _FAREWELL
        with suppress(RuntimeError):  # nobody is left to be told
            self._tell(f"rank {self.ranks.rank} failed ({str(error) or type(error).__name__})")
            if self.ranks.rank == 0:
                time.sleep(2 * _LOOK)  # so that those who wait read it before the meeting point is gone

    def beat(self, end: threading.Event) -> None:
        """Gives signs of life until the end."""
        while not end.wait(_BEAT):
            try:
                self._store.add(f"beats/{self.ranks.rank}", 1)
            except RuntimeError:
                return  # the next wait will say it

    def _wait(self, place: str) -> None:
        while not self._all_at(place):
            self._check_life()
            time.sleep(_LOOK)

    @contextmanager
    def _telling_of_loss(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._lost(f"{self.ranks.meeting_point}, where the ranks meet, is gone") from error

    def _check_life(self) -> None:
        if self._store.check(["failure"]):
            raise self._lost(self._store.get("failure").decode())
        beats = self._store.multi_get(self._keys("beats"))
        # Counted in looks, not in seconds: where all ranks are stopped for a while, no time passes for any.
        self._silent = [
            looks + 1 if new == old else 0 for new, old, looks in zip(beats, self._beats, self._silent, strict=True)
        ]
        self._beats = beats
        lost = [rank for rank, looks in enumerate(self._silent) if looks * _LOOK > _LOST]
        if lost:
            what = f"{_named(lost)} gave no sign of life for {_LOST:g} s"
            self._tell(what)
            raise self._lost(what)

    def _tell(self, failure: str) -> None:
        """To all who wait; the first failure counts, others follow from it."""
        if not self._store.check(["failure"]):
            self._store.set("failure", failure)

    def _lost(self, what: str) -> CacheError:
        return CacheError(f"{self._name}: {what}; run the same command again, it continues where it was")

    def _come(self, place: str, said: str = "") -> bool:
        self._store.set(f"{place}/{self.ranks.rank}", said)
        return self._all_at(place)

    def _all_at(self, place: str) -> bool:
        return bool(self._store.check(self._keys(place)))

    def _missing(self, place: str) -> list[int]:
        return [rank for rank, key in enumerate(self._keys(place)) if not self._store.check([key])]

    def _keys(self, place: str) -> list[str]:
        return [f"{place}/{rank}" for rank in range(self.ranks.count)]

    def _say(self, what: str) -> None:
        print(f"{self._name}: {what}", file=sys.stderr, flush=True)


class _Answering:
    """A store of which each call returns, or fails with a RuntimeError, within `patience` seconds.

    Where the network is cut, torch's own calls return after a quarter of an hour, and Ctrl-C does not end them. After
    one that did not answer, others fail at once.
    """

    def __init__(self, store: Any) -> None:
        self.patience = _LOST
        self._store = store
        self._answers = True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._call, getattr(self._store, name))

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(method(*arguments))
            except BaseException as error:
                answer.set_exception(error)

        if not self._answers:
            raise RuntimeError("no answer any more")
        threading.Thread(target=ask, daemon=True).start()  # a daemon is not waited for when the process ends
        try:
            return answer.result(self.patience)
        except FutureTimeoutError as error:  # Python 3.10's is not the built-in one
            self._answers = False
            raise RuntimeError(f"no answer for {self.patience:g} s") from error


@contextmanager
def _meeting(ranks: Ranks) -> Iterator[_Meeting]:
    """All ranks connected, from when the last one comes until all have left or one has failed."""
    meeting = _Meeting(ranks, _open_store(ranks))
    try:
        meeting.start()
    except RuntimeError as error:
        raise CacheError(
            f"rank {ranks.rank} of {ranks.count}: rank 0 left {ranks.meeting_point} before all had come: look at what "
            "it says, then start all ranks again"
        ) from error
    end = threading.Event()
    heart = threading.Thread(target=meeting.beat, args=(end,), daemon=True)
    heart.start()
    try:
        yield meeting
        meeting.leave()
    except BaseException as error:
        meeting.fail(error)
        raise
    finally:
        end.set()
        heart.join(_BEAT)


def _open_store(ranks: Ranks) -> Any:
    """The keys and values of this run: rank 0 keeps them, unless torchrun does; the others connect."""
    import torch.distributed as dist

    if ranks.meeting_point is None:
        raise CacheError("the ranks cannot find each other: set MASTER_ADDR and MASTER_PORT, or use torchrun")
    keeps = ranks.rank == 0 and not ranks.launcher_waits
    host, _, port = ranks.meeting_point.rpartition(":")
    if not keeps:
        _wait_for_rank_0(ranks, host, int(port))
    try:
        patience = timedelta(seconds=_CONNECTING)
        store = dist.TCPStore(host, int(port), is_master=keeps, wait_for_workers=False, timeout=patience)
    except RuntimeError as error:
        raise CacheError(
            f"rank {ranks.rank} of {ranks.count} cannot meet the others at {ranks.meeting_point}: {error}; set "
            "MASTER_ADDR to the machine of rank 0 and MASTER_PORT to a free port there"
        ) from error
    return dist.PrefixStore(f"proposal_cache/{ranks.run}", store)


def _wait_for_rank_0(ranks: Ranks, host: str, port: int) -> None:
    """Until something answers there; in Python, for Ctrl-C does not end torch's own waiting."""
    deadline = time.monotonic() + _MEETING
    said = False
    while True:
        try:
            socket.create_connection((host, port), timeout=_CONNECTING).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise CacheError(
                    f"rank {ranks.rank} of {ranks.count} waited {_minutes()} for rank 0 at {host}:{port} ({error}): "
                    "look at what rank 0 says; if it is elsewhere, set MASTER_ADDR and MASTER_PORT"
                ) from error
        if not said:
            print(f"rank {ranks.rank} of {ranks.count}: waiting for rank 0 at {host}:{port}", file=sys.stderr)
        said = True
        time.sleep(_LOOK)


def _outline(images: Sequence[ImageFile]) -> str:
    """Alike for the same images in the same order: each rank takes its share by their places."""
    digest = hashlib.sha256("\n".join(image.key for image in images).encode(errors="surrogatepass")).hexdigest()
    return f"has {len(images)} ({digest[:8]})"


def _others(count: int) -> str:
    return "1 other rank" if count == 1 else f"{count} other ranks"


def _named(ranks: Sequence[int]) -> str:
    listed = ", ".join(str(rank) for rank in ranks)
    return f"rank {listed}" if len(ranks) == 1 else f"ranks {listed}"


def _minutes() -> str:
    return f"{_MEETING / 60:g} minutes"
