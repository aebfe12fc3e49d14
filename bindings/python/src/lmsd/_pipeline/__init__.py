"""Distillation inside an unmodified diffusers pipeline.

A pipeline owns its denoising loop, and so does `lmsd.distill`. So the latter runs in a second thread
(`thread`), and a `Driver` (`driver`) stands in for the pipeline's scheduler: each step of the pipeline's loop
answers one model call of the distillation, at the state and the noise level that it asks for. `network`
translates between the pipeline's network and lmsd's coordinates, `batches` says what the pipeline is called
with, and `distillation` puts them together.
"""
