# make demo [BOOKS=folder] [SET="step.key=value ..."]   the book matcher end to end, from corpus to a running service
# make test                                             every test that needs no GPU
# make env                                              the environment alone (.venv), with pinned versions

PYTHON ?= python3.11
VENV   ?= .venv
RUN     = $(VENV)/bin/python

# By the shell: make's own functions take a name with blanks for several names.
ifdef BOOKS
FOLDER := $(shell CDPATH= cd "$(BOOKS)" 2>/dev/null && pwd)
ifeq ($(FOLDER),)
$(error BOOKS = $(BOOKS): no such folder)
endif
SOURCE := documents.source.kind=folder documents.source.folder="$(FOLDER)"
ROOT   ?= artifacts/$(shell basename "$(FOLDER)")
endif
ROOT   ?= artifacts

.PHONY: demo test env lint clean

env: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(RUN) -m pip install --quiet --progress-bar on --constraint constraints.txt torch==2.13.0
	$(RUN) -m pip install --quiet --progress-bar on --constraint constraints.txt --build-constraint constraints.txt \
		".[cpu,offline,dev]"
	touch $@

demo: env
	$(RUN) -m quire.flow flows/demo.toml root="$(ROOT)" $(SOURCE) $(SET)

# One tier after the other: a Ray of one test must not meet the Ray of another on two cores.
test: env
	$(RUN) -m pytest -q
	$(RUN) -m pytest -q -m ray
	$(RUN) -m pytest -q -m system

lint: env
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info
