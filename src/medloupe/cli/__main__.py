"""`python -m medloupe.cli` is `medloupe`: torchrun starts modules."""

from medloupe.cli import main

if __name__ == "__main__":
    main()
