"""The child process of [`IsolatedReader`]: it imports neither torch nor transformers, and starts at once."""

import contextlib
import os
import pickle
import select
import signal
import sys
import threading
from functools import partial
from itertools import count


def main():
    """Answer requests from standard input on standard output until the input ends."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # the parent decides what a signal to all processes means
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.path.append(sys.argv[1])  # the folder of the root modules
    import video_ezclip  # noqa: F401  # before the first video, whose time is limited

    if num_bytes := int(sys.argv[2]):
        _limit_memory(num_bytes)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    answers.write(b"+")
    answers.flush()
    if hasattr(select, "poll"):
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            folder, function, args, kwargs = pickle.loads(request)
            os.chdir(folder)  # relative paths are relative to the parent's working folder
            if function is None:
                items = [_read(partial(_send, answers), *args, **kwargs)]
            else:
                items = function(*args, **kwargs)
            for item in items:
                _send(answers, item)
            answer = None
        except BaseException as error:
            answer = _as_exception(error)
        _send(answers, answer)


def _send(answers, item):
    pickle.dump(item, answers, protocol=pickle.HIGHEST_PROTOCOL)
    answers.flush()


def _read(send, video, sample, **kwargs):
    """Send each frame as soon as it is decoded. Return their numbers in the order of the clip, and the metadata."""
    from video_ezclip import read_frames

    counter = count()

    def send_frame(image):
        send(image)
        return image[:1, :1, 0] * 0 + next(counter)

    frames, metadata = read_frames(video, sample, transform=send_frame, **kwargs)
    return frames.ravel().tolist(), metadata


def _limit_memory(num_bytes: int):
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def _exit_with_parent():
    """End this process when its parent is gone, even if it hangs in a decoder."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)  # a hang-up is reported without asking for it
    poll.poll()
    os._exit(0)


def _as_exception(error: BaseException) -> Exception:
    """Return an error that can be sent: not all can be pickled and unpickled."""
    with contextlib.suppress(Exception):
        if isinstance(pickle.loads(pickle.dumps(error)), Exception):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
