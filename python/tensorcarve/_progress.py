"""How long work is shown."""
import sys


def observer(progress):
    """What is called with phase, bytes done and all bytes: nothing, a bar, or what the user gave."""
    if callable(progress):
        return progress
    if not progress:
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _print
    return _Bar(tqdm)


def _print(phase, done, total):
    share = " %3d%%" % (100 * done // total) if total else ""
    sys.stderr.write("\r%-8s%s " % (phase, share))
    sys.stderr.flush()


class _Bar:
    """A bar of tqdm for each phase."""

    def __init__(self, tqdm):
        self.tqdm, self.bar, self.phase = tqdm, None, None

    def __call__(self, phase, done, total):
        if phase != self.phase:
            if self.bar is not None:
                self.bar.close()
            self.bar = self.tqdm(total=total or None, desc=phase, unit="B", unit_scale=True, leave=False)
            self.phase = phase
        self.bar.update(done - self.bar.n)
