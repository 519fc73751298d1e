"""Who answers questions about the shards of a dump: worker processes, here or on other hosts."""
import collections
import concurrent.futures
import multiprocessing
import os
import socket
import threading
import time
import urllib.parse
import uuid

from ._tensorcarve import Shard

# How often a question is asked before its failure is the caller's.
ATTEMPTS = 4
# Bytes of one request to where the dump lies, and requests at a time.
PIECE, AT_ONCE = 32 << 20, 4


def local_path(url):
    """The path of a dump that is a file for each who has the same file system; None for any other."""
    if "://" not in url:
        return os.path.abspath(url)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("file", "local"):
        return urllib.parse.unquote(parts.path)
    return None


def fsspec_for(url):
    """The package that reads URLs."""
    try:
        import fsspec
    except ImportError as error:
        raise OSError("%s can't be read without the package fsspec" % url) from error
    return fsspec


def file_system(url, options):
    """fsspec's file system for a URL, and the path in it."""
    return fsspec_for(url).core.url_to_fs(url, **options)


# What follows runs in the workers.

_lock = threading.Lock()
# The shards that are kept, and their sizes: those that were asked about last come last.
_kept = collections.OrderedDict()


def answer(url, options, start, end, question):
    """The answer to a question about a part of a dump; who answered, and how many bytes of the dump were read for it."""
    shard, read = _shard(url, options, start, end)
    return shard.answer(question), "%s:%d" % (socket.gethostname(), os.getpid()), read


def _shard(url, options, start, end):
    path = local_path(url)
    with _lock:
        key, size = (url, start, end), end - start
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key][0], 0
        if path is not None:
            # Mapped: how much of it stays in memory is the system's business.
            _kept[key] = Shard.of_file(path, start, end), 0
            return _kept[key][0], size
        limit = _limit()
        while _kept and sum(size for _, size in _kept.values()) + size > limit:
            _kept.popitem(last=False)
        _kept[key] = Shard(iter(_pieces(url, options, start, end)), start, size), size
        return _kept[key][0], size


def _pieces(url, options, start, end):
    """The bytes of a part, a few requests at a time."""
    system, path = file_system(url, options)
    starts = list(range(start, end, PIECE))
    for first in range(0, len(starts), AT_ONCE):
        now = starts[first:first + AT_ONCE]
        yield from system.cat_ranges([path] * len(now), now, [min(at + PIECE, end) for at in now], on_error="raise")


def _limit():
    """Bytes of shards that may be kept: a part of what the worker may use, or of what is free on its host."""
    try:
        import distributed
        limit = distributed.get_worker().memory_manager.memory_limit
        if limit:
            return limit // 2
    except (ImportError, ValueError, AttributeError):
        pass
    kept = sum(size for _, size in _kept.values())
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    return kept + free // 4


def _begin(threads):
    """Prepares a worker process: all of them together use all cores once."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))


# What follows runs where the dump is analysed.


class Processes:
    """Worker processes on this computer. Each shard has its own process, which keeps it."""

    def __init__(self, count):
        self.threads = max(1, (os.cpu_count() or 1) // count)
        self.pools = [self._new() for _ in range(count)]

    def _new(self):
        # A fork would copy the locks of our threads.
        context = multiprocessing.get_context("spawn")
        return concurrent.futures.ProcessPoolExecutor(1, context, _begin, (self.threads,))

    def submit(self, name, number, *arguments):
        place = number % len(self.pools)
        try:
            return self.pools[place].submit(answer, *arguments)
        except concurrent.futures.BrokenExecutor:
            # Its process was killed.
            self.pools[place].shutdown(wait=False)
            self.pools[place] = self._new()
            return self.pools[place].submit(answer, *arguments)

    def count(self):
        return len(self.pools)

    def close(self, is_done):
        for pool in self.pools:
            # After Ctrl-C, nobody waits for a process that reads its shard.
            pool.shutdown(wait=is_done, cancel_futures=True)


class Executor:
    """Any executor of `concurrent.futures`, or like it: it decides where a shard is."""

    def __init__(self, executor):
        self.executor = executor

    def submit(self, name, number, *arguments):
        return self.executor.submit(answer, *arguments)

    def count(self):
        return getattr(self.executor, "_max_workers", None) or os.cpu_count() or 1

    def close(self, is_done):
        pass


class Dask:
    """Dask's workers. Each shard has a worker that is asked first, as long as it lives."""

    def __init__(self, client):
        self.client, self.known, self.asked = client, [], 0

    def _workers(self):
        """Those that live: the scheduler is asked once a second."""
        if not self.known or time.monotonic() - self.asked > 1:
            self.known, self.asked = sorted(self.client.nthreads()), time.monotonic()
        return self.known

    def submit(self, name, number, *arguments):
        workers = self._workers()
        # Without any, the scheduler waits for one.
        where = {"workers": [workers[number % len(workers)]], "allow_other_workers": True} if workers else {}
        executor = self.client.get_executor(**where)
        # What Dask's pages show of the task is the part before the number.
        return executor.submit(answer, *arguments, key="%s-%d-%s" % (name.replace(" ", "_"), number, uuid.uuid4()))

    def count(self):
        return len(self._workers()) or 1

    def close(self, is_done):
        pass


def workers_of(executor):
    """The workers that an argument `executor` stands for."""
    if executor is None or isinstance(executor, int):
        return Processes(executor or os.cpu_count() or 1)
    if hasattr(executor, "scheduler_info") and hasattr(executor, "get_executor"):
        return Dask(executor)
    return Executor(executor)


class Dump:
    """A dump that lies elsewhere, for the native part: what is read of it here, and its workers."""

    def __init__(self, url, options, workers, shard):
        self.url, self.options, self.workers, self.shard = url, options, workers, shard
        # From the first question on, the workers of a dump in object storage have its shards in memory.
        self.closed = self.is_far = False
        path = local_path(url)
        if path is not None:
            self.file, self.size = os.open(path, os.O_RDONLY), os.stat(path).st_size
        else:
            self.system, self.path = file_system(url, options)
            self.file, self.size = None, self.system.info(self.path)["size"]
        if not self.size:
            raise OSError("%s has no size, so it can't be divided" % url)

    def read(self, parts):
        if self.file is not None:
            return [os.pread(self.file, end - start, start) for start, end in parts]
        starts, ends = zip(*parts)
        return self.system.cat_ranges([self.path] * len(parts), list(starts), list(ends), on_error="raise")

    def _submit(self, name, number, start, end, question):
        return self.workers.submit(name, number, self.url, self.options, start, end, question)

    def ask(self, questions):
        self.is_far = self.file is None
        asked = {}
        tries = [0] * len(questions)

        def submit(index):
            if self.closed:
                raise OSError("stopped")
            name, start, end, question = questions[index]
            # The middle of a part lies in the shard itself, not in the margins.
            number = (start + end) // 2 // self.shard
            tries[index] += 1
            asked[self._submit(name, number, start, end, question)] = index

        def again(index, error):
            if tries[index] >= ATTEMPTS:
                raise OSError("%s (asked %d times)" % (str(error) or type(error).__name__, tries[index])) from error
            submit(index)

        for index in range(len(questions)):
            submit(index)
        while asked:
            done, _ = concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                index = asked.pop(future)
                try:
                    text, worker, read = future.result()
                except (Exception, concurrent.futures.CancelledError) as error:
                    # The worker was lost, or could not read its shard just now.
                    again(index, error)
                else:
                    yield index, text, worker, read, tries[index] - 1

    def close(self):
        self.closed = True
        if self.file is not None:
            os.close(self.file)
            self.file = None
