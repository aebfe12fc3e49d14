# Included by the Makefile, which runs in the root of the repository. Linux.
#
#   make test-comfyui COMFYUI_DIR=... [COMFYUI_PYTHON=...]    tests in a real ComfyUI, a server and a browser
#   make bench-comfyui COMFYUI_DIR=... [COMFYUI_PYTHON=...]   distilled against its own samplers
#   make pictures-comfyui COMFYUI_DIR=... [COMFYUI_PYTHON=...]   docs/comfyui.jpg and the thumbnails, again
#
# COMFYUI_DIR: a checkout of ComfyUI, or several with spaces between, each in turn. COMFYUI_PYTHON: an
# interpreter with its requirements and pytest. The tests of the page need chromium, node and npm, else they
# are skipped.

COMFYUI_PYTHON ?= python3
COMFYUI_TESTS ?= tests/comfyui
COMFYUI_ENV = PYTHONPATH=$(CURDIR)/bindings/python/src PYTHONPYCACHEPREFIX=$(CURDIR)/build/comfyui/pycache \
	OMP_NUM_THREADS=1 COMFYUI_PYTHON=$(COMFYUI_PYTHON)

.PHONY: test-comfyui bench-comfyui pictures-comfyui comfyui-here

comfyui-here:
	@test -n "$(strip $(COMFYUI_DIR))" || { echo "COMFYUI_DIR must say where a checkout of ComfyUI is"; exit 2; }
	@for dir in $(COMFYUI_DIR); do \
		test -f "$$dir/main.py" || { echo "$$dir is no checkout of ComfyUI"; exit 2; }; done
	@$(COMFYUI_PYTHON) -c 'import aiohttp, numpy, safetensors, torch' || \
		{ echo "COMFYUI_PYTHON=$(COMFYUI_PYTHON) lacks what ComfyUI's requirements.txt asks for"; exit 2; }

test-comfyui: comfyui-here library
	@$(COMFYUI_PYTHON) -c 'import pytest' || { echo "$(COMFYUI_PYTHON) -m pip install pytest"; exit 2; }
	set -e; for dir in $(COMFYUI_DIR); do \
		COMFYUI_DIR="$$dir" $(COMFYUI_ENV) $(COMFYUI_PYTHON) -m pytest -q -rs $(COMFYUI_TESTS); done

bench-comfyui: comfyui-here library
	set -e; for dir in $(COMFYUI_DIR); do \
		COMFYUI_DIR="$$dir" $(COMFYUI_ENV) $(COMFYUI_PYTHON) -W ignore benches/comfyui_hosts.py \
			--out "out/comfyui/$$(basename "$$dir").json"; done

pictures-comfyui: comfyui-here library
	COMFYUI_DIR="$(firstword $(COMFYUI_DIR))" $(COMFYUI_ENV) $(COMFYUI_PYTHON) tests/comfyui/pictures.py
