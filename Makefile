# make demo    train and run a small spiking BERT end to end
# make test    style, types and the quick tests
# make setup   .venv alone
#
# Each makes .venv first where it is missing or older than requirements.lock or pyproject.toml.
# Another Python 3.10: make demo PYTHON=path/to/python3.10

VENV := .venv
RUN := $(VENV)/bin/python

# The first Python 3.10 that really runs and can make environments (a pyenv shim may exist and still fail).
PYTHON = $(shell \
	for candidate in python3.10 \
		"$$(pyenv prefix 3.10 2>/dev/null)/bin/python" \
		"$$(pyenv root 2>/dev/null)"/versions/3.10*/bin/python; do \
		if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then \
			echo "$$candidate"; break; \
		fi; \
	done)

.PHONY: demo test setup

demo: $(VENV)/.installed
	$(RUN) examples/demo.py

setup: $(VENV)/.installed

test: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow"

# The stamp comes last, so an installation that was interrupted is done again.
$(VENV)/.installed: requirements.lock pyproject.toml
	@rm -f $@
	@if ! $(RUN) -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then \
		python="$(PYTHON)"; \
		if [ -z "$$python" ]; then \
			echo "Python 3.10 with venv is missing (Lava runs on no other). Install it, for example with" \
				"'pyenv install 3.10' or 'apt install python3.10-venv', then run make again." >&2; \
			exit 1; \
		fi; \
		"$$python" -m venv --clear $(VENV); \
	fi
	$(RUN) -m pip install --disable-pip-version-check --no-deps -r requirements.lock
	$(RUN) -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
