"""The processes that torchrun starts for one run."""

import contextlib
import os
from pathlib import Path

import lmsd


@contextlib.contextmanager
def launched(args):
    """`lmsd.distributed.Ranks` where torchrun started this process, else None. Rank 0 alone prints."""
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    try:
        from lmsd.distributed import launch
    except ImportError as error:
        raise lmsd.Error(f"a run of several processes needs torch: pip install torch ({error})") from None

    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(launch(args.timeout))
        if ranks.rank > 0:
            args.quiet = True
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        yield ranks
