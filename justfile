# https://just.systems: `just` alone lists the recipes.
default:
    @just --list

# install softswap with everything the tests need
setup:
    pip install -e '.[test]'

# serve the demo tasks at http://localhost:8000
serve *options:
    softswap serve {{options}}

# the quick set of tests: about two minutes
quick *options:
    pytest -m "not slow" {{options}}

# all tests
test *options:
    pytest {{options}}

# style, types, direction of imports
lint:
    ruff check .
    ruff format --check .
    mypy
    lint-imports

# format what ruff can format
format:
    ruff check --fix .
    ruff format .

# what CI runs, in a fresh virtual environment
ci:
    bash .ci/run

# measure speed, for example `just bench decode`
bench *options:
    python -m benchmarks {{options}}
