"""The protocol by which learned solvers of Stable Diffusion are compared, for any diffusers pipeline.

`lmsd bench` runs it: a teacher of many steps makes pictures of prompts that no fit sees; distilled schedules,
the schedulers of diffusers and the published solvers of lmsd make the same ones, from the same noise, in few
calls; distances of the decoded pictures to the teacher's are compared.
"""
