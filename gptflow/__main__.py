"""`python -m gptflow` is `gptflow`."""

from gptflow.cli import main

if __name__ == "__main__":
    main()
