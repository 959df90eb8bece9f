.PHONY: demo test slow lint

demo:
	python -m pip install -c constraints.txt . && accelerate launch run_video_zeroshot.py --demo --output_dir demo

test:
	python -m pip install -c constraints.txt -e ".[test]" && python -m pytest

slow:
	python -m pytest -m slow

lint:
	python -m ruff check . && python -m ruff format --check . && lint-imports && basedpyright
