# Everything a contributor types. Each target makes .venv first when it is missing or the build description changed.
PYTHON ?= python3
VENV ?= .venv
DATA_ROOT ?= data
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
CXX_SOURCES := $(wildcard csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
SOURCES := setup.py pyproject.toml CMakeLists.txt $(wildcard csrc/*.in) $(CXX_SOURCES)

define BUILD_REQUIREMENTS
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
endef
export BUILD_REQUIREMENTS

.PHONY: demo test bench lint install clean

# Trains a Fisher AE and a VAE on bundled digits (minutes on two cores) and writes runs/demo/report.html.
demo: $(INSTALLED)
	$(BIN)/fisherkernels demo

test: $(INSTALLED)
	$(BIN)/python -m pytest python_tests -n 2

# Takes more than an hour: run it on a quiet machine. Results go to benchmarks/results, the tables to README.md.
# DATA_ROOT: folder with MNIST/raw/, for FisherNet's decoders; without it they are trained on scikit-learn's digits.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks run --data-root $(DATA_ROOT)
	$(BIN)/python -m benchmarks run --suite ops --allocator default
	$(BIN)/python -m benchmarks report

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

install: $(INSTALLED)

# torch is installed once, into the environment, and the extension is built against it: no build isolation here.
$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(BIN)/python -c "$$BUILD_REQUIREMENTS" | xargs $(PIP) install --quiet
	$(PIP) install --quiet --no-build-isolation --editable '.[train,flow,mkde,dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info fisherkernels/lib
