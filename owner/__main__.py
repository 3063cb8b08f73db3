"""`python -m owner` is `portier-owner`."""

from owner.cli import main

if __name__ == "__main__":
    main()
