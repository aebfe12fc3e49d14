# Included by the Makefile, which runs in the root of the repository. Linux.
#
#   make wheel     the wheel of this machine, in bindings/python/dist
#   make wheels    the wheels of all targets and the source distribution, in build/wheels, and a table of what is in them
#   make check-wheel WHEEL=...       installs it and runs the Python tests that need no torch; any system, PYTHON=python
#   make publish-python DIST=...     what is in that folder goes to PyPI; in the release workflow, whose word PyPI takes
#
# Libraries are cross-compiled by zig (install.mk). A wheel's platform is read from its library.

WHEELS := build/wheels
WHEEL_LIBRARIES := $(addprefix $(LMSD_TARGET)/,\
	x86_64-unknown-linux-gnu/release/liblmsd.so aarch64-unknown-linux-gnu/release/liblmsd.so \
	x86_64-pc-windows-gnu/release/lmsd.dll \
	aarch64-apple-darwin/release/liblmsd.dylib x86_64-apple-darwin/release/liblmsd.dylib)

.PHONY: wheel wheels check-wheel publish-python

TWINE := twine==7.0.0
$(VENV)/.wheels: | $(PY)
	$(PIP) build==1.6.1 $(TWINE) hatchling==1.33.0
	touch $@

# LIBRARY TARGET FOLDER
build_wheel = LMSD_LIBRARY=$(abspath $(1)) CARGO_BUILD_TARGET=$(2) \
	$(PY) -m build --no-isolation --wheel --outdir $(3) bindings/python

wheel: $(LMSD_SO) $(VENV)/.wheels
	$(call build_wheel,$<,$(RUST_HOST),bindings/python/dist)

# The source distribution is built too, by cargo, for this machine.
wheels: $(WHEEL_LIBRARIES) $(VENV)/.wheels
	rm -rf $(WHEELS)
	set -e; $(foreach library,$(WHEEL_LIBRARIES),\
		$(call build_wheel,$(library),$(firstword $(subst /release/, ,$(patsubst $(LMSD_TARGET)/%,%,$(library)))),$(WHEELS));)
	$(PY) -m build --no-isolation --sdist --outdir $(WHEELS) bindings/python
	CARGO_TARGET_DIR=$(abspath $(LMSD_TARGET)) $(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --wheel-dir $(WHEELS)/of-source $(WHEELS)/lmsd-*.tar.gz
	$(PY) -m twine check --strict $(WHEELS)/*.whl $(WHEELS)/*.tar.gz
	$(PY) mk/check_wheels.py $(WHEELS)

# With the package as it was installed, not with the source beside the tests.
check-wheel:
	$(PYTHON) -m pip install --quiet --force-reinstall --no-deps $(WHEEL)
	$(PYTHON) -m pip install --quiet -r requirements.txt -r tests/requirements-check.txt
	$(PYTHON) -m lmsd --version
	$(PYTHON) examples/python/twelve_lines.py
	$(PYTHON) -m pytest -q -o pythonpath= $(CHECK_PYTHON) bindings/python/tests/test_files.py

publish-python:
	$(PYTHON) -m pip install --quiet $(TWINE)
	$(PYTHON) -m twine upload --non-interactive $(DIST)/*
