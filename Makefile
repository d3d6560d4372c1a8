# `make demo`, `make app` and `make test` work on a fresh machine with Python >= 3.11 and make: they create .venv,
# install, run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo app test test-all test-changed browser docs lint typecheck install clean

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py --output_dir outputs/demo

app: $(INSTALLED)
	$(BIN)/python scripts/app.py

# Two processes of one thread each suit two cores better than one of two. tests/conftest.py starts long files first.
# Without restarts, because a run in which a process has crashed may wait for ever at its end.
PYTEST := -q -n 2 --dist loadscope --no-loadscope-reorder --max-worker-restart 0 --durations 25 --durations-min 1
FAST := not slow and not gpu and not network

test: $(INSTALLED) browser
	$(BIN)/python -m pytest $(PYTEST) -m "$(FAST)"

# With the slow ones.
test-all: $(INSTALLED) browser
	$(BIN)/python -m pytest $(PYTEST) -m "not gpu and not network"

# The tests of `make test` that can be affected by what has changed since BASE (default: since this branch left main).
test-changed: $(INSTALLED) browser
	$(BIN)/python -m tests.support.changed_tests --base "$(BASE)" -- $(PYTEST) -m "$(FAST)"

# tests/scripts/test_app.py needs it. Where it cannot be installed here, that file fails, and the others run.
browser:
	@if ! command -v chromium >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then root=; else root="sudo -n"; fi; \
		export DEBIAN_FRONTEND=noninteractive; $$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends chromium >/dev/null \
		|| echo "Chromium is missing and could not be installed: as root, apt-get install chromium" >&2; \
	fi

# The pages of docs/ as a site: outputs/docs/index.html. A link to nowhere is an error.
docs: $(INSTALLED)
	$(BIN)/zensical build --strict

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(INSTALLED)
	$(BIN)/mypy

install: $(INSTALLED)

# With bytecode: the tests start many processes, and where Python may not write it each would compile all it imports.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-core outputs
