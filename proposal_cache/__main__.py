"""`python -m proposal_cache`."""

from proposal_cache.cli import main

if __name__ == "__main__":
    main()
