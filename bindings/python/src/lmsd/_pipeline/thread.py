"""A function in a second thread whose callbacks are answered in this one."""

import queue
import threading
from collections.abc import Callable


class Abandoned(BaseException):
    """Raised in the second thread where nobody answers it any more."""


class CallbackThread:
    """Runs `function(ask)` in another thread: `ask(request)` there returns what is answered here.

    A context; leaving it ends the thread. Only the functions of this thread, such as a pipeline, run torch
    code of the caller's, so its devices, contexts and Ctrl-C are as ever.
    """

    def __init__(self, function: Callable):
        self._requests, self._answers = queue.SimpleQueue(), queue.SimpleQueue()
        self._result, self._error = None, None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True, name="lmsd.distill")

    def _run(self, function):
        try:
            self._result = function(self._ask)
        except BaseException as error:
            self._error = error
        self._requests.put(None)

    def _ask(self, request):
        self._requests.put(request)
        answer = self._answers.get()
        if answer is Abandoned:
            raise Abandoned
        return answer

    def next(self):
        """The next request; None when the function has returned or raised."""
        return self._requests.get()

    def answer(self, value) -> None:
        """Returns `value` from the `ask` that waits."""
        self._answers.put(value)

    def result(self):
        """What the function returned; raises what it raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._result
        finally:
            del error  # its traceback holds this frame

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._answers.put(Abandoned)
        self._thread.join()
