"""ComfyUI nodes that sample with distilled schedules, and distill them. README.md says how to use them."""

import logging

NODE_CLASS_MAPPINGS = {}
NODE_DISPLAY_NAME_MAPPINGS = {}
WEB_DIRECTORY = "./web"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

NEEDED = "0.1"  # of the lmsd package: major.minor

try:
    import lmsd

    if lmsd.__version__.split(".")[:2] != NEEDED.split("."):
        raise ImportError(f"lmsd {lmsd.__version__} is installed; these nodes need {NEEDED}.x")
except ImportError as error:
    logging.error("lmsd nodes are not there: %s (pip install 'lmsd[plots]==%s.*')", error, NEEDED)
else:
    from .ksampler import offer
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    offer()
