PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs picture clean

demo: .venv/ready
	$(BIN)/autocompress demo

test: check
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: .venv/ready # as a site, in site/
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/generated.py
	$(BIN)/mkdocs build --strict

RUN ?= runs/demo-1
picture: # of the report of a run
	chromium --headless --no-sandbox --hide-scrollbars --virtual-time-budget=2000 --window-size=1200,1250 \
		--screenshot=docs/report.png file://$(abspath $(RUN))/report.html

.venv/ready: pyproject.toml constraints.txt examples/demo-requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement examples/demo-requirements.txt
	touch $@

clean:
	rm -rf .venv build dist site
