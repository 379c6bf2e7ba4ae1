# Each habit is one command, and sets up what it needs in .venv:
#
#   make run            try ccproxy out: a shell in an embedded VM (CMD='...' for one command)
#   make vm             the same in a real VM, by QEMU
#   make test           everything that has to hold: types, style, tests, coverage
#   make test-lowest    the fast tests with the oldest supported dependencies
#   make test-sdist     make run, and pip install -e, from a source archive in a folder with a space
#   make lint           types and style alone
#   make fuzz           the fuzz targets, guided by coverage, for TIME=600 seconds
#   make test-vm        the tests that boot real VMs
#   make restart-test   100 restarts and 200 kills under load: RESTARTS= KILLS= SESSIONS=
#   make soak           VMs and shims that come and go, for TIME=1200 seconds
#   make bench          what a frame, a keystroke and a VM cost; with DOCS=1 for docs/performance
#   make bench-check    whether that is within bench/speed/bounds.toml
#   make test-systemd   the installed units beside a real systemd, in a box of its own (as root)
#   make install        install ccproxy and its units: PREFIX=/usr/local SYSCONFDIR=/etc DESTDIR=
#   make uninstall      remove what that has installed, but the configuration
#   make check-contrib  the alerts, policies and the dashboard of contrib/, by Debian's tools
#   make docs           the documentation, in docs/_build
#   make man            the manual pages, in docs/_build/man
#   make conformance    the black-box suite, where it lies beside this folder
#   make clean          remove all that these have made
#   make                shows these lines
#
# TESTS='ccproxy.test.test_x ...' chooses what `make unit` runs.

PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
CONFORMANCE ?= ../shared/conformance/run.py

BIN := $(CURDIR)/$(VENV)/bin
LOWEST := .venv-lowest
SOURCES := $(shell find ccproxy twisted -name __pycache__ -prune -o -print)
ALL_TESTS := $(subst /,.,$(basename $(shell find ccproxy/test -name 'test_*.py')))
VM_TESTS := $(filter ccproxy.test.vm.test_real_%,$(ALL_TESTS))
FAST_TESTS := $(filter-out $(VM_TESTS) ccproxy.test.process.% ccproxy.test.faults.% ccproxy.test.systemd.%,$(ALL_TESTS))
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# The tests run from the wheel; those of what is not in it find it here.
export CCPROXY_SOURCE := $(CURDIR)

.PHONY: help run vm command test test-vm unit lint test-lowest test-sdist check-run fuzz restart-test soak bench bench-check install uninstall test-systemd check-contrib docs man conformance clean
.DELETE_ON_ERROR:

# The command is given to the shell inside the VM exactly as it was typed, so make must not look
# for variables in it.
ifdef CMD
export CCPROXY_CMD := $(value CMD)
unexport CMD
COMMAND = sh -c "$$CCPROXY_CMD"
endif

# make exits with 2 when a recipe fails, whatever its status. So `command` always succeeds and
# leaves the status in a file, and `run` makes it make's own: make/exitstatus.py says how.
# Ctrl-C is for the command alone: make/foreground.py keeps it from make, and the recipe's shell waits.
STATUS := $(VENV)/.status-$(shell echo $$PPID)

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

run vm: command
	@$(eval status := $(shell cat $(STATUS) && rm -f $(STATUS)))\
	$(if $(filter-out 0,$(status)),$(eval -load $(shell $(PYTHON) make/exitstatus.py $(status) $(VENV))))\
	exit $(status)

command: $(VENV)/.installed
	@trap : INT QUIT; status=0; $(PREPARE) $(PYTHON) make/foreground.py env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS -u MAKEOVERRIDES "$(BIN)/ccproxyctl" demo \
	    --log $(VENV)/demo.log $(DEMO) -- $(COMMAND) || status=$$?; echo $$status > $(STATUS)

vm: PREPARE := sh make/qemu.sh &&
vm: DEMO := --qemu
vm test-vm: export CCPROXY_VM_CACHE := $(CURDIR)/build/vm

test: lint unit check-run

# From an empty folder and with -P, so that what is tested is the installed wheel.
unit: $(VENV)/.tools
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cd "$$folder" && \
	"$(BIN)/python" -P -m coverage run --rcfile="$(CURDIR)/setup.cfg" -m twisted.trial $(or $(TESTS),ccproxy) && \
	$(if $(TESTS),true,"$(BIN)/coverage" combine -q --rcfile="$(CURDIR)/setup.cfg" && \
	"$(BIN)/coverage" report --rcfile="$(CURDIR)/setup.cfg")

