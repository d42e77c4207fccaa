# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Two commands do everything on a fresh machine: `make demo` and `make test`. Each target installs what it
# misses: Debian packages (tools/install_packages.sh) and a Python environment in .venv/ (tools/make_venv.sh).

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

TOP := $(CURDIR)
PYTHON := .venv/bin/python
export PATH := $(TOP)/.venv/bin:$(PATH)
export PYTHONPATH := $(TOP)
export PYTHONDONTWRITEBYTECODE := 1
export ANSIBLE_COLLECTIONS_PATH := $(TOP)/build/tree
# Ansible wants UTF-8; every Debian has this one.
export LC_ALL := C.UTF-8
COLLECTION := ansible_collections/airlock/images
TREE := build/tree/$(COLLECTION)
COPY := build/copy/$(COLLECTION)

include guest/build.mk

GUESTS := $(FAMILIES:%=sandbox/guests/_guest_%.py)
GENERATED := sandbox/guests/_abi.py sandbox/guests/_limits.py $(GUESTS)
SANDBOX_SOURCES := $(shell find sandbox -name '*.py' -not -path 'sandbox/guests/_*.py')
C_SOURCES := $(shell find guest tests -name '*.[ch]')
WORKERS := 2
JOBS := 4

.PHONY: help build cli demo dist test pytest integration molecule molecule-2.18 molecule-2.18-short \
	molecule-all check test-one others lint lint-python lint-c lint-ansible lint-docs sanity bench bench-growth bench-short \
	fuzz hostile-directory coverage tree copy home clean packages-build packages-demo packages-test packages-bench

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- what has to be there -------------------------------------------------------------------------------

packages-build packages-demo packages-test packages-bench: packages-%:
	@bash tools/install_packages.sh $*

RUN_ENVIRONMENT := .venv/installed-run
FULL_ENVIRONMENT := .venv/installed-develop
OLDEST_ENVIRONMENT := .venv-2.18/installed-oldest

$(RUN_ENVIRONMENT): tools/make_venv.sh tools/requirements/run.txt tools/requirements/constraints.txt
	@bash tools/make_venv.sh run

$(FULL_ENVIRONMENT): tools/requirements/develop.txt $(RUN_ENVIRONMENT)
	@bash tools/make_venv.sh develop

$(OLDEST_ENVIRONMENT): tools/make_venv.sh tools/requirements/oldest.txt
	@bash tools/make_venv.sh oldest

# ---- what is made ---------------------------------------------------------------------------------------

build: $(GENERATED) tree ## generate the ABI and the guest, and lay out the collection tree

