"""All numbers of the schedule by gradients of the end point's distance through the network: the kind of S4S
(arXiv 2502.17423), GS (arXiv 2510.17699) and BNS (arXiv 2403.01329), with the unknowns of lmsd."""

from unknowns import Table

from . import gradients


def fit(net, nfe, seed, settings):
    return gradients.fit(net, nfe, seed, settings, lambda start: Table(net, start))
