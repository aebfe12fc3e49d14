"""The peers, one entry each."""

from . import cache, dlms, end_to_end, gits, ld3, ours, published, refined

# name -> (title, source, fit, whether the result depends on a seed)
PEERS = {
    "published": ("best as published", "", published.published, False),
    "strongest": ("strongest handcrafted", "", published.strongest, False),
    "gits": ("GITS", "arXiv 2405.11326", gits.fit, True),
    "ld3": ("time steps by gradients (LD3)", "arXiv 2405.15506", ld3.fit, True),
    "dlms": ("DLMS, static table", "ICLR 2025", dlms.fit, True),
    "end_to_end": ("all numbers by gradients (S4S, GS, BNS)", "arXiv 2502.17423", end_to_end.fit, True),
    "cache": ("cache (EasyCache, TeaCache)", "arXiv 2507.02860", cache.fit, True),
    "refined": ("lmsd.distill, then gradients", "", refined.fit, True),
    "ours": ("lmsd.distill", "", ours.fit, True),
}
GRADIENTS = ("ld3", "dlms", "end_to_end", "refined")  # those that take gradients