lint: $(VENV)/.tools
	"$(BIN)/mypy" ccproxy twisted/plugins/ccproxy_plugin.py make/exitstatus.py make/foreground.py make/install.py make/systemdbox.py docs/generated.py fuzz bench
	"$(BIN)/ruff" check .

test-lowest: $(LOWEST)/.installed
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cd "$$folder" && \
	"$(CURDIR)/$(LOWEST)/bin/python" -P -m twisted.trial $(FAST_TESTS)

test-sdist: $(VENV)/.created
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	"$(BIN)/python" -c 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])' \
	    "$$folder" > /dev/null && mkdir "$$folder/a checkout" && \
	tar -xzf "$$folder"/ccproxy-*.tar.gz -C "$$folder/a checkout" --strip-components=1 && \
	cd "$$folder/a checkout" && $(MAKE) --no-print-directory check-run && \
	$(PYTHON) -m venv "$$folder/venv" && "$$folder/venv/bin/pip" install -qq -e . && cd / && \
	"$$folder/venv/bin/twistd" ccproxy --version && "$$folder/venv/bin/cc-proxy" -version

# What a newcomer types first.
check-run: $(VENV)/.installed
	@echo "make run CMD='echo hello; echo oops >&2; exit 7'"
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && status=0 && \
	$(MAKE) --no-print-directory run CMD='echo hello; echo oops >&2; exit 7' \
	    > "$$folder/out" 2> "$$folder/err" < /dev/null || status=$$?; \
	cat "$$folder/err" && test "$$status" = 7 && test "$$(cat "$$folder/out")" = hello && grep -qx oops "$$folder/err"

test-vm: $(VENV)/.tools
	@sh make/qemu.sh || { echo "make test-vm: skipped" && exit 0; }; \
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cd "$$folder" && \
	"$(BIN)/python" -P -m twisted.trial $(VM_TESTS)

fuzz: $(VENV)/.fuzz
	@"$(BIN)/python" -m fuzz run --time $(or $(TIME),600)

restart-test: $(VENV)/.tools
	@CCPROXY_RESTARTS=$(or $(RESTARTS),100) CCPROXY_KILLS=$(or $(KILLS),200) \
	CCPROXY_RESTART_SESSIONS=$(or $(SESSIONS),50) $(MAKE) --no-print-directory unit \
	    TESTS='ccproxy.test.process.test_restart.PlannedRestartTests ccproxy.test.process.test_restart.CrashTests'

soak: $(VENV)/.installed
	@"$(BIN)/python" -m bench.soak --time $(or $(TIME),1200)

BENCH = "$(BIN)/python" -m bench.speed --programs $(VENV) --rounds $(or $(ROUNDS),5) --processors

bench: $(VENV)/.installed $(VENV)/load $(VENV)/relay
	@$(BENCH) $(or $(PROCESSORS),apart) $(if $(ROWS),--rows '$(ROWS)') --output $(if $(DOCS),docs/performance,$(VENV)/bench)

bench-check: $(VENV)/.installed $(VENV)/load $(VENV)/relay
	@$(BENCH) $(or $(PROCESSORS),together) --check

$(VENV)/load $(VENV)/relay: $(VENV)/%: bench/speed/%.c bench/speed/peers.h | $(VENV)/.compiler
	cc -O2 -o $@ $<

install: $(VENV)/.wheel
	@"$(BIN)/python" make/install.py $(INSTALL) --wheel $(WHEEL)

uninstall:
	@$(PYTHON) make/install.py $(INSTALL) --uninstall

# The box needs nothing of the machine but that it gives namespaces; where it does not, says so.
test-systemd: $(VENV)/.wheel
	@command -v systemd-analyze > /dev/null || { apt-get update -q && apt-get install -qy systemd; } || true
	@"$(BIN)/python" make/systemdbox.py true || { status=$$?; \
	    test $$status = 77 && echo "make test-systemd: skipped" && exit 0; exit $$status; }; \
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	place="--prefix /usr/local --destdir $$folder" && \
	"$(BIN)/python" make/install.py $$place --wheel $(WHEEL) && \
	"$(BIN)/python" make/systemdbox.py --timeout 300 --tree "$$folder" -- env CCPROXY_BOX=1 \
	    /usr/local/lib/ccproxy/bin/python -m twisted.trial ccproxy.test.systemd.test_units && \
	"$(BIN)/python" make/install.py $$place --uninstall && \
	test "$$(find "$$folder" -not -type d)" = "$$folder/etc/ccproxy/ccproxy.toml"

