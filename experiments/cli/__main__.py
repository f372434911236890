"""``python -m servetwin.experiments.cli``: what ``servetwin`` does."""

from .entry import main

if __name__ == "__main__":
    main()
