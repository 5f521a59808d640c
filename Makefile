# Everything a checkout needs. `make` alone lists the targets.
# Needs Python >= 3.11 with venv and pip, and make; all else goes into .venv.

PYTHON ?= python3
# The broker tests want Debian's mosquitto. APT=no: never install it, skip those tests instead.
export APT ?= yes
# Test processes side by side. Most tests wait for brokers, clocks and disks, so there may be more than cores.
WORKERS ?= 4
# More arguments for pytest or the demo, as in ARGS="-k batch"; a part of the suite skips the coverage gate.
ARGS ?=

BIN := .venv/bin
# Debian keeps mosquitto in sbin, which is not on every user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# What the coverage gate holds: the pure code. The edges are tested against real programs in child processes.
CORE := models/*,daemon/core/*,daemon/decoders/*
COVERAGE_MIN := 90

# What can be wrong with a wheel and right in the checkout: a package or file left out, an entry point, an import.
WHEEL_TESTS := $(addprefix tests/test_,packaging.py imports.py settings.py config_toml.py logs.py http.py engine.py \
	weights.py trainer.py training_round.py backtest_command.py recording.py demo_runner.py readme.py)

# A .venv that was made elsewhere, or whose Python is gone, is made anew.
VENV_OK := $(shell grep -qsF "$(CURDIR)/.venv/bin/" .venv/bin/pip && $(BIN)/python -c "" 2>/dev/null && echo yes)
ifneq ($(VENV_OK),yes)
$(shell rm -f .venv/.ready .venv/.ready-check)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-wheel check bench quality torture mutants clean

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1#\2/p' Makefile | awk -F'#' '{ printf "%-12s %s\n", $$1, $$2 }'
	@echo 'Settings: PYTHON=python3.12 (which Python makes .venv), ARGS="..." (for test and demo), WORKERS=1 (tests one after the other), APT=no (no system packages)'

demo: .venv/.ready ## watch gruard guard this machine and a simulated pump fleet
	$(BIN)/gruard demo $(ARGS)

test: .venv/.ready ## run the tests; the whole suite must also cover 90 % of the pure code
	@bash .ci/system-packages mosquitto=mosquitto mosquitto_pub=mosquitto-clients promtool=prometheus openssl=openssl \
		chromium=chromium cc=gcc gencat=libc6-dev
ifneq ($(strip $(ARGS)),)
	$(BIN)/pytest $(ARGS)
else
	@failed=0; set -x; \
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --cov --cov-report= -m "not alone" || failed=1; \
	$(BIN)/pytest -m alone || failed=1; \
	exit $$failed
	@echo "Coverage of the pure code, lines and branches (at least $(COVERAGE_MIN) %):"
	@$(BIN)/coverage report --include='$(CORE)' --fail-under=$(COVERAGE_MIN)
endif

# The wheel gets an environment of its own, so that nothing comes from the checkout; the dependencies are
# borrowed from .venv by a .pth line, written last: pip must not take .venv's gruard for the one to replace.
test-wheel: .venv/.ready ## build the wheel and run against it the tests of what a wheel can lack
	rm -rf build dist .venv-wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	$(BIN)/python -m venv --without-pip .venv-wheel
	$(BIN)/python -m pip --python .venv-wheel/bin/python install --quiet --no-deps --no-index dist/*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$(.venv-wheel/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth"
	.venv-wheel/bin/python -P -c "import gruard.daemon as d, gruard.models as m; print(d.__file__, m.__file__, sep='\n')"
	WHEEL_PREFIX="$(CURDIR)/.venv-wheel" PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" \
		.venv-wheel/bin/python -P -m pytest --numprocesses $(WORKERS) --dist loadfile \
		-m "not slow and not broker and not systemd" $(WHEEL_TESTS) $(ARGS)

# mypy reads the checkout under the packages' real names through two links.
check: .venv/.ready-check ## lint, formatting, types and the dependencies' known faults
	@mkdir -p .typing/gruard && ln -sfn ../../daemon ../../models .typing/gruard/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p gruard.daemon -p gruard.models
	$(BIN)/python .ci/audit.py

bench: .venv/.ready ## measure speed and memory, one benchmark after the other
	@for name in cells scoring memory family; do \
		echo "== bench/bench_$$name.py"; $(BIN)/python "bench/bench_$$name.py" || exit 1; done

quality: .venv/.ready ## measure detection on labelled recordings, beside the peers (hours; ARGS=--help tells more)
	@$(PIP) --no-build-isolation -e '.[peers]'
	$(BIN)/python bench/bench_quality.py $(ARGS)

torture: .venv/.ready ## kill and cut off a real daemon hundreds of times and check its history (two hours; ARGS=--help)
	@bash .ci/system-packages mosquitto=mosquitto mosquitto_pub=mosquitto-clients ip=iproute2
	cd tests && "$(CURDIR)/$(BIN)/python" -m torture $(ARGS)

mutants: .venv/.ready ## change the durable path in a thousand places, one at a time: do the tests notice? (hours; ARGS=--help)
	@$(PIP) --no-build-isolation -e '.[mutation]'
	$(BIN)/python tests/mutation/mutants.py $(ARGS)

clean: ## remove everything that is made here, .venv too
	rm -rf .venv .venv-wheel .typing .mutation build dist *.egg-info .coverage .coverage.* coverage.xml
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find daemon models tests bench -name __pycache__ -prune -exec rm -rf {} +

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { echo \
	"gruard needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { echo \
	"'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@[ "$(VENV_OK)" = yes ] || { echo "making .venv"; $(PYTHON) -m venv --clear .venv; }
	@echo "installing into .venv (PyTorch is large: the first time takes a while)"
	@$(PIP) "setuptools>=83"
	@$(PIP) --no-build-isolation -e '.[demo,test]'
	@touch $@

.venv/.ready-check: .venv/.ready
	@$(PIP) --no-build-isolation -e '.[check]'
	@touch $@