check-contrib:
	@bash make/check-contrib $(VENV)/contrib

docs: $(VENV)/.docs
	"$(BIN)/sphinx-build" -q -W --keep-going -b html docs docs/_build
	@echo "docs/_build/index.html"

man: $(VENV)/.installed
	@"$(BIN)/python" -m ccproxy.ctl.manpages docs/_build/man
	@echo "man -l docs/_build/man/man1/ccproxyctl.1"

# No machine's KSM is for trying things out.
conformance soak bench bench-check: export CCPROXY_KSM_ROOT := /nonexistent

conformance: $(VENV)/.installed
ifeq ($(wildcard $(CONFORMANCE)),)
	@echo "$(CONFORMANCE) is not here: nothing to run"
else
	$(PYTHON) "$(CONFORMANCE)" --tier compat --start '"$(BIN)/cc-proxy" -log debug -socket-path {socket}'
	$(PYTHON) "$(CONFORMANCE)" --tier compat --start '"$(BIN)/twistd" -n --pidfile= ccproxy --log-level debug --socket-path {socket}'
endif

clean:
	rm -rf $(VENV) $(LOWEST) build *.egg-info docs/_build .mypy_cache .ruff_cache fuzz/found fuzz/crashes
	find ccproxy twisted make fuzz bench -name __pycache__ -prune -exec rm -rf {} +

# The stamps: what is installed, and when.

define create
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
    { echo "ccproxy needs Python 3.11 or later; $$($(PYTHON) --version 2>&1) is here. Try: make PYTHON=python3.12" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
    { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
@echo "Setting up $(1)" >&2
@$(PYTHON) -m venv $(1) >&2
@$(1)/bin/pip install -qq --upgrade pip 'setuptools >= 70.1' >&2
@touch $@
endef

$(VENV)/.created:
	$(call create,$(VENV))

$(LOWEST)/.created:
	$(call create,$(LOWEST))

$(VENV)/.wheel: $(SOURCES) setup.cfg pyproject.toml README.md LICENSE | $(VENV)/.created
	@rm -rf build/lib build/bdist.* $(VENV)/wheel
	@"$(BIN)/pip" wheel -qq --no-deps --no-build-isolation -w $(VENV)/wheel . >&2
	@touch $@

INSTALL = $(if $(INSTALL_PYTHON),--python "$(INSTALL_PYTHON)") --prefix "$(PREFIX)" \
    --destdir "$(DESTDIR)" --sysconfdir "$(SYSCONFDIR)"

WHEEL = $$(echo $(VENV)/wheel/ccproxy-*.whl)

$(VENV)/.installed: $(VENV)/.wheel
	@echo "Installing ccproxy into $(VENV)" >&2
	@"$(BIN)/pip" install -qq --force-reinstall --no-deps $(WHEEL) >&2
	@"$(BIN)/pip" install -qq $(WHEEL) >&2
	@touch $@

$(VENV)/.tools: setup.cfg $(VENV)/.installed
	@"$(BIN)/pip" install -qq "$(WHEEL)[test,lint]" >&2
	@touch $@

# The load generator is C, and socat is one of its yardsticks.
$(VENV)/.compiler: | $(VENV)/.created
	@missing="$$(command -v cc > /dev/null || echo gcc libc6-dev) $$(command -v socat > /dev/null || echo socat)"; \
	test "$$missing" = " " || { apt-get update -q && apt-get install -qy $$missing; } >&2 || \
	    { echo "make bench needs a C compiler and socat" >&2; exit 1; }
	@touch $@

# Where there is no atheris, make fuzz says so itself.
$(VENV)/.fuzz: setup.cfg $(VENV)/.installed
	@"$(BIN)/pip" install -qq "$(WHEEL)[fuzz]" >&2 && touch $@ || true

$(VENV)/.docs: setup.cfg $(VENV)/.installed
	@"$(BIN)/pip" install -qq "$(WHEEL)[docs]" >&2
	@touch $@

# The lower bounds are those of install_requires.
$(LOWEST)/.installed: $(VENV)/.wheel | $(LOWEST)/.created
	@sed -n '/^install_requires/,/^$$/s/^ *\([a-z.-]*\) >= /\1 == /p' setup.cfg > $(LOWEST)/constraints
	@"$(CURDIR)/$(LOWEST)/bin/pip" install -qq --force-reinstall --no-deps $(WHEEL) >&2
	@"$(CURDIR)/$(LOWEST)/bin/pip" install -qq -c $(LOWEST)/constraints "$(WHEEL)[test]" >&2
	@touch $@
