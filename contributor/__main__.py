"""`python -m contributor` is `portier-contributor`."""

from contributor.cli import main

if __name__ == "__main__":
    main()