sandbox/guests/_abi.py sandbox/guests/_limits.py &: tools/build_abi.py tools/generated.py tools/host_abi.h $(wildcard guest/abi/*.h) $(RUN_ENVIRONMENT)
	@$(PYTHON) tools/build_abi.py

$(GUESTS): sandbox/guests/_guest_%.py: build/guest/%.elf tools/pack_guest.py tools/generated.py sandbox/guests/_abi.py $(RUN_ENVIRONMENT)
	@$(PYTHON) tools/pack_guest.py $< $@

# Each object waits for the compiler.
$(GUEST_SOURCES:%.c=build/obj/%.o) $(FAMILIES:%=build/obj/guest/families/%.o): | packages-build

cli: build/airlock ## build/airlock: the command line as one executable file

build/airlock: tools/build_cli.py $(SANDBOX_SOURCES) $(GENERATED)
	@mkdir -p build
	@$(PYTHON) tools/build_cli.py

# Everything but ansible-test is content with a link to the checkout.
tree:
	@mkdir -p $(dir $(TREE))
	@ln -sfn "$(TOP)" $(TREE)

# ansible-test resolves links first and wants real files below ansible_collections/.
copy: $(GENERATED)
	@$(PYTHON) tools/copy_tree.py $(COPY) $(GENERATED)

dist: $(GENERATED) ## build/dist: the collection as an installable archive
	@ansible-galaxy collection build --force --output-path build/dist

demo: build cli | packages-demo ## a playbook that snapshots, changes and rolls back a real image
	@ansible-playbook -i localhost, playbooks/demo.yml

# ---- what is checked ------------------------------------------------------------------------------------

# Tests leave nothing in the user's home, and find none of its settings but those of git and pip.
USER_HOME := $(HOME)
TESTS := pytest integration molecule molecule-2.18 molecule-2.18-short lint lint-python lint-c lint-ansible lint-docs sanity
$(TESTS): export HOME := $(TOP)/build/home
$(TESTS): | home

home:
	@mkdir -p build/home/.config
	@for one in .gitconfig .config/git .pip .config/pip; do \
		[ -e build/home/$$one ] || [ ! -e "$(USER_HOME)/$$one" ] || ln -s "$(USER_HOME)/$$one" build/home/$$one; done

# All parts run, whichever fails, and side by side: each waits a good part of its time. The longest starts first.
test: build cli $(FULL_ENVIRONMENT) $(OLDEST_ENVIRONMENT) | packages-test ## lint, integration targets, molecule scenarios and all of pytest: unit, hostile, differential, crash
	@$(MAKE) --keep-going --jobs=$(JOBS) --output-sync pytest molecule-all integration lint others 2>&1 | tee build/test.log \
		|| { bash tools/show_failures.sh build/test.log; exit 1; }

# Targets that no test runs, or they would break unseen; those that take long have a short form among the tests.
others: build cli $(FULL_ENVIRONMENT) | packages-test
	@for one in dist demo bench-short; do \
		$(MAKE) $$one > build/$$one.log 2>&1 || { cat build/$$one.log; echo "make $$one failed"; exit 1; }; done

python_version = $$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# In two parts: workers that have run the first are large by then, and each fork of the second would copy their tables.
PYTEST := $(PYTHON) -m pytest -n 3 --dist worksteal $(PYTEST_ARGUMENTS)

pytest: build cli $(FULL_ENVIRONMENT) $(OLDEST_ENVIRONMENT) | packages-test
	@status=0; $(PYTEST) tests/unit tests/fuzz tests/hostile_guest tests/hostile_directory || status=1; \
		$(PYTEST) tests/differential tests/crash tests/roles || status=1; exit $$status

# What needs neither KVM nor patience, for while one works: a minute on two processors.
check: build cli $(FULL_ENVIRONMENT) | packages-test ## format, ruff, mypy, layers and the unit tests that need no KVM, within a minute
	@ruff check --quiet .
	@ruff format --quiet --check .
	@clang-format --dry-run -Werror $(C_SOURCES)
	@mypy --no-error-summary sandbox tools benchmarks
	@$(PYTHON) -m pytest -q -n 2 -m 'not kvm and not slow' tests/unit/test_layers.py tests/unit/test_lookups.py tests/unit/test_docs.py \
		tests/unit/guest tests/unit/sandbox tests/unit/tools tests/unit/plugins/test_links.py

test-one: build cli $(FULL_ENVIRONMENT) ## T=path::name: one test, or what pytest else takes, alone
	@$(PYTHON) -m pytest $(T) $(PYTEST_ARGUMENTS)

integration: copy $(FULL_ENVIRONMENT) | packages-test
	@bash tools/run_ansible_test.sh $(COPY) integration --local --python $(python_version) --color no

# One at a time on a machine, for all of them make the same users; a lock on a directory can be had by everybody.
molecule: build $(FULL_ENVIRONMENT) | packages-test ## the roles and playbooks, on three hosts that are all this one
	@flock --close /etc bash tools/run_molecule.sh

# Only ansible-core is another one: molecule runs the ansible-playbook that it finds first.
molecule-2.18 molecule-2.18-short: export PATH := $(TOP)/.venv-2.18/bin:$(PATH)
molecule-2.18: build $(FULL_ENVIRONMENT) $(OLDEST_ENVIRONMENT) | packages-test ## the same with the oldest ansible-core that is supported
	@flock --close /etc bash tools/run_molecule.sh sandbox_host # it is of modules of ansible-core alone

# tests/roles has the other two roles on both.
molecule-2.18-short: build $(FULL_ENVIRONMENT) $(OLDEST_ENVIRONMENT) | packages-test
	@flock --close /etc bash tools/run_molecule.sh sandbox_host bitmap_rotation upgrade_with_rollback

# They share the hosts, so one after the other.
molecule-all:
	@$(MAKE) molecule
	@$(MAKE) molecule-2.18-short

fuzz: $(FULL_ENVIRONMENT) | packages-test ## the guest under sanitizers, for FUZZ_SECONDS (600)
	@mkdir -p build/fuzz
	@$(PYTHON) -m tests.fuzz.run build/fuzz $(or $(FUZZ_SECONDS),600)

hostile-directory: build cli $(FULL_ENVIRONMENT) | packages-test ## each operation against a tenant who exchanges files, for HOSTILE_SECONDS (600)
	@AIRLOCK_LONG=1 AIRLOCK_SECONDS=$(or $(HOSTILE_SECONDS),600) $(PYTEST) tests/hostile_directory

coverage: build $(FULL_ENVIRONMENT) | packages-test ## lines and branches of the guest that unit tests, differential runs and fuzzers run, by file
	@$(PYTHON) -m tests.coverage

lint: lint-python lint-c lint-ansible lint-docs sanity ## every linter

lint-python: build $(FULL_ENVIRONMENT)
	@ruff check --quiet .
	@ruff format --quiet --check .
	@mypy --no-error-summary sandbox tools benchmarks
	@cd build/tree && MYPYPATH=$$PWD mypy --config-file "$(TOP)/pyproject.toml" --cache-dir "$(TOP)/.mypy_cache" \
		--no-error-summary $(COLLECTION)/plugins/{filter,lookup,modules,plugin_utils} $(COLLECTION)/plugins/module_utils/_module

lint-c: | packages-test
	@clang-format --dry-run -Werror $(C_SOURCES)
	@printf '%s\n' $(filter guest/%.c,$(C_SOURCES)) | xargs -n 3 -P $(WORKERS) \
		sh -c 'clang-tidy --quiet "$$@" -- -std=c11 -ffreestanding -msse2 -Iguest 2> /dev/null' tidy

lint-ansible: build $(FULL_ENVIRONMENT)
	@ansible-lint -q --offline --profile production --strict

lint-docs: build $(FULL_ENVIRONMENT)
	@antsibull-changelog lint
	@cd $(TREE) && antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=self .

sanity: copy $(FULL_ENVIRONMENT)
	@$(PYTHON) tools/get_pip_stand_in.py --install
	@bash tools/run_ansible_test.sh $(COPY) sanity --local --python $(python_version) --color no > "$(TOP)/build/sanity.log" 2>&1 \
		|| { grep -E '^(ERROR|FATAL)' "$(TOP)/build/sanity.log"; exit 1; }

# ---- what is measured -----------------------------------------------------------------------------------

bench: build cli $(FULL_ENVIRONMENT) | packages-bench ## side by side with qemu-img, on an image of 1 TiB
	@$(PYTHON) -m benchmarks.run

GROWTH = --chart docs/growth.svg
bench-growth: build cli $(FULL_ENVIRONMENT) | packages-bench ## how cost grows from a disk of 16 GiB to 12 TiB, and docs/growth.svg
	@$(PYTHON) -m benchmarks.growth $(GROWTH)

bench-short: build cli $(FULL_ENVIRONMENT) | packages-bench ## the same on a small image, in seconds
	@$(PYTHON) -m benchmarks.run --short

clean: ## remove all that was made; the Python environment in .venv/ stays
	@rm -rf build $(GENERATED) tests/output tests/integration/inventory .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
